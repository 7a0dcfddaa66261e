"""Deduplicate, decontaminate, tokens and assemble over one corpus with planted copies, benchmarks and topics."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.config import compose
from infra.stage import Artifact, Result, Stage
from ringworld.data.assemble import BUCKETS, Chains, chained, nearest, vector, walk, word_counts
from ringworld.data.files import read_table
from ringworld.data.token_store import TokenStore
from ringworld.data.tokenizers import load_tokenizer
from ringworld.errors import UserError
from ringworld.evaluate.needle import make_prompts
from ringworld.evaluate.recipe import NeedleConfig
from stages import assemble, decontaminate, deduplicate, repeats, tokenizer, tokens
from stages.assemble import AssembleRecipe
from stages.curriculum import load_curriculum
from stages.decontaminate import DecontaminateRecipe, read_benchmarks
from stages.deduplicate import DeduplicateRecipe
from stages.documents import DocumentsRecipe
from stages.graph import build
from stages.site import load_site
from stages.tokenizer import TokenizerRecipe
from stages.tokens import TokensRecipe, choose_held_out
from tests.stages.killing import one_worker_killed

Run = Callable[..., Artifact]
TOPICS = [[f"{name}{number}" for number in range(80)] for name in ("whale", "rose", "engine", "star")]
RNG = random.Random(0)
QUESTION = " ".join(f"question{number}" for number in range(16))
ANSWER = " ".join(f"answer{number}" for number in range(9))
PASSAGE = " ".join(f"passage{number}" for number in range(300))
PROVERB = " ".join(f"proverb{number}" for number in range(15))
LICENCE = " ".join(f"licence{number}" for number in range(120))


def prose(topic: int, words: int) -> str:
    return " ".join(RNG.choices(TOPICS[topic], k=words))


def with_inside(text: str, inside: str) -> str:
    names = text.split()
    return " ".join([*names[: len(names) // 2], inside, *names[len(names) // 2 :]])


def planted() -> dict[str, str]:
    """Texts by name. A name says what was done to the text."""
    texts = {f"{topic}-{number}": prose(topic, 500) for topic in range(4) for number in range(8)}
    for number in range(3):
        texts[f"0-{number}-copy"] = " ".join(texts[f"0-{number}"].split()[:-5])  # shorter: the copy goes
    texts["0-longer"] = texts["0-3"] + " and a few words more"  # longer: the original goes
    texts["1-asks"] = with_inside(prose(1, 500), QUESTION)
    texts["1-answers"] = with_inside(prose(1, 500), f"{ANSWER} {prose(1, 300)} {QUESTION}")
    texts["1-asks-copy"] = " ".join(texts["1-asks"].split()[:-5])
    texts["2-passage"] = f"{prose(2, 100)} {PASSAGE}"
    texts["3-needle"] = with_inside(prose(3, 500), "The special magic Lima number is: 1234567.")
    for number in range(12):
        texts[f"3-{number}-proverb"] = with_inside(prose(3, 300), PROVERB)
    for number in range(3):
        texts[f"2-{number}"] = with_inside(texts[f"2-{number}"], LICENCE)
    return dict(sorted(texts.items()))


TEXTS = planted()


@pytest.fixture
def documents(run_stage: Run) -> Callable[[int], Artifact]:
    """The artifact of a documents stage that has put the texts into so many files."""

    def made(files: int) -> Artifact:
        rows = [
            {
                "sha256": hashlib.sha256(text.encode()).hexdigest(),
                "source": name,
                "domain": f"topic{name[0]}",
                "bytes": len(text.encode()),
                "text": text,
            }
            for name, text in TEXTS.items()
        ]

        def run(context: Any, recipe: Any) -> Result:
            names = []
            for number, part in enumerate(np.array_split(np.arange(len(rows)), files)):
                names.append(f"documents/part-{number:05d}.parquet")
                place = Path(context.attempt_dir, names[-1])
                place.parent.mkdir(exist_ok=True)
                pq.write_table(pa.Table.from_pylist([rows[row] for row in part]), place)
            return Result(tuple(names), {"documents": len(rows), "bytes": sum(row["bytes"] for row in rows)})

        return run_stage(SimpleNamespace(run=run), DocumentsRecipe())

    return made


@pytest.fixture
def benchmarks(tmp_path: Path) -> tuple[str, ...]:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    rows = [{"question": QUESTION, "answers": [ANSWER, "short"]}, {"question": f"Well, {PROVERB.upper()}!"}]
    lines = "\n".join(json.dumps(row) for row in rows)
    (folder / "asked.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(pa.table({"number": [1, 2], "passage": ["nothing of interest", PASSAGE]}), folder / "read.parquet")
    (folder / "plain.txt").write_text("A first line.\n\n" + " ".join(f"unseen{n}" for n in range(40)))
    return (str(folder),)


@pytest.fixture
def backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of work done one after another in this process, the last first, instead of by Ray."""

    def map_blocks(
        context: Any, blocks: Sequence[pa.Table], function: Callable[..., pa.Table], arguments: Mapping[str, Any]
    ) -> Iterator[pa.Table]:
        for block in reversed(blocks):
            if (result := function(block, **arguments)).num_rows:  # as Ray Data does, which passes on no empty block
                yield result

    for module in (assemble, decontaminate, deduplicate, repeats, tokens):
        monkeypatch.setattr(module, "map_blocks", map_blocks)


