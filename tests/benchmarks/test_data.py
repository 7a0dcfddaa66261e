"""The benchmark of curation measures what it says: its text, its two tokenizers, its costs, our side of it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import data_corpus
from benchmarks.data import OURS, STEPS, table, train_tokenizer
from benchmarks.watch import Watch
from benchmarks.worker import Worker
from tests.ringworld.data.test_quality import prose

BOOKS = [data_corpus.Text(np.array(prose(seed, 20_000).replace(" ", "\t \t").split("\t"), object)) for seed in range(2)]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts and a tokenizer that is trained on them."""
    folder = tmp_path_factory.mktemp("scratch")
    data_corpus.write(folder / "text", 300_000, (BOOKS, BOOKS))
    data_corpus.write(folder / "warm-up", 50_000, (BOOKS, BOOKS), seed=1)
    train_tokenizer(folder / "text", folder, vocabulary=600)
    return folder


def test_the_text_is_the_same_every_time_and_has_copies() -> None:
    made, again = (list(itertools.islice(data_corpus.documents(BOOKS, BOOKS, 0), 600)) for _ in range(2))
    assert made == again
    copies = 1 - len(set(made)) / len(made)
    assert 0.2 * data_corpus.COPIES < copies < 3 * data_corpus.COPIES
    words = [len(text.split()) for text in made]
    assert min(words) >= 100 * 0.9
    assert max(words) > 10_000


def test_a_corpus_has_the_size_that_was_asked_for(scratch: Path) -> None:
    rows = [json.loads(line) for file in (scratch / "text").iterdir() for line in file.open()]
    total = sum(len(row["text"].encode()) for row in rows)
    assert 300_000 <= total < 300_000 + 2_000_000


def test_both_sides_have_the_same_tokenizer(scratch: Path) -> None:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

    ours, theirs = SentencePieceProcessor(), Tokenizer.from_file(str(scratch / "tokenizer.json"))
    ours.load(str(scratch / "tokenizer.model"))
    text = prose(3, 500).replace("\n", " ") + " caf\u00e9 \u4e00"
    assert theirs.encode(text).ids == ours.encode(text)


def test_a_watch_counts_what_processes_below_it_cost() -> None:
    hold = "watched = 1; a = b'x' * 150_000_000\nwhile time.process_time() - began < 0.6: pass\ntime.sleep(0.5)"
    with Watch("watched = 1") as watch:
        subprocess.run([sys.executable, "-c", f"import time; began = time.process_time(); {hold}"], check=True)
        time.sleep(0.1)
    assert 0.5 < watch.cost.cpu_seconds < 3
    assert 150e6 < watch.cost.peak_bytes < 300e6
    assert watch.cost.seconds > 1


def test_our_side_curates_the_text_and_the_table_tells_it(scratch: Path) -> None:
    request = {"input": "text", "warm_up": "warm-up", "model": "tokenizer.model", "output": "run-1"}
    places = {name: str(scratch / place) for name, place in request.items()}
    with Worker(Path(sys.executable), OURS, 1) as worker:
        found = worker.ask({"do": "curate", "workers": 1, **places})
    rows = sum(line.count("\n") for file in (scratch / "text").iterdir() for line in file.open())
    assert 0 < found["documents"] <= found["unique"] <= found["cleaned"] <= rows
    assert found["tokens"] > 10_000
    assert set(found["stages"]) == set(STEPS)
    assert all(spent["cpu_seconds"] > 0 for spent in found["stages"].values())
    assert 1e8 < found["peak_bytes"] < 1.5e9
    results = {
        "bytes": {"peer": 10**6, "tenth": 10**5, "all": 10**6},
        "both": {"ours": found, "peer": found},
        "tenth": found,
        "workers": {"1": found, "2": found},
    }
    text = table(results)
    assert "1.00 x (goal 1.7)" in text
    [line] = [line for line in text.splitlines() if line.strip().startswith("all")]
    assert line.split()[3] == line.split()[6] == "1.0"
    assert "-" in table({**results, "both": {"ours": found}})
