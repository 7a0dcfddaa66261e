"""Questions by `ray.data.llm`: vLLM engines on the cluster's GPUs, for a corpus too large for one server.

One pass of Ray Data over all shards, so that engines start once: chunks are read and asked about in its tasks, the
replies come back as rows in any order, and a shard is verified and committed by a task as soon as its last reply is
there. What passes through this process are replies, never texts. Needs the `llm` extra.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from infra.stage import StageContext, StageFailure
from ringworld.errors import UserError
from ringworld.synthesis.budget import Limits
from ringworld.synthesis.prompts import ask
from ringworld.synthesis.providers import REFUSED, Meter, ProviderDown
from ringworld.synthesis.records import Reply
from stages.questions_plan import Shard
from stages.questions_state import Done
from stages.questions_work import Job, chunks_of, finish

_ERROR = "__inference_error__"


@dataclass(frozen=True)
class EngineOptions:
    """engines: of vLLM, each on tensor_parallel GPUs. max_model_len: tokens of prompt and reply together.

    batch_size: requests that are handed to an engine together. accelerator: Ray's name of a GPU, such as H100; empty:
    any.
    """

    engines: int = 1
    tensor_parallel: int = 1
    max_model_len: int = 4096
    batch_size: int = 64
    accelerator: str = ""

    def __post_init__(self) -> None:
        for name in ("engines", "tensor_parallel", "max_model_len", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: 1 or more")


def answer_by_engine(
    context: StageContext, job: Job, options: EngineOptions, left: Sequence[Shard], budget: Limits
) -> Iterator[tuple[Shard, Done]]:
    """Every shard as it is committed. UserError without vLLM, or with a budget; ProviderDown when engines end."""
    if budget.any:
        raise UserError("budget: engines of one's own are not metered; choose less by choice.documents or choice.share")
    if importlib.util.find_spec("vllm") is None:
        raise UserError("provider=ray_llm needs vLLM, which is not installed: pip install 'ringworld[llm]', on a GPU")
    return answer_through(context, job, left, engine(job, options))


def engine(job: Job, options: EngineOptions) -> Any:
    """Ray's processor: rows of `_asked` to rows of `_answered`."""
    from ray.data.llm import build_processor

    return build_processor(engine_config(job.model, options), preprocess=_asked, postprocess=_answered)


def engine_config(model: str, options: EngineOptions) -> Any:
    from ray.data.llm import vLLMEngineProcessorConfig

    return vLLMEngineProcessorConfig(
        model_source=model,
        engine_kwargs={"tensor_parallel_size": options.tensor_parallel, "max_model_len": options.max_model_len},
        concurrency=options.engines,
        batch_size=options.batch_size,
        accelerator_type=options.accelerator or None,
        # One prompt that does not fit must not end the pass.
        should_continue_on_error=True,
    )


def _asked(row: dict[str, Any]) -> dict[str, Any]:
    sampling = {name: row[name] for name in ("max_tokens", "temperature", "seed")}
    return {"messages": row["messages"], "sampling_params": {**sampling, "detokenize": False}}


def _answered(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "shard": row["shard"],
        "index": row["index"],
        "text": row["generated_text"],
        "prompt_tokens": row["num_input_tokens"],
        "tokens": row["num_generated_tokens"],
        "finish": "length" if row["num_generated_tokens"] >= row["max_tokens"] else "stop",
    }


def answer_through(
    context: StageContext, job: Job, left: Sequence[Shard], processor: Any
) -> Iterator[tuple[Shard, Done]]:
    """Have a processor of `ray.data.llm` answer the rows of `_ask_block`, and commit each shard."""
    import ray
    import ray.data
    from ray.exceptions import RayError

    ray.data.DataContext.get_current().enable_progress_bars = False
    ask_block: Any = _ask_block
    blocks = [shard.rows.append_column("shard", pa.array([at] * len(shard.rows))) for at, shard in enumerate(left)]
    asked = ray.data.from_arrow(blocks).map_batches(
        ask_block, batch_size=None, batch_format="pyarrow", fn_kwargs={"job": job}
    )
    make = ray.remote(_finish)
    found: dict[int, dict[int, Reply]] = {at: {} for at in range(len(left))}
    making: dict[Any, Shard] = {}
    try:
        for row in processor(asked).map(_reply_row, fn_kwargs={"model": job.model}).iter_rows():
            if context.stop.is_set():
                raise StageFailure("preempted", "asked to stop")
            at, index = row.pop("shard"), row.pop("index")
            found[at][index] = Reply(**row)
            if len(found[at]) == len(left[at].rows):
                making[make.remote(job, left[at], found.pop(at))] = left[at]
            ready, _ = ray.wait(list(making), timeout=0) if making else ([], [])
            for ref in ready:
                done: Any = ray.get(ref)
                yield making.pop(ref), done
        for ref, shard in making.items():
            done = ray.get(ref)
            yield shard, done
    except RayError as ended:
        raise ProviderDown(f"the engines ended: {ended}") from ended


def _ask_block(block: pa.Table, job: Job) -> pa.Table:
    """The requests of a shard, a row each. Runs in a Ray task."""
    shard = Shard(0, block.drop_columns(["shard"]))
    asks = [ask(chunk, 0, job.prompt) for chunk, _ in chunks_of(job, shard)]
    rows = [
        {
            "shard": block["shard"][0].as_py(),
            "index": index,
            "messages": [{"role": turn.role, "content": turn.text} for turn in asked.turns],
            "max_tokens": asked.max_tokens,
            "temperature": asked.temperature,
            "seed": asked.seed,
        }
        for index, asked in enumerate(asks)
    ]
    return pa.Table.from_pylist(rows)


def _reply_row(row: dict[str, Any], model: str) -> dict[str, Any]:
    """The fields of a Reply with the place that it belongs to; rows that failed have other columns."""
    place = {"shard": row["shard"], "index": row["index"], "model": model}
    if row.get(_ERROR):
        counts = {"prompt_tokens": 0, "tokens": 0}
        return place | counts | {"text": str(row[_ERROR]), "finish": "error", "error": REFUSED}
    names = ("text", "finish", "prompt_tokens", "tokens")
    return place | {name: row[name] for name in names} | {"error": ""}


def _finish(job: Job, shard: Shard, replies: dict[int, Reply]) -> Done:
    """Runs in a Ray task."""
    read = list(chunks_of(job, shard))
    asks = [ask(chunk, 0, job.prompt) for chunk, _ in read]
    meter = Meter()
    meter.requests = len(replies)
    for reply in replies.values():
        if reply.finish == "error":
            meter.failed(reply.error, 0)
    return finish(job, shard, read, asks, replies, meter, 0.0)