RECIPE = DeduplicateRecipe(repeat_words=20)


def curate(run_stage: Run, made: Artifact, benchmarks: tuple[str, ...]) -> dict[str, Artifact]:
    found = {"documents": made}
    found["deduplicate"] = run_stage(deduplicate, RECIPE, {"documents": made})
    ports = {name: found[name] for name in ("documents", "deduplicate")}
    found["decontaminate"] = run_stage(decontaminate, DecontaminateRecipe(benchmarks, margin=20), ports)
    found["tokenizer"] = run_stage(tokenizer, TokenizerRecipe("bytes"))
    found["tokens"] = run_stage(tokens, TokensRecipe(held_out=0.2), dict(found))
    ports = {name: found[name] for name in ("documents", "tokens")}
    found["assemble"] = run_stage(assemble, AssembleRecipe(least_similarity=0.2), ports)
    return found


def rows_of(made: Artifact, name: str) -> list[dict[str, Any]]:
    return read_table(made.path(name)).to_pylist()


def test_what_was_planted_is_found_and_nothing_else(
    documents: Any, benchmarks: tuple[str, ...], run_stage: Run, backwards: None
) -> None:
    found = curate(run_stage, documents(5), benchmarks)
    drops = {row["source"]: row for row in rows_of(found["deduplicate"], "drops.parquet")}
    assert {name: row["of"] for name, row in drops.items()} == {
        "0-0-copy": "0-0",
        "0-1-copy": "0-1",
        "0-2-copy": "0-2",
        "0-3": "0-longer",
        "1-asks-copy": "1-asks",
    }
    assert all(row["similarity"] > 0.9 and row["domain"] == f"topic{name[0]}" for name, row in drops.items())
    clusters = rows_of(found["deduplicate"], "clusters.parquet")
    assert [row["source"] for row in clusters if row["kept"]] == ["0-0", "0-1", "0-2", "0-longer", "1-asks"]
    repeated = [row for row in rows_of(found["deduplicate"], "repeats.parquet") if "licence" in row["excerpt"]]
    assert (repeated[0]["times"], repeated[0]["source"], repeated[0]["others"]) == (3, "2-0", ["2-1", "2-2"])
    shares = {row["source"]: row["share"] for row in rows_of(found["deduplicate"], "repeated.parquet")}
    assert shares["2-0"] == pytest.approx(120 / 620, abs=0.08)
    assert shares["2-3"] == 0.0
    assert set(shares) == set(TEXTS) - set(drops)

    folder = benchmarks[0]
    dropped = rows_of(found["decontaminate"], "drops.parquet")
    assert [(row["source"], row["reason"]) for row in dropped] == [("2-passage", "held by a benchmark")]
    assert f"{folder}/read.parquet line 2" in dropped[0]["detail"]
    cuts = rows_of(found["decontaminate"], "cuts.parquet")
    assert [(row["source"], row["benchmark"], row["line"]) for row in cuts] == [
        ("1-answers", f"{folder}/asked.jsonl.gz", 1),
        ("1-answers", f"{folder}/asked.jsonl.gz", 1),
        ("1-asks", f"{folder}/asked.jsonl.gz", 1),
        ("3-needle", "needle", 1),
    ]
    for row, inside in zip(cuts, (ANSWER, QUESTION, QUESTION, "The special magic Lima number is"), strict=True):
        assert inside in TEXTS[row["source"]][row["start"] : row["end"]]
        assert row["matched"] in inside
        assert row["end"] - row["start"] < len(inside) + 80
    common = found["decontaminate"].values["common_phrases"]
    assert {(row["line"], row["documents"]) for row in common} == {(2, 12)}

    store = TokenStore.open(found["tokens"].path("tokens"))
    model = load_tokenizer(found["tokenizer"].path("tokenizer"))
    index = store.provenance().to_pylist()
    texts = {row["source"]: model.decode(store.read(row["document"])) for row in index}
    made = {"1-answers#2", "1-answers#3", "1-asks#2", "3-needle#2"}
    assert [row["source"] for row in index] == sorted(set(TEXTS) - set(drops) - {"2-passage"} | made)
    pieces = {row["source"] for row in cuts}
    for name, text in texts.items():
        whole = TEXTS[name.partition("#")[0]]
        assert text in whole if name.partition("#")[0] in pieces else text == whole
        assert not any(inside in text for inside in (QUESTION, ANSWER, PASSAGE, "special magic"))
        assert (PROVERB in text) == name.endswith("proverb")
    sides: dict[str, set[str]] = {}
    for row in index:
        sides.setdefault(row["sha256"], set()).add(row["split"])
        assert row["corpus"] == f"topic{row['source'][0]}"
    assert all(len(side) == 1 for side in sides.values())
    assert found["tokens"].values["dropped"] == {"held by a benchmark": 1, "near duplicate": 5}
    assert found["tokens"].values["pieces"] == 7
    assert found["tokens"].values["documents"] == len(texts)

    chains = Chains.load(found["assemble"].path("chains.parquet"))
    assert sorted(chains.document.tolist()) == list(range(len(index)))
    for chain in np.unique(chains.chain):
        members = [index[document] for document in chains.document[chains.chain == chain].tolist()]
        assert len({(row["corpus"], row["split"]) for row in members}) == 1
    train = store.index.documents("train")
    groups = chained(store.index, train, chains)
    assert sorted(np.concatenate(groups).tolist()) == train.tolist()
    assert max(len(group) for group in groups) >= 5
    follows = [row["source"] for row in (index[document] for document in chains.document.tolist())]
    assert follows[follows.index("1-answers") + 1 :][:2] == ["1-answers#2", "1-answers#3"]


