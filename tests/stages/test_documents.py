"""The documents stage on a local Ray: domains, cleaning and its figures, and a worker killed in the middle."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra.config import compose
from infra.stage import Artifact
from ringworld.data.clean import PRESETS
from ringworld.data.files import read_table
from ringworld.data.sources import KINDS
from ringworld.data.token_store import TokenStore
from ringworld.errors import UserError
from stages import documents, tokenizer, tokens
from stages.curriculum import load_curriculum
from stages.documents import DocumentsRecipe
from stages.graph import build
from stages.site import load_site
from stages.tokenizer import TokenizerRecipe
from stages.tokens import TokensRecipe
from tests.ringworld.data.test_quality import prose
from tests.stages.killing import one_worker_killed

pytestmark = pytest.mark.usefixtures("cluster")

CLEANING = {kind: PRESETS[kind] for kind in KINDS}


def rows_of(made: Artifact) -> list[dict[str, Any]]:
    parts = [read_table(made.path(name)) for name in made.files if name.startswith("documents/")]
    return pa.concat_tables(parts).to_pylist()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Books, one of them poor; code; rows of the web that carry licences."""
    for name in ("books", "code", "web"):
        (tmp_path / name).mkdir()
    header = "*** START OF THE PROJECT GUTENBERG EBOOK X ***\n\n"
    (tmp_path / "books" / "a.txt").write_text(header + prose(1, 900) + "\nWrite to ahab@pequod.com, (212) 555-0123.")
    (tmp_path / "books" / "b.txt").write_text("the same again and that is it. " * 300)
    (tmp_path / "code" / "c.py").write_text("# SPDX-License-Identifier: MIT\n\n" + "def f(x):\n    return [x]\n" * 20)
    rows = [{"text": prose(2, 500), "license": "CC-BY-4.0"}, {"text": prose(3, 500) + " { }."}, {"text": prose(1, 10)}]
    (tmp_path / "web" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_domains_are_cleaned_as_they_are_told_and_counted_apart(corpus: Path, run_stage: Any) -> None:
    recipe = DocumentsRecipe(
        sources=(f"{corpus}/books",),
        domains={"code": (f"{corpus}/code",), "web": (f"{corpus}/web",)},
        cleaning=CLEANING,
        minimum_bytes=8,
    )
    made = run_stage(documents, recipe)
    rows = {Path(row["source"]).name: row for row in rows_of(made)}
    assert {name: (row["domain"], row["license"], row["language"]) for name, row in rows.items()} == {
        "a.txt": ("text", "Project Gutenberg License", rows["a.txt"]["language"]),
        "c.py": ("code", "MIT", None),
        "rows.jsonl#1": ("web", "CC-BY-4.0", rows["rows.jsonl#1"]["language"]),
    }
    assert rows["a.txt"]["text"].endswith("Write to <email>, <phone>.")
    assert "SPDX" not in rows["c.py"]["text"]
    ledger = {Path(row["source"]).name: row for row in read_table(made.path("ledger.parquet")).to_pylist()}
    reasons = {name: row["reason"] for name, row in ledger.items() if not row["kept"]}
    assert reasons == {
        "b.txt": "gopher: most frequent 2-gram",
        "rows.jsonl#2": "c4: curly bracket",
        "rows.jsonl#3": "gopher: number of words",
    }
    assert ledger["b.txt"]["detail"].endswith("at most 0.2")
    assert (ledger["a.txt"]["email"], ledger["a.txt"]["phone"], ledger["c.py"]["phone"]) == (1, 1, None)

    values = made.values
    assert values["domains"] == {
        row["domain"]: {"documents": 1, "bytes": len(row["text"].encode())} for row in rows.values()
    }
    assert values["reasons"] == dict(sorted(Counter(reasons.values()).items()))
    assert values["masked"] == {"key": 0, "email": 1, "ip": 0, "phone": 1}
    assert sum(values["languages"].values()) == 2
    by_hash = sorted(rows.values(), key=lambda row: row["sha256"])
    assert values["samples"] == [
        {"source": row["source"], "domain": row["domain"], "text": row["text"][:300]} for row in by_hash
    ]

    words = run_stage(tokenizer, TokenizerRecipe("bytes"), {"documents": made})
    stored = run_stage(tokens, TokensRecipe(), {"documents": made, "tokenizer": words})
    index = TokenStore.open(stored.path("tokens")).provenance()
    assert sorted(index["corpus"].to_pylist()) == ["code", "text", "web"]


def test_a_domain_without_a_usable_document_is_an_error_that_names_it(corpus: Path, run_stage: Any) -> None:
    (corpus / "books" / "a.txt").unlink()
    recipe = DocumentsRecipe((f"{corpus}/code",), {"books": (f"{corpus}/books",)}, CLEANING)
    with pytest.raises(UserError, match=r"of the domain 'books': no usable document among 1 \(1 gopher: most"):
        run_stage(documents, recipe)
    (corpus / "none").mkdir()
    with pytest.raises(UserError, match=r"domain 'none': sources: the folder .* holds no files"):
        run_stage(documents, DocumentsRecipe((f"{corpus}/code",), {"none": (f"{corpus}/none",)}))


def test_names_that_are_no_domain_are_refused() -> None:
    for recipe, said in (
        ({"domains": {"text": ("x",)}}, r"domains\.text: no name for a domain; it is the name of sources\.text"),
        ({"domains": {"a b": ("x",)}}, r"domains\.a b: .* use letters"),
        ({"cleaning": {"book": PRESETS["prose"]}}, r"cleaning\.book: neither a domain .* text, prose, web, code"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            DocumentsRecipe(**recipe)  # type: ignore[arg-type]


def documents_of(*words: str) -> DocumentsRecipe:
    configs = Path(__file__).resolve().parents[2] / "configs"
    site = load_site(compose(configs / "placements", "local"))
    stages = build(load_curriculum(compose(configs / "curricula", "tiny", words)), site)
    [found] = [stage.recipe for stage in stages if isinstance(stage.recipe, DocumentsRecipe)]
    return found


def test_a_curriculum_names_domains_and_cleaning_in_words() -> None:
    assert documents_of().by_domain == {"text": ("installed",)}
    assert dict(documents_of().cleaning) == CLEANING
    books = ("sources.domains.books=a/*.txt,b", "sources.cleaning.books={preset: prose, languages: [en]}")
    made = documents_of(*books, "sources.cleaning.code=none", "sources.text=[]")
    assert made.by_domain == {"books": ("a/*.txt", "b")}
    assert made.cleaning_of("books", "code").languages == ("en",)
    assert made.cleaning_of("other", "web") == PRESETS["web"]
    assert made.cleaning_of("other", "code") == PRESETS["none"]
    with pytest.raises(UserError, match=r"curriculum\.sources\.cleaning\.web\.preset='pages': allowed: prose, web"):
        documents_of("sources.cleaning.web=pages")
    with pytest.raises(UserError, match=r"cleaning\.book: neither a domain nor a kind of text"):
        documents_of("sources.cleaning.book=prose")


def test_a_worker_killed_in_the_middle_costs_no_row_and_doubles_none(tmp_path: Path, run_stage: Any) -> None:
    files, rows, text = 5, 240, prose(0, 60_000)
    for number in range(files):
        begins = (37 * (number * rows + row) for row in range(rows))
        lines = (json.dumps({"text": text[begin : begin + 9000]}) for begin in begins)
        (tmp_path / f"{number}.jsonl").write_text("\n".join(lines))  # each a block of its own
    with one_worker_killed("_read_block", lambda: any((tmp_path / "runs").rglob("part-*.parquet"))):
        made = run_stage(documents, DocumentsRecipe((f"{tmp_path}/*.jsonl",), cleaning=CLEANING))
    expected = {f"{tmp_path}/{number}.jsonl#{row}" for number in range(files) for row in range(1, rows + 1)}
    found = [row["source"] for row in rows_of(made)]
    assert len(found) == len(set(found)) == files * rows
    assert set(found) == expected
    ledger = read_table(made.path("ledger.parquet"))
    assert sorted(ledger["source"].to_pylist()) == sorted(expected)
    assert made.values["documents"] == made.values["seen"] == files * rows
    listed = {os.path.basename(name) for name in made.files if name.startswith("documents/")}
    assert {path.name for path in (tmp_path / "runs").rglob("part-*.parquet")} == listed
