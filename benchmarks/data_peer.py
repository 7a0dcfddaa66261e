# pyright: reportMissingImports=false
"""The peer's side of benchmarks/data.py: datatrove's pipeline, in its own environment.

Its own steps in the order and with the settings that its authors published for FineWeb, where our `prose` has them too:
ftfy, language, Gopher's repetition and quality, masks for e-mail and IP addresses, exact and MinHash deduplication
(5-grams, 14 buckets of 8 hashes), tokens. Bounds that our `prose` leaves out are left out, and the language is asked
of the same library in the same places, since the peer's own model must be downloaded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.watch import Watch
from benchmarks.worker import serve


def curate(request: dict[str, Any]) -> dict[str, Any]:
    """Clean, deduplicate and tokenise the files of request["input"] into request["output"]; what it cost."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        ExactDedupConfig,
        ExactDedupFilter,
        ExactDedupSignature,
        ExactFindDedups,
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter, LambdaFilter
    from datatrove.pipeline.formatters import FTFYFormatter, PIIFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from datatrove.pipeline.writers import JsonlWriter

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    out, ends = Path(request["output"]), []
    exact, near = ExactDedupConfig(lambda document: document.text), MinhashConfig()

    def clean_steps(source: str, place: Path) -> list[Any]:
        return [
            JsonlReader(source),
            FTFYFormatter(),
            LambdaFilter(_in_a_language),
            GopherRepetitionFilter(dup_line_frac=None),
            GopherQualityFilter(max_doc_words=None),
            PIIFormatter(),
            JsonlWriter(str(place / "clean"), compression=None),
            ExactDedupSignature(str(place / "exact"), exact),
        ]

    def run(steps: list[Any], tasks: int = 1) -> None:
        logs = str(out / "logs" / str(len(ends)))
        LocalPipelineExecutor(steps, tasks=tasks, workers=1, logging_dir=logs, skip_completed=False).run()
        ends.append(len(ends))

    run(clean_steps(request["warm_up"], out / "warm-up"))
    with Watch() as cleaning:
        run(clean_steps(request["input"], out))
    with Watch() as removing:
        run([ExactFindDedups(str(out / "exact"), str(out / "duplicates"), exact)])
        run(
            [
                JsonlReader(str(out / "clean")),
                ExactDedupFilter(str(out / "duplicates"), exact),
                JsonlWriter(str(out / "unique"), compression=None),
                MinhashDedupSignature(str(out / "signatures"), near),
            ]
        )
        run([MinhashDedupBuckets(str(out / "signatures"), str(out / "buckets"), config=near)], near.num_buckets)
        run([MinhashDedupCluster(str(out / "buckets"), str(out / "remove"), config=near)])
    with Watch() as tokenising:
        run(
            [
                JsonlReader(str(out / "unique")),
                MinhashDedupFilter(str(out / "remove")),
                DocumentTokenizer(
                    str(out / "tokens"), request["tokenizer"], eos_token="</s>", batch_size=100,
                    shuffle_documents=False,
                ),
            ]
        )  # fmt: skip
    watched = {"clean": cleaning, "deduplicate": removing, "tokenise": tokenising}
    return {
        "stages": {name: {"seconds": w.cost.seconds, "cpu_seconds": w.cost.cpu_seconds} for name, w in watched.items()},
        "peak_bytes": max(w.cost.peak_bytes for w in watched.values()),
        "cleaned": _lines(out / "clean"),
        "unique": _lines(out / "unique"),
        "documents": sum(path.stat().st_size // 8 for path in (out / "tokens").glob("*.index")),
        "tokens": sum(path.stat().st_size // 2 for path in (out / "tokens").glob("*.ds")),
    }


def _in_a_language(document: Any) -> bool:
    """Writes down the document's language, and keeps all."""
    from ringworld.data.language import identify

    document.metadata["language"], document.metadata["language_score"] = identify(document.text)
    return True


def _lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl"))


if __name__ == "__main__":
    serve({"curate": curate})