@pytest.mark.usefixtures("cluster")
def test_ray_and_any_division_into_files_decide_the_same(
    documents: Any, benchmarks: tuple[str, ...], run_stage: Run, request: pytest.FixtureRequest
) -> None:
    by_ray = curate(run_stage, documents(7), benchmarks)
    request.getfixturevalue("backwards")
    alone = curate(run_stage, documents(1), benchmarks)
    for stage, name, order in (
        ("deduplicate", "drops.parquet", "source"),
        ("deduplicate", "clusters.parquet", "source"),
        ("deduplicate", "repeats.parquet", None),
        ("deduplicate", "repeated.parquet", "source"),
        ("decontaminate", "drops.parquet", "source"),
        ("decontaminate", "cuts.parquet", None),
        ("assemble", "chains.parquet", None),
    ):
        one, other = (read_table(made[stage].path(name)) for made in (by_ray, alone))
        one, other = (t.drop_columns(["file"]) if "file" in t.column_names else t for t in (one, other))
        assert one.num_rows or (stage, name) == ("decontaminate", "drops.parquet")
        assert one.equals(other) if order is None else one.sort_by(order).equals(other.sort_by(order))
    for stage in ("deduplicate", "decontaminate", "tokens", "assemble"):
        assert by_ray[stage].values == alone[stage].values


