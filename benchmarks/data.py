"""Curation against datatrove 0.10.1: clean, exact and near deduplication, tokens, on one machine in one run.

    python benchmarks/data.py [--books FOLDER] [--megabytes 20 | --gigabytes 1] [--peer-megabytes 20] [--no-peer]
                              [--scratch FOLDER] [--json FILE]

The text is made of the books of a folder and of the installed packages (benchmarks/data_corpus.py), the tokenizer is
a SentencePiece model of 32,000 pieces trained on it. Measured, each in processes of their own:

1. both sides with one worker on the same text (--peer-megabytes), in turn: MB of raw text a second and core. By the
   clock, and by the seconds of processors that all processes used together, which other programs disturb less.
2. ours with one and with two workers on all of it: how much faster two are (goal 1.7).
3. the most memory that a worker of ours held on a tenth of the text and on all of it (goal 1.5 GB, and the same).

20 MB take some three minutes on two cores, most of it the peer's. Run it with nothing else running.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Run as a file, Python looks for imports beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import data_corpus, environment
from benchmarks.worker import Worker

OURS, PEER = "benchmarks.data_ours", "benchmarks.data_peer"
PEER_PACKAGES = (
    "datatrove[io,processing]==0.10.1", "spacy==3.8.18", "py3langid==0.4.0", "psutil==7.2.2",
)  # fmt: skip
STEPS = ("clean", "deduplicate", "tokenise")
VOCABULARY = 32_000
_SAMPLE_BYTES = 10_000_000  # of text that the tokenizer is trained on
_GOAL_WORKERS, _GOAL_BYTES = 1.7, 1.5e9


def main() -> None:
    """Measure, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", metavar="FOLDER", help="texts that the corpus is made of, besides the packages")
    parser.add_argument("--megabytes", type=float, default=20.0)
    parser.add_argument("--gigabytes", type=float, help="instead of --megabytes")
    parser.add_argument("--peer-megabytes", type=float, default=20.0, help="of text that both sides are measured on")
    parser.add_argument("--no-peer", action="store_true", help="our side alone")
    parser.add_argument("--scratch", metavar="FOLDER", help="where the text and the results go; some 4 times its size")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    size = round(options.gigabytes * 1e9 if options.gigabytes else options.megabytes * 1e6)
    machine = {"system": platform.platform(), "cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
    if machine["load_before"] > 0.3:
        print(f"warning: the load is {machine['load_before']:.1f}; other programs disturb the figures", file=sys.stderr)
    peer = None
    if not options.no_peer:
        try:
            peer = environment.python_with("datatrove", PEER_PACKAGES)
        except environment.Unavailable as error:
            raise SystemExit(f"the peer cannot be installed; --no-peer measures our side alone\n{error}") from error
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        bench = Benchmark(Path(scratch), options.books, peer)
        results = {"machine": machine, **bench.run(size, round(min(size, options.peer_megabytes * 1e6)))}
    print(table(results))
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


class Benchmark:
    """The texts, the tokenizer and the runs, all in one folder. peer: its interpreter, None to leave it out."""

    def __init__(self, scratch: Path, books: str | None, peer: Path | None) -> None:
        self._scratch, self._peer = scratch, peer
        self._texts = data_corpus.texts_of(books)
        self._runs = 0

    def run(self, size: int, peer_size: int) -> dict[str, Any]:
        """Everything, as the JSON file has it. size: bytes of text, peer_size: of it for both sides."""
        self._write("warm-up", 300_000)
        sizes = {"peer": self._write("peer", peer_size), "tenth": self._write("tenth", size // 10)}
        sizes["all"] = self._write("all", size)
        train_tokenizer(self._scratch / "all", self._scratch)
        results: dict[str, Any] = {"bytes": sizes, "both": {"ours": self._ours("peer", 1)}}
        if self._peer is not None:
            results["both"]["peer"] = self._ask(self._peer, PEER, "peer", 1)
        results["tenth"] = self._ours("tenth", 1)
        results["workers"] = {"1": self._ours("all", 1), "2": self._ours("all", 2)}
        return results

    def _write(self, name: str, size: int) -> int:
        _say(f"writing {size / 1e6:.1f} MB of text")
        return data_corpus.write(self._scratch / name, size, self._texts)

    def _ours(self, text: str, workers: int) -> dict[str, Any]:
        return self._ask(Path(sys.executable), OURS, text, workers)

    def _ask(self, python: Path, module: str, text: str, workers: int) -> dict[str, Any]:
        _say(f"{module} on {text!r}, {workers} workers")
        self._runs += 1
        request = {
            "do": "curate",
            "input": str(self._scratch / text),
            "warm_up": str(self._scratch / "warm-up"),
            "output": str(self._scratch / f"run-{self._runs}"),
            "model": str(self._scratch / "tokenizer.model"),
            "tokenizer": str(self._scratch / "tokenizer.json"),
            "workers": workers,
        }
        with Worker(python, module, 1) as worker:
            return worker.ask(request)


def train_tokenizer(text: Path, folder: Path, vocabulary: int = VOCABULARY) -> None:
    """A unigram model of SentencePiece, as `tokenizer.model` and, for the peer's library, as `tokenizer.json`."""
    import sentencepiece
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    lines = (line for line in _sample(text) if line.strip())
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_prefix=str(folder / "tokenizer"), vocab_size=vocabulary, model_type="unigram",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False,
        num_threads=2, minloglevel=2,
    )  # fmt: skip
    trained: Any = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    pieces = [(trained.id_to_piece(number), trained.get_score(number)) for number in range(trained.vocab_size())]
    same = Tokenizer(models.Unigram(pieces, unk_id=trained.unk_id(), byte_fallback=True))
    same.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)  # pyright: ignore[reportAttributeAccessIssue]
    same.decoder = decoders.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    same.save(str(folder / "tokenizer.json"))


def _sample(text: Path) -> list[str]:
    lines: list[str] = []
    taken = 0
    for file in sorted(text.glob("*.jsonl")):
        for row in file.open(encoding="utf-8"):
            document = json.loads(row)["text"]
            lines += document.split("\n")
            taken += len(document)
            if taken > _SAMPLE_BYTES:
                return lines
    return lines


def table(results: Mapping[str, Any]) -> str:
    """What a run found, to be read."""
    sizes, both, workers = results["bytes"], results["both"], results["workers"]
    lines = [f"One worker, the same {sizes['peer'] / 1e6:.0f} MB on both sides: MB of raw text a second"]
    lines.append(f"{'':>12} {'ringworld':>10} {'datatrove':>10} {'ratio':>6}   {'by processor time':>17} {'ratio':>6}")
    for step in (*STEPS, "all"):
        lines.append(f"{step:>12} {_sides(both, sizes['peer'], step)}")
    for side, found in both.items():
        lines.append(
            f"{side}: {found['cleaned']} documents clean, {found['unique']} without exact copies, {found['documents']} "
            f"without near ones, {found['tokens']} tokens; the largest process held {found['peak_bytes'] / 1e9:.2f} GB"
        )
    one, two = (_seconds(workers[count], "all", "seconds") for count in ("1", "2"))
    lines += [
        "",
        f"ringworld on {sizes['all'] / 1e6:.0f} MB",
        f"one worker {sizes['all'] / 1e6 / one:.2f} MB/s, two {sizes['all'] / 1e6 / two:.2f} MB/s: "
        f"{one / two:.2f} x (goal {_GOAL_WORKERS})",
        *(f"{step:>12}: {_faster(workers, step):.2f} x" for step in STEPS),
        "",
        f"Most memory of a worker, GB (goal {_GOAL_BYTES / 1e9:.1f})",
        f"{sizes['tenth'] / 1e6:>9.1f} MB, 1 worker: {results['tenth']['peak_bytes'] / 1e9:.2f}",
        *(f"{sizes['all'] / 1e6:>9.1f} MB, {n} worker: {run['peak_bytes'] / 1e9:.2f}" for n, run in workers.items()),
    ]
    return "\n".join(lines)


def _sides(both: Mapping[str, Any], size: int, step: str) -> str:
    rates = {
        (side, kind): size / 1e6 / _seconds(found, step, kind)
        for side, found in both.items()
        for kind in ("seconds", "cpu_seconds")
    }
    said = f"{rates['ours', 'seconds']:>10.2f}"
    if "peer" not in both:
        return f"{said} {'-':>10} {'-':>6}   {rates['ours', 'cpu_seconds']:>8.2f}"
    ratios = [rates["ours", kind] / rates["peer", kind] for kind in ("seconds", "cpu_seconds")]
    return (
        f"{said} {rates['peer', 'seconds']:>10.2f} {ratios[0]:>6.1f}   {rates['ours', 'cpu_seconds']:>8.2f} "
        f"{rates['peer', 'cpu_seconds']:>8.2f} {ratios[1]:>6.1f}"
    )


def _faster(workers: Mapping[str, Any], step: str) -> float:
    return _seconds(workers["1"], step, "seconds") / _seconds(workers["2"], step, "seconds")


def _seconds(found: Mapping[str, Any], step: str, kind: str) -> float:
    return sum(spent[kind] for name, spent in found["stages"].items() if step in (name, "all"))


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
