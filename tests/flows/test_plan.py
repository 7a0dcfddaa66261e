"""`flows/plan.py` as a person meets it: figures, verdicts, and errors before any work."""

import json

import pytest

from flows import plan


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGWORLD_CACHE", str(tmp_path / "cache"))


def test_every_training_stage_has_a_row_and_the_same_figures_go_to_json(tmp_path, capsys):
    path = tmp_path / "plan.json"
    assert plan.main(["curriculum=lwm_7b", "placement=v4_512", "price=3", f"json={path}", f"root={tmp_path}"]) == 0
    printed, written = capsys.readouterr().out, json.loads(path.read_text())
    names = [row["stage"] for row in written["stages"]]
    assert names[:5] == ["text-32k", "text-128k", "text-256k", "text-512k", "text-1m"]
    assert all(name in printed for name in names)
    for row in written["stages"]:
        assert row["fits"] is True
        assert row["chip_bytes"]["total"] == pytest.approx(sum(row["chip_bytes"][p] for p in PARTS))
        assert row["cost"] == pytest.approx(3 * 256 * row["hours"])
        assert row["hours"] == pytest.approx(row["steps"] * row["seconds_per_step"] / 3600)
    assert written["all"]["hours"] == pytest.approx(sum(row["hours"] for row in written["stages"]))
    assert "as if each row were one document" in printed


PARTS = ("weights", "optimizer", "gradients", "saved", "temporaries")


def test_what_does_not_fit_is_said_with_the_reason_and_by_the_exit_code(tmp_path, capsys):
    words = ["curriculum=llama3_8b_longest", "placement=v5p_8", "only=text-15m", f"root={tmp_path}"]
    assert plan.main(words) == 1
    assert "text-15m does not fit: a chip needs" in capsys.readouterr().out


def test_the_laptop_is_compiled_for_and_a_second_plan_starts_nothing(tmp_path, capsys):
    words = ["only=text-1k", "aot=true", f"root={tmp_path}", f"json={tmp_path / 'plan.json'}"]
    assert plan.main(words) == 0
    [row] = json.loads((tmp_path / "plan.json").read_text())["stages"]
    assert row["compiler"]["outcome"] == "fits"
    assert 0.5 < row["compiler"]["peak"] / row["chip_bytes"]["total"] < 2
    assert "text-1k: fits after" in capsys.readouterr().err


def test_a_search_ends_in_lines_for_the_placement_file(tmp_path, capsys):
    words = ["curriculum=lwm_7b", "placement=h100x8", "only=text-128k", "search=true", f"root={tmp_path}"]
    assert plan.main(words) == 0
    assert "stages:\n  text-128k:\n    mesh:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["only=text-3"], "only=text-3: no training stage; there are text-64"),
        (["price=-1"], "price=-1"),
        (["attention=0"], "attention=0"),
        (["placement=v5p_8", "curriculum=lwm_7b", "placement.mesh.ring=3"], "does not fit 8 devices"),
        (["placement=v5p_8", "curriculum=lwm_7b", "placement.mesh.ring=1", "placement.mesh.tensor=8",
          "model.num_heads=4", "model.num_kv_heads=4"], "model.num_heads=4; the nearest that does is 4"),
        (["placement=v4_512", "curriculum=lwm_7b", "placement.accelerator=v9"], "chip 'v9': no such chip"),
        (["json=/nonexistent/plan.json"], "json=/nonexistent/plan.json"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_an_error_with_a_remedy(tmp_path, capsys, words, said):
    assert plan.main([*words, f"root={tmp_path}"]) == 2
    assert said in capsys.readouterr().err


def test_without_the_compiler_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert plan.main(["placement=v5p_8", "curriculum=lwm_7b", "aot=true", f"root={tmp_path}"]) == 2
    assert "pip install '.[plan]'" in capsys.readouterr().err