@pytest.mark.usefixtures("cluster")
def test_a_worker_killed_in_the_shuffle_costs_no_document_and_doubles_none(tmp_path: Path, run_stage: Run) -> None:
    words = [f"word{number}" for number in range(4000)]
    texts = {f"{n}": " ".join(RNG.choices(words, k=20_000)) for n in range(60)}
    texts |= {f"{n}-copy": " ".join(text.split()[:-9]) for n, text in texts.items()}

    def run(context: Any, recipe: Any) -> Result:
        rows = [
            {"sha256": hashlib.sha256(text.encode()).hexdigest(), "source": name, "bytes": len(text), "text": text}
            for name, text in texts.items()
        ]
        Path(context.attempt_dir, "documents").mkdir()
        names = [f"documents/part-{number:05d}.parquet" for number in range(6)]
        for number, name in enumerate(names):
            pq.write_table(pa.Table.from_pylist(rows[number::6]), Path(context.attempt_dir, name))
        return Result(tuple(names), {"documents": len(rows), "bytes": sum(row["bytes"] for row in rows)})

    made = run_stage(SimpleNamespace(run=run), DocumentsRecipe())
    with one_worker_killed("_sign_block", lambda: any((tmp_path / "runs").rglob("bands/*.arrow"))):
        found = run_stage(deduplicate, RECIPE, {"documents": made})
    drops = rows_of(found, "drops.parquet")
    assert {row["source"]: row["of"] for row in drops} == {f"{n}-copy": f"{n}" for n in range(60)}
    assert len(drops) == 60
    assert (found.values["documents"], found.values["pairs"]) == (120, 60)
    repeated = [row["source"] for row in rows_of(found, "repeated.parquet")]
    assert sorted(repeated) == sorted(f"{n}" for n in range(60))


