"""Config files: found by name, overridden by dotlist, refused in words."""

import pytest

from infra.config import compose
from infra.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny.yaml").write_text(
        "steps: 3\nbase: models/x\ntokenizer: {path: '${base}'}\nstages: {a: {steps: 1}}\n"
    )
    (tmp_path / "broken.yaml").write_text("steps: [1,\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    return tmp_path


def test_overrides_change_and_add_keys_with_yaml_values(folder):
    found = compose(folder, "tiny", ["stages.a.steps=5", "sources.text=[a,b]", "seed=null", "rate=1e-3", "name=x y"])
    assert found["stages"] == {"a": {"steps": 5}}
    assert found["sources"] == {"text": ["a", "b"]}
    assert found["seed"] is None
    assert float(found["rate"]) == 1e-3
    assert found["name"] == "x y"


def test_one_key_may_refer_to_another(folder):
    assert compose(folder, "tiny", ["base=/elsewhere"])["tokenizer"]["path"] == "/elsewhere"


def test_a_path_is_as_good_as_a_name(folder):
    assert compose(folder / "nowhere", str(folder / "tiny.yaml"))["steps"] == 3


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("tinny", [], r"no 'tinny' \(did you mean tiny\?\)"),
        ("broken", [], r"broken.yaml: not a YAML mapping"),
        ("list", [], "holds a list"),
        ("tiny", ["steps"], "'steps': write KEY=VALUE"),
        ("tiny", ["base=${missing}"], "missing"),
    ],
)
def test_what_cannot_be_read_is_named(folder, name, words, said):
    with pytest.raises(UserError, match=said):
        compose(folder, name, words)


def test_a_config_is_data(folder):
    (folder / "evil.yaml").write_text("steps: !!python/object/apply:os.system ['touch evil']\n")
    with pytest.raises(UserError, match="not a YAML mapping"):
        compose(folder, "evil")
    assert not (folder / "evil").exists()
    # nor does OmegaConf run resolvers that read the environment into a recipe
    with pytest.raises(UserError):
        compose(folder, "tiny", ["base=${oc.env:HOME}"])


@pytest.mark.parametrize(
    "word",
    [
        "sources.text=[a.txt,'https://reader:canary-5e1f@host/b.txt']",
        "sources.chat='gs://b/x?access_token=canary-5e1f'",
    ],
)
def test_a_value_with_credentials_is_refused_without_repeating_them(folder, word):
    with pytest.raises(UserError, match=r"sources\.\w+(\[1\])?=.*\[redacted\].* has credentials in it") as refused:
        compose(folder, "tiny", [word])
    assert "canary" not in str(refused.value)
