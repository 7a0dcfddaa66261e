"""Curricula and placements: the shipped files build, identity holds no placement, and what cannot be is refused."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.config import compose
from infra.stage import Stage, canonical
from ringworld.errors import UserError
from stages.curriculum import load_curriculum
from stages.graph import build
from stages.site import load_site
from stages.training import length_label

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CURRICULA = sorted(path.stem for path in (CONFIGS / "curricula").glob("*.yaml"))
PLACEMENTS = sorted(path.stem for path in (CONFIGS / "placements").glob("*.yaml"))


def recipe(stage: Stage) -> Any:
    return stage.recipe


def graph(curriculum="tiny", placement="local", words=(), placing=()) -> dict[str, Stage]:
    return built(compose(CONFIGS / "curricula", curriculum, words), placement, placing)


def built(curriculum: Any, placement="local", placing=()) -> dict[str, Stage]:
    site = load_site(compose(CONFIGS / "placements", placement, placing))
    return {stage.name: stage for stage in build(load_curriculum(curriculum), site)}


def plain(folder: Path, words=(), placing=()) -> dict[str, Stage]:
    """The tiny curriculum with its text as it is, and these words."""
    found = compose(CONFIGS / "curricula", "tiny", [])
    for row in found["stages"].values():
        if row.get("data") == "recall":
            row.update(data="text", mixture={})
    (folder / "plain.yaml").write_text(yaml.safe_dump(found, sort_keys=False), encoding="utf-8")
    return built(compose(CONFIGS / "curricula", str(folder / "plain.yaml"), words), placing=placing)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_stage_is_the_same_stage_wherever_it_is_placed(placement):
    prints = {name: stage.fingerprint for name, stage in graph("lwm_7b", placement).items()}
    assert prints == {name: stage.fingerprint for name, stage in graph("lwm_7b", "local").items()}


@pytest.mark.parametrize("curriculum", CURRICULA)
def test_every_shipped_curriculum_builds(curriculum):
    kinds = {stage.recipe.kind for stage in graph(curriculum).values()}
    assert kinds >= {"documents", "tokens", "train", "evaluate"}
    assert kinds & {"pack", "pack-whole"}


def test_each_text_stage_starts_from_the_one_before_with_a_larger_theta():
    stages = graph()
    chain = ["text-512", "text-1k", "text-2k", "text-4k", "text-8k"]
    for before, after in itertools.pairwise(chain):
        assert stages[after].inputs["params"] is stages[before]
        assert recipe(stages[after]).model.rope.theta > recipe(stages[before]).model.rope.theta
        evaluation = stages[f"evaluate-{after}"]
        assert evaluation.inputs["before"] is stages[before]
        assert recipe(evaluation).before_rope == recipe(stages[before]).model.rope
        assert recipe(evaluation).past == recipe(stages[before]).sequence


def test_a_recall_stage_trains_on_rows_of_its_own_and_is_measured_on_held_out_documents():
    stages = graph()
    made, packed = stages["recall-text-1k"], stages["pack-text-1k"]
    assert dict(made.inputs) == {"tokens": stages["tokens"], "tokenizer": stages["tokenizer"]}
    assert recipe(made).documents * 1024 == recipe(stages["text-1k"]).steps * recipe(stages["text-1k"]).batch_tokens
    assert dict(packed.inputs) == {"tokens": made}
    assert dict(stages["text-1k"].inputs) == {"tokens": made, "plan": packed, "params": stages["text-512"]}
    assert stages["evaluate-text-1k"].inputs["tokens"] is stages["tokens"]
    assert 1024 in recipe(stages["tokens"]).buckets


def test_lwm_7b_states_the_papers_text_stages():
    stages = graph("lwm_7b", "v4_512")
    facts = {
        "text-32k": (2**15, 1e6, 1200, "fsdp=-1,tensor=4"),
        "text-128k": (2**17, 1e7, 3000, "fsdp=-1,tensor=8"),
        "text-256k": (2**18, 1e7, 3000, "fsdp=-1,tensor=16"),
        "text-512k": (2**19, 2.5e7, 720, "fsdp=-1,tensor=16,ring=2"),
        "text-1m": (2**20, 5e7, 450, "fsdp=-1,tensor=16,ring=4"),
    }
    for name, (sequence, theta, steps, mesh) in facts.items():
        found = recipe(stages[name])
        assert (found.sequence, found.model.rope.theta, found.steps) == (sequence, theta, steps)
        assert found.batch_tokens == 2**22
        assert stages[name].placement.mesh == mesh
    first = recipe(stages["evaluate-text-32k"])
    assert (first.past, first.before_rope.theta, first.before_folder) == (
        4096,
        1e4,
        recipe(stages["text-32k"]).init_folder,
    )
    for length in ("128k", "256k", "512k", "1m"):
        chat = stages[f"text-chat-{length}"]
        assert chat.inputs["params"] is stages[f"text-{length}"]
        assert recipe(chat).model.rope == recipe(stages[f"text-{length}"]).model.rope


def test_every_stage_is_asked_what_its_length_holds():
    stages = graph("lwm_7b")
    assert recipe(stages["evaluate-text-128k"]).tasks.lengths == (4096, 16384, 32768, 131072)
    assert recipe(stages["evaluate-vision-1k"]).tasks is None
    assert [recipe(stages[f"evaluate-{name}-128k"]).tasks.chat for name in ("text", "text-chat")] == [False, True]
    assert recipe(stages["evaluate-text-1m"]).context.tail == 512
    assert recipe(stages["evaluate-vision-1k"]).context.short == 1024
    assert [recipe(stages[f"evaluate-text-{name}"]).context.windows for name in ("32k", "1m")] == [16, 8]
    tiny = graph(words=["evaluate.tasks.fractions=[0.5, 1.0]", "evaluate.tasks.lengths=[256, 4096]"])
    assert recipe(tiny["evaluate-vision-chat-2k"]).tasks.lengths == (256, 1024, 2048)
    without = graph(words=["evaluate.context=null", "evaluate.tasks=null"])
    assert recipe(without["evaluate-text-1k"]).tasks is recipe(without["evaluate-text-1k"]).context is None
    assert "context" not in canonical(recipe(without["evaluate-text-1k"]))
    with pytest.raises(UserError, match=r"curriculum.evaluate.tasks: tasks: pass is unknown .did you mean passkey"):
        graph(words=["evaluate.tasks.names=[pass]"])
    with pytest.raises(UserError, match=r"give shares in 0..1 of the sequence, or lengths in tokens"):
        graph(words=["evaluate.tasks.fractions=[]"])


def test_a_change_upstream_changes_identities_downstream_and_nowhere_else():
    before, after = graph(), graph(words=["stages.text-2k.steps=49"])
    changed = {name for name in before if before[name].fingerprint != after[name].fingerprint}
    trained = {"text-2k", "text-4k", "text-8k", "text-chat-2k", "text-chat-8k"}
    trained |= {name for name, stage in before.items() if stage.recipe.kind == "train" and "vision" in name}
    # Documents of a recall stage are as many as its steps read rows.
    assert changed == trained | {f"evaluate-{name}" for name in trained} | {"recall-text-2k", "pack-text-2k"}


def test_how_a_stage_draws_is_part_of_it_and_how_it_is_split_is_not(tmp_path):
    """Steps are part of a packing plan only where it depends on them."""
    wish = ["stages.text-1k.replay=prolong", "stages.text-1k.mixture={books: 2, code: 1}"]
    before, after = plain(tmp_path, wish), plain(tmp_path, [*wish, "stages.text-1k.steps=77"])
    packed = recipe(after["pack-text-1k"])
    assert (packed.mixture.replay_share, packed.mixture.domains, packed.steps) == (0.4, {"books": 2.0, "code": 1.0}, 77)
    # A text mixture names domains, not corpora of conversations.
    assert set(before["conversations"].inputs) == {"tokenizer", "chat", "qa-2k", "qa-8k"}
    assert before["pack-text-1k"].fingerprint != after["pack-text-1k"].fingerprint
    assert recipe(after["pack-text-2k"]).steps == 0
    auto = plain(tmp_path, wish, ["train.shapes=auto"])
    assert {name: stage.fingerprint for name, stage in auto.items()} == {
        name: stage.fingerprint for name, stage in before.items()
    }


def test_a_mesh_must_hold_the_rows_of_every_length_unless_shapes_are_chosen(tmp_path):
    words = ["stages.text-8k.decompose={least: 1024}"]
    words += [f"stages.text-{name}.batch_tokens=32768" for name in ("64", "256", "512", "1k", "2k", "4k")]
    placing = ["kind=gpu", "resources.GPU=4", "mesh={fsdp: 4, ring: 1}"]
    with pytest.raises(UserError, match="text-8k: mesh data x fsdp=4 does not divide 2 rows"):
        plain(tmp_path, words, placing)
    made = plain(tmp_path, words, [*placing, "train.shapes=auto"])
    assert recipe(made["pack-text-8k"]).decompose.least == 1024
    assert recipe(made["pack-text-8k"]).steps == recipe(made["text-8k"]).steps


def test_a_placement_may_allow_fewer_hosts():
    place = graph(placing=["hosts={min: 2, max: 4}", "shrink_seconds=5"])["text-512"].placement
    assert (place.hosts, place.least_hosts, place.shrink_seconds) == (4, 2, 5)
    assert [width.hosts for width in place.widths()] == [4, 2]
    with pytest.raises(UserError, match="min=4, max=2: 1 <= min <= max"):
        graph(placing=["hosts={min: 4, max: 2}"])


def test_hosts_share_this_machines_processors():
    one, two = (graph(placing=[f"hosts={n}"])["text-512"].placement for n in (1, 2))
    assert two.hosts == 2
    assert two.resources["CPU"] == max(1, one.resources["CPU"] // 2)


def test_sources_may_be_one_word():
    assert recipe(graph(words=["sources.text=a/*.txt,b.md"])["documents"]).sources == ("a/*.txt", "b.md")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stages.text-1k.stepz=3"], r"curriculum.stages.text-1k.stepz: unknown key \(did you mean steps\?\)"),
        (["stages.text-1k.replay=0.3"], "stages.text-1k: replay=0.3 is for text; a recall stage takes whole examples"),
        (["stages.text-1k.mixture={books: 1}"], "no such corpus of a stage of data=recall; allowed: needle, passage"),
        (["stages.text-1k.counted=2"], "counted=2.0: a share of the text's tokens, 0 to 1"),
        (["stages.text-chat-2k.counted=0.5"], "counted=0.5 is for data: recall"),
        (["stages.text-1k.steps=many"], r"curriculum.stages.text-1k.steps='many': expected a whole number"),
        (["model.num_kv_heads=3"], "num_kv_heads=3 does not divide num_heads=4; use one of"),
        (["stages.text-1k.sequence=1000"], r"text-1k: sequence=1000, so its name ends in -1000"),
        (["stages.text-1k.after=text-8k"], r"text-1k.after='text-8k': must be a stage above it"),
        (["stages.text-1k.batch_tokens=1500"], "batch_tokens=1500 is not a multiple of sequence=1024"),
        (["tokenizer.kind=wordpiece"], "wordpiece.*bpe"),
        (["seeds=3"], r"curriculum.seeds: unknown key \(did you mean seed\?\)"),
    ],
)
def test_what_cannot_be_is_refused_by_key_value_and_remedy(words, said):
    with pytest.raises(UserError, match=said):
        graph(words=words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stages.text-1k.replay=lots"], "stages.text-1k: replay='lots': a share, or one of prolong, weak, strong"),
        (["stages.text-1k.mixture={books: 0}"], r"stages.text-1k: mixture={'books': 0.0}: give each its share"),
        (["stages.text-1k.decompose={least: 100}"], "decompose.least=100: a power of two"),
    ],
)
def test_what_plain_text_cannot_be_is_refused(tmp_path, words, said):
    with pytest.raises(UserError, match=said):
        plain(tmp_path, words)


@pytest.mark.parametrize(
    ("placing", "said"),
    [
        (["mesh.rings=2"], "'rings'"),
        (["mesh.ring=two"], "'two'"),
        (["train.savings=2"], "savings"),
        (["kind=quantum"], "quantum"),
    ],
)
def test_a_placement_that_cannot_be_is_refused_before_any_work(placing, said):
    with pytest.raises(UserError, match=said):
        graph(placing=placing)


def test_lengths_have_names():
    assert [length_label(n) for n in (512, 1024, 8192, 1000, 1 << 20)] == ["512", "1k", "8k", "1000", "1m"]