def test_documents_of_a_large_domain_meet_in_the_cell_of_their_leader(
    documents: Any, run_stage: Run, backwards: None
) -> None:
    made = {"documents": documents(3), "tokenizer": run_stage(tokenizer, TokenizerRecipe("bytes"))}
    made["tokens"] = run_stage(tokens, TokensRecipe(held_out=0.2), made)
    recipe = AssembleRecipe(neighbours=4, least_similarity=0.2, cell_documents=4)
    chains = Chains.load(run_stage(assemble, recipe, made).path("chains.parquet"))
    found = {tuple(chains.document[chains.chain == one].tolist()) for one in np.unique(chains.chain)}

    index = TokenStore.open(made["tokens"].path("tokens")).provenance().to_pylist()
    counts = [word_counts(TEXTS[row["source"]]) for row in index]
    holders = np.bincount(np.concatenate([bucket for bucket, _ in counts]), minlength=BUCKETS)
    vectors = np.stack([vector(*count, holders, len(index), recipe.dimensions) for count in counts])
    cells: dict[tuple[str, str, int], list[int]] = {}
    for number, row in enumerate(index):
        side = [
            n for n, other in enumerate(index) if (other["corpus"], other["split"]) == (row["corpus"], row["split"])
        ]
        leaders = [n for n in side if int(index[n]["sha256"], 16) < 2**256 // recipe.cell_documents]
        leader = max(leaders, key=lambda n: round(float(vectors[n] @ vectors[number]), 5), default=-1)
        cells.setdefault((row["corpus"], row["split"], leader), []).append(number)
    expected = set()
    for members in cells.values():
        for chain in walk(*nearest(vectors[members], recipe.neighbours), recipe.least_similarity):
            expected.add(tuple(members[number] for number, _ in chain))
    assert len(cells) > 12
    assert found == expected


def test_pieces_stay_together_and_the_longest_of_them_counts() -> None:
    sha256 = [hashlib.sha256(name.encode()).hexdigest() for name in "aabcdefgh"]
    lengths = np.array([10, 600, 700, 5, 5, 5, 5, 5, 5])
    for seed in range(20):
        chosen = choose_held_out(pa.chunked_array([sha256]), lengths, TokensRecipe(0.3, seed, buckets=(512,)))
        assert chosen[0] == chosen[1] != chosen[2]


def test_the_needle_tests_own_prompts_are_looked_for() -> None:
    def encode(text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    haystack = encode(" ".join(TEXTS.values()))
    config = NeedleConfig(lengths=(2000,), depths=(0.5,), rounds=8)
    prompts, refused = make_prompts(config, haystack, encode, lambda token: token == ord(" "), seed=0)
    assert not refused
    sought = [text.text.lower() for text in decontaminate.needle_texts()]
    for prompt in prompts:
        said = bytes(prompt.tokens.astype(np.uint8)).decode().lower()
        assert sum(said.count(text) for text in sought) >= 3  # the needle, and twice in the question


def test_a_benchmark_that_is_not_read_whole_is_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": "whole"}\n{"question": "cut')
    with pytest.raises(UserError, match=rf"benchmarks: {broken}#2: broken row"):
        read_benchmarks([str(broken)])
    (tmp_path / "not.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"not\.parquet is no Parquet file"):
        read_benchmarks([str(tmp_path / "not.parquet")])
    with pytest.raises(UserError, match="does not exist"):
        read_benchmarks([str(tmp_path / "missing.jsonl")])


@pytest.mark.parametrize(
    ("recipe", "given", "said"),
    [
        (DeduplicateRecipe, {"threshold": 1.5}, r"threshold=1\.5: a similarity"),
        (DeduplicateRecipe, {"threshold": 0.2, "permutations": 4}, "give more permutations"),
        (DecontaminateRecipe, {"ngram": 5}, "ngram=5, shortest=8: 1 <= shortest <= ngram"),
        (AssembleRecipe, {"neighbours": 0}, "neighbours=0: 1 or more"),
    ],
)
def test_recipes_refuse_what_cannot_be(recipe: Any, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        recipe(**given)


def graph(*words: str) -> dict[str, Stage]:
    configs = Path(__file__).resolve().parents[2] / "configs"
    curriculum = load_curriculum(compose(configs / "curricula", "tiny", words))
    return {stage.name: stage for stage in build(curriculum, load_site(compose(configs / "placements", "local")))}


def test_tokens_heeds_the_stages_that_there_are_and_chains_are_made_where_they_are_asked_for() -> None:
    stages = graph(
        "stages.text-8k.data=text", "stages.text-8k.documents=assembled", "decontaminate.benchmarks=a.jsonl,b/*.parquet"
    )
    assert set(stages["tokens"].inputs) == {"documents", "tokenizer", "deduplicate", "decontaminate"}
    assert stages["decontaminate"].inputs["deduplicate"] is stages["deduplicate"]
    assert stages["pack-text-8k"].inputs["chains"] is stages["assemble"]
    assert "chains" not in stages["pack-text-4k"].inputs
    sought: Any = stages["decontaminate"].recipe
    assert sought.benchmarks == ("a.jsonl", "b/*.parquet")
    stages = graph("deduplicate=null", "decontaminate=null")
    assert set(stages["tokens"].inputs) == {"documents", "tokenizer"}
    assert not {"deduplicate", "decontaminate", "assemble"} & set(stages)
    with pytest.raises(UserError, match=r"curriculum\.deduplicate: threshold=2\.0: a similarity"):
        graph("deduplicate.threshold=2.0")
