"""Our side of benchmarks/data.py: the stages as a curriculum runs them, on a Ray of this machine.

`documents` reads, cleans and removes exact copies, `deduplicate` finds near ones, `tokens` leaves them out and
tokenises. Nothing is left out of what they cost: the processes of Ray are counted too.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.watch import Watch
from benchmarks.worker import serve
from infra.manifest import FileEntry, Manifest, Provenance
from infra.placement import Placement
from infra.stage import Artifact, Recipe, Stage, StageContext
from ringworld.data.clean import PRESETS
from ringworld.data.sources import KINDS
from stages import deduplicate, documents, tokenizer, tokens
from stages.deduplicate import DeduplicateRecipe
from stages.documents import DocumentsRecipe
from stages.tokenizer import TokenizerRecipe
from stages.tokens import TokensRecipe


def curate(request: dict[str, Any]) -> dict[str, Any]:
    """Clean, deduplicate and tokenise the files of request["input"] into request["output"]; what it cost."""
    import ray

    out = Path(request["output"])
    ray.init(
        "local", num_cpus=request["workers"], include_dashboard=False, log_to_driver=False,
        object_store_memory=1 << 28,
    )  # fmt: skip
    try:
        model = _run(out, tokenizer, TokenizerRecipe("sentencepiece", path=request["model"]), {})
        _curate(request["warm_up"], out / "warm-up", model)
        watched, made = _curate(request["input"], out, model)
    finally:
        ray.shutdown()
    seen, near, stored = made
    copies = seen.values["reasons"].get(documents.DUPLICATE, 0)
    return {
        "stages": {name: {"seconds": w.cost.seconds, "cpu_seconds": w.cost.cpu_seconds} for name, w in watched.items()},
        "peak_bytes": max(w.cost.peak_bytes for w in watched.values()),
        "cleaned": seen.values["documents"] + copies,
        "unique": seen.values["documents"],
        "documents": stored.values["documents"],
        "tokens": stored.values["tokens"],
        "reasons": {**seen.values["reasons"], **near.values["reasons"]},
    }


def _curate(source: str, out: Path, model: Artifact) -> tuple[dict[str, Watch], tuple[Artifact, Artifact, Artifact]]:
    read = DocumentsRecipe((source,), cleaning={kind: PRESETS[kind] for kind in KINDS})
    watched = {name: Watch("ray::") for name in ("clean", "deduplicate", "tokenise")}
    with watched["clean"]:
        seen = _run(out, documents, read, {})
    with watched["deduplicate"]:
        near = _run(out, deduplicate, DeduplicateRecipe(repeat_words=0), {"documents": seen})
    ports = {"documents": seen, "tokenizer": model, "deduplicate": near}
    with watched["tokenise"]:
        stored = _run(out, tokens, TokensRecipe(), ports)
    return watched, (seen, near, stored)


def _run(out: Path, module: Any, recipe: Recipe, inputs: Mapping[str, Artifact]) -> Artifact:
    """A stage in an attempt folder of its own, without a runner."""
    folder = out / recipe.kind
    folder.mkdir(parents=True)
    stage = Stage(recipe.kind, recipe, module.run, {}, Placement())
    context = StageContext(
        stage, inputs, 1, str(folder), str(folder / "state"), None, lambda **_: None, threading.Event(), lambda: None
    )
    result = module.run(context, recipe)
    files = tuple(FileEntry(path, (folder / path).stat().st_size) for path in result.files)
    origin = Provenance(None, {}, "", "", "", 0.0, 1)
    manifest = Manifest(stage.name, recipe.kind, 1, stage.fingerprint, {}, {}, files, result.values, 1, 1, origin)
    return Artifact(manifest, str(folder))


if __name__ == "__main__":
    serve({"curate": curate})
