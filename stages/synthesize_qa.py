"""Questions and answers about chunks of the documents, written by a model (or by none) and verified against the chunk.

- Chunks are chosen (`questions_plan`), grouped into shards, and each shard is made by a worker and committed to the
  state folder when it is through (`questions_work`, `questions_state`). A later attempt takes what is there.
- A server or worker that dies costs the shards under way. They are tried again a few times; then the attempt fails, and
  the runner goes on as long as attempts bring new shards.
- A budget that is spent ends the asking: what is left stays unasked, and the manifest says how much.
- At the end questions that are near duplicates of another one are dropped, over all shards, and `pairs/` is written:
  a row for each chunk that was asked about (`questions_state.ROWS`), kept or not.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from infra.stage import Result, StageContext, StageFailure
from ringworld.data.files import absolute, join
from ringworld.errors import UserError
from ringworld.strict import from_mapping
from ringworld.synthesis.budget import Limits
from ringworld.synthesis.options import SamplerOptions, Secret, ServerOptions
from ringworld.synthesis.prompts import VERSION, PromptOptions
from ringworld.synthesis.providers import ProviderDown
from ringworld.synthesis.verify import Rules
from stages.corpus import DecisionTables, document_files
from stages.questions_gather import gather
from stages.questions_plan import Choice, Shard, plan, plan_folder, shards
from stages.questions_ray_llm import EngineOptions, answer_by_engine
from stages.questions_state import Done
from stages.questions_work import Job, Keeper, ProviderName, Worker
from stages.shards import committed

CODE_VERSION = 1


@dataclass(frozen=True)
class SynthesizeRecipe:
    """Who writes questions about what.

    model: as the server calls it (openai), a Hugging Face name or folder (ray_llm, checkpoint); empty where none is
    needed (extractive) or where the port `model` gives it (checkpoint). shard_chunks: of a shard. prompt_version: of
    the prompt's text.
    """

    kind: ClassVar[str] = "synthesize-qa"
    provider: ProviderName = "extractive"
    model: str = ""
    choice: Choice = field(default_factory=Choice)
    prompt: PromptOptions = field(default_factory=PromptOptions)
    rules: Rules = field(default_factory=Rules)
    budget: Limits = field(default_factory=Limits)
    shard_chunks: int = 64
    seed: int = 0
    prompt_version: int = VERSION

    def __post_init__(self) -> None:
        if self.shard_chunks < 1:
            raise UserError(f"shard_chunks={self.shard_chunks}: 1 or more, such as 64")
        if self.prompt_version != VERSION:
            raise UserError(f"prompt_version={self.prompt_version}: this code asks by version {VERSION}; leave it out")
        if self.provider in ("openai", "ray_llm") and not self.model:
            raise UserError(f"provider={self.provider} needs a model, by the name that it is known by there")
        if self.provider == "extractive" and self.model:
            raise UserError(f"model={self.model!r}: provider=extractive asks no model; give another provider")


@dataclass(frozen=True)
class SynthesizeOptions:
    """Execution, never identity. workers: processes that answer, each with the placement's resources.

    shard_tries: of a shard in one attempt. retry_seconds: before the second; doubles. openai, checkpoint, ray_llm: of
    the provider of that name.
    """

    workers: int = 1
    shard_tries: int = 3
    retry_seconds: float = 5.0
    openai: ServerOptions = field(default_factory=ServerOptions)
    checkpoint: SamplerOptions = field(default_factory=SamplerOptions)
    ray_llm: EngineOptions = field(default_factory=EngineOptions)

    def __post_init__(self) -> None:
        for name in ("workers", "shard_tries"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: 1 or more")


def run(context: StageContext, recipe: SynthesizeRecipe) -> Result:
    """Ports `documents`, `tokens`, `tokenizer`; `deduplicate` and `decontaminate` where there are such stages; `model`.

    Raises UserError when nothing is asked or nothing is kept, StageFailure when another attempt may bring more.
    """
    options = from_mapping(SynthesizeOptions, dict(context.stage.placement.options), at="placement.options")
    job, key = _job(context, recipe, options), _key(recipe, options)
    asked, chunks = plan(context, recipe.choice, recipe.seed)
    if not len(asked):
        raise UserError(f"no chunk is chosen of {chunks}: raise questions.choice.share, or add documents")
    todo = shards(asked, recipe.shard_chunks)
    through = committed(job.shards)
    _answer(context, recipe, options, job, key, [shard for shard in todo if shard.name not in through], len(todo))
    through = committed(job.shards)
    names = [shard.name for shard in todo if shard.name in through]
    if not names:
        raise UserError(f"budget={recipe.budget}: too little for the first request; raise questions.budget")
    files, figures = gather(job.shards, names, recipe.rules, absolute(context.attempt_dir))
    unasked = len(asked) - figures["asked"]
    values = {
        "provider": recipe.provider,
        "written_by_model": recipe.provider != "extractive",
        "chunk_tokens": recipe.choice.chunk_tokens,
        "chunks": chunks,
        "chosen": len(asked),
        "shards": len(names),
        "unasked": unasked,
        "stopped": "the budget was spent" if unasked else "",
    }
    return Result(files, values | figures)


def _job(context: StageContext, recipe: SynthesizeRecipe, options: SynthesizeOptions) -> Job:
    inputs, state = context.inputs, absolute(context.state_dir)
    model = recipe.model
    if recipe.provider == "checkpoint":
        if ("model" in inputs) == bool(model):
            raise UserError(
                f"provider=checkpoint, model={model!r}: give the stage that trains it or a folder, not both"
            )
        # The stage's folder: its manifest names the attempt and leads to the tokenizer.
        model = absolute(inputs["model"].url.rpartition("/")[0] if "model" in inputs else model)
    if recipe.provider == "openai" and options.workers > 1:
        raise UserError(f"workers={options.workers}: one process keeps a server's rate; raise openai.concurrency")
    documents = inputs["documents"]
    return Job(
        provider=recipe.provider,
        model=model,
        mesh=context.stage.placement.mesh,
        server=options.openai,
        sampler=options.checkpoint,
        prompt=recipe.prompt,
        rules=recipe.rules,
        documents=tuple((name, documents.path(name)) for name in document_files(documents)),
        decided=DecisionTables.of(inputs),
        plan=plan_folder(context),
        shards=join(state, "shards"),
    )


def _key(recipe: SynthesizeRecipe, options: SynthesizeOptions) -> Secret | None:
    """The server's key, from this process's environment."""
    name = options.openai.api_key_env
    if recipe.provider != "openai" or not name:
        return None
    if name not in os.environ:
        raise UserError(f"openai.api_key_env={name}: no such variable where this runs; export {name} first")
    return Secret(os.environ[name], name)


def _answer(
    context: StageContext,
    recipe: SynthesizeRecipe,
    options: SynthesizeOptions,
    job: Job,
    key: Secret | None,
    left: Sequence[Shard],
    of: int,
) -> None:
    """Have what is left made and committed, as far as the budget goes."""
    if not left:
        return
    progress = _Progress(context, of - len(left), of)
    try:
        if recipe.provider == "ray_llm":
            for _, done in answer_by_engine(context, job, options.ray_llm, left, recipe.budget):
                progress.add(done)
        else:
            _answer_by_workers(context, recipe, options, job, key, left, progress)
    except ProviderDown as ended:
        finished = len(committed(job.shards))
        raise StageFailure("crashed", f"{ended}", marker=finished or None) from ended


def _answer_by_workers(
    context: StageContext,
    recipe: SynthesizeRecipe,
    options: SynthesizeOptions,
    job: Job,
    key: Secret | None,
    left: Sequence[Shard],
    progress: _Progress,
) -> None:
    """Raises ProviderDown when a shard, or the start of workers, has failed too often."""
    from actors.pool import GaveUp, Pool, Retries  # with Ray, which a plan of the stages does without

    retries = Retries(options.shard_tries, options.retry_seconds, again=(ProviderDown,))
    # While the last requests of a shard are under way, those of the next begin.
    at_once = 1 + math.ceil(job.server.concurrency / recipe.shard_chunks) if job.provider == "openai" else 1
    place = context.stage.placement
    with (
        _keeping(recipe.budget, join(absolute(context.state_dir), "budget.json")) as keeper,
        Pool(Worker, (job, key, keeper), place, workers=options.workers, at_once=at_once, retries=retries) as pool,
    ):

        def lost(shard: Shard) -> None:
            if keeper is not None:
                keeper.lost.remote(shard.number)

        try:
            for _, done in pool.run("answer", left, context.stop, lost=lost, note=progress.waiting):
                progress.add(done)
                if done.unasked:  # the budget is spent: what is under way may end, nothing more begins
                    pool.begin_no_more()
        except GaveUp as ended:
            raise ProviderDown(f"{ended}") from ended


class _Progress:
    """Live figures of the shards that are through."""

    def __init__(self, context: StageContext, before: int, of: int) -> None:
        self._context, self._done, self._of = context, before, of
        self._began, self._requests, self._asked, self._kept = time.monotonic(), 0, 0, 0

    def add(self, done: Done) -> None:
        self._done += bool(done.asked)
        self._requests += done.requests
        self._asked += done.asked
        self._kept += done.kept
        rate = self._requests / max(1e-9, time.monotonic() - self._began)
        self._report(f"{self._kept} of {self._asked} pairs kept, {rate:.1f} requests/s")

    def waiting(self, text: str) -> None:
        """Nobody answers yet; that time is no part of the rate."""
        self._began = time.monotonic()
        self._report(text)

    def _report(self, text: str) -> None:
        self._context.report(step=self._done, of=self._of, note=text)


@contextlib.contextmanager
def _keeping(limits: Limits, place: str) -> Iterator[Any]:
    """The actor that keeps the budget; None without limits."""
    import ray

    if not limits.any:
        yield None
        return
    keeper: Any = ray.remote(Keeper).options(num_cpus=0).remote(limits, place)
    try:
        yield keeper
    finally:
        ray.get(keeper.close.remote())
        ray.kill(keeper)
