"""Making one shard of questions: chunks read and asked about, replies parsed and verified, and all of it committed.

This is what a worker of the pool does, in a process of its own. Texts stay there: what comes back is `Done`. A worker
holds a provider, and with it a model or a server's key. The budget, where there is one, is held by a `Keeper` in a
process of its own, as all workers share it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ringworld.data.files import open_to_read, read_if_there, write_whole
from ringworld.synthesis.budget import Budget, Limits
from ringworld.synthesis.options import SamplerOptions, Secret, ServerOptions
from ringworld.synthesis.prompts import PromptOptions, ask
from ringworld.synthesis.providers import Extractive, Meter, Provider
from ringworld.synthesis.records import Ask, Chunk, Pair, Reply, Verdict
from ringworld.synthesis.replies import Unparsed, parse
from ringworld.synthesis.verify import Holders, Rules, verify
from stages.corpus import DecisionTables, read_documents
from stages.questions_plan import Shard, plan_file
from stages.questions_state import ROWS, Done
from stages.shards import commit_shard

ProviderName = Literal["extractive", "checkpoint", "openai", "ray_llm"]

_BLOCKS = 100
_LOOK_SECONDS = 0.2
_SHOWN = 300  # characters of a failed request's text
_AROUND = 160  # characters of the chunk that are shown before and after an answer


@dataclass(frozen=True)
class Job:
    """What workers are told: plain values and places.

    model: a name, or the place of a checkpoint. mesh: of a checkpoint. documents: (name, place) of each file of
    documents, in order. plan, shards: folders.
    """

    provider: ProviderName
    model: str
    mesh: str
    server: ServerOptions
    sampler: SamplerOptions
    prompt: PromptOptions
    rules: Rules
    documents: tuple[tuple[str, str], ...]
    decided: DecisionTables
    plan: str
    shards: str


class Worker:
    """Opened once; `answer` may then be called by several threads, where the provider allows it."""

    def open(self, job: Job, key: Secret | None, keeper: Any) -> None:
        """keeper: the actor that keeps the budget; None: no limit. UserError where the provider cannot be had."""
        self._job, self._keeper = job, keeper
        self._provider = open_provider(job, key)

    def answer(self, shard: Shard) -> Done:
        """Make a shard and commit it. Without budget for any of it, nothing is committed."""
        began = time.monotonic()
        read = list(chunks_of(self._job, shard))
        asks = [ask(chunk, 0, self._job.prompt) for chunk, _ in read]
        replies: dict[int, Reply] = {}
        meter = Meter(self._again)
        for index, reply in self._replies(shard.number, asks, meter):
            replies[index] = reply
        done = finish(self._job, shard, read, asks, replies, meter, time.monotonic() - began)
        return done

    def _replies(self, holder: int, asks: list[Ask], meter: Meter) -> Iterator[tuple[int, Reply]]:
        """What the budget allows of them, from the first on."""
        worst = [self._provider.worst(asked) for asked in asks]
        begin = 0
        while begin < len(asks) and (count := self._take(holder, worst[begin:])):
            unused = -meter.unused
            for index, reply in self._provider.ask(asks[begin : begin + count], meter):
                used = reply.prompt_tokens + reply.tokens
                # What failed has been metered; where nothing is counted, it was the worst case.
                unused += 0 if reply.finish == "error" or not used else worst[begin + index] - used
                yield begin + index, reply
            self._give_back(holder, unused + meter.unused)
            begin += count

    def _take(self, holder: int, worst: list[int]) -> int:
        import ray

        if self._keeper is None:
            return len(worst)
        while True:
            count: Any = ray.get(self._keeper.take.remote(holder, worst))
            if count is not None:
                return count
            time.sleep(_LOOK_SECONDS)

    def _again(self, tokens: int) -> bool:
        import ray

        return self._keeper is None or ray.get(self._keeper.again.remote(tokens))

    def _give_back(self, holder: int, tokens: int) -> None:
        import ray

        if self._keeper is not None:
            ray.get(self._keeper.give_back.remote(holder, tokens))


class Keeper:
    """A budget that outlives the processes that spend it.

    The file says a hundredth of each limit more than was taken when it was written, and is written before more than it
    says is taken. So whoever dies, what was sent is never forgotten, and a hundredth is lost at most.
    """

    def __init__(self, limits: Limits, place: str) -> None:
        self._place, self._limits = place, limits
        told = read_if_there(place)
        self._written = json.loads(told) if told else {"requests": 0, "tokens": 0}
        self._budget = Budget(limits, **self._written)

    def take(self, holder: int, worst: list[int]) -> int | None:
        count = self._budget.take(holder, worst)
        self._write_ahead()
        return count

    def again(self, tokens: int) -> bool:
        allowed = self._budget.again(tokens)
        self._write_ahead()
        return allowed

    def give_back(self, holder: int, tokens: int) -> None:
        self._budget.give_back(holder, tokens)

    def lost(self, holder: int) -> None:
        self._budget.lost(holder)

    def close(self) -> dict[str, int]:
        """What has been taken, exactly; the file says so too."""
        self._write(self._taken())
        return self._written

    def _taken(self) -> dict[str, int]:
        return {"requests": self._budget.requests, "tokens": self._budget.tokens}

    def _write_ahead(self) -> None:
        taken = self._taken()
        if any(taken[name] > self._written[name] for name in taken):
            blocks = {"requests": self._limits.requests, "tokens": self._limits.tokens}
            self._write({name: taken[name] + (blocks[name] or 0) // _BLOCKS for name in taken})

    def _write(self, counts: Mapping[str, int]) -> None:
        write_whole(self._place, json.dumps(counts).encode())
        self._written = dict(counts)


def open_provider(job: Job, key: Secret | None) -> Provider:
    """The provider of a job, in this process. Imported here: none needs what another one does."""
    if job.provider == "extractive":
        return Extractive()
    if job.provider == "openai":
        from ringworld.synthesis.openai_provider import OpenAIProvider

        return OpenAIProvider(job.model, job.server, key)
    if job.provider == "checkpoint":
        from ringworld.synthesis.checkpoint_provider import CheckpointProvider

        return CheckpointProvider(job.model, job.mesh, job.sampler)
    raise ValueError(f"{job.provider} does not answer in a worker")


def chunks_of(job: Job, shard: Shard) -> Iterator[tuple[Chunk, Holders]]:
    """The chunks of a shard in its order, each with what is known of its document."""
    for file in sorted(set(shard.rows["file"].to_pylist())):
        wanted: dict[int, dict[str, list[dict[str, Any]]]] = {}
        for row in shard.rows.to_pylist():
            if row["file"] == file:
                wanted.setdefault(row["row"], {}).setdefault(row["document"], []).append(row)
        spans = _spans(job, file, sorted({name for names in wanted.values() for name in names}))
        name, place = job.documents[file]
        decisions = job.decided.on(name)
        left = set(wanted)
        for batch in read_documents(place):
            for document in batch:
                if document.row not in left:
                    continue
                left.discard(document.row)
                texts = dict(decisions.pieces(document.sha256, document.source, document.text))
                for piece, rows in wanted[document.row].items():
                    holders = Holders.of([_chunk(row, texts[piece]) for row in spans[piece]])
                    yield from ((_chunk(row, texts[piece]), holders) for row in rows)
            if not left:
                break


def _spans(job: Job, file: int, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Where all chunks of these documents lie."""
    with open_to_read(plan_file(job.plan, file)) as opened:
        rows = pq.read_table(opened, filters=[("document", "in", names)]).to_pylist()
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["document"], []).append(row)
    return found


def _chunk(row: Mapping[str, Any], text: str) -> Chunk:
    names = ("document", "sha256", "number", "start", "end", "tokens", "split")
    return Chunk(**{name: row[name] for name in names}, text=text[row["start"] : row["end"]])


def finish(
    job: Job,
    shard: Shard,
    read: list[tuple[Chunk, Holders]],
    asks: list[Ask],
    replies: Mapping[int, Reply],
    meter: Meter,
    seconds: float,
) -> Done:
    """Parse, verify and commit what has been answered of a shard."""
    rows = [_row(job, *read[index], asks[index], replies[index]) for index in range(len(read)) if index in replies]
    done = Done(
        asked=len(rows),
        kept=sum(row["kept"] for row in rows),
        unasked=len(read) - len(rows),
        requests=meter.requests,
        seconds=seconds,
        failures=dict(meter.failures),
    )
    if rows:
        commit_shard(job.shards, shard.name, pa.Table.from_pylist(rows, ROWS), asdict(done))
    return done


def _row(job: Job, chunk: Chunk, holders: Holders, asked: Ask, reply: Reply) -> dict[str, Any]:
    names = ("document", "sha256", "number", "start", "end", "tokens", "split")
    row = {name: getattr(chunk, name) for name in names} | {
        "provider": job.provider,
        "model": reply.model,
        "prompt_sha256": asked.sha256,
        "reply": reply.text,
        "finish": reply.finish,
        "prompt_tokens": reply.prompt_tokens,
        "reply_tokens": reply.tokens,
        "kept": False,
    }
    if reply.finish == "error":
        return row | {"reason": reply.error, "detail": reply.text[:_SHOWN]}
    pair = parse(reply.text, reply.finish)
    if isinstance(pair, Unparsed):
        return row | {"reason": pair.reason, "detail": pair.detail}
    return row | _verified(chunk, pair, job.rules, holders)


def _excerpt(text: str, verdict: Verdict) -> str | None:
    if verdict.start is None or verdict.end is None:
        return None
    begin, end = max(0, verdict.start - _AROUND), verdict.end + _AROUND
    return f"{'… ' if begin else ''}{text[begin:end].strip()}{' …' if end < len(text) else ''}"


def _verified(chunk: Chunk, pair: Pair, rules: Rules, holders: Holders) -> dict[str, Any]:
    verdict = verify(chunk, pair, rules, holders)
    return {
        "question": pair.question,
        "answer": pair.answer,
        "answer_start": verdict.start,
        "answer_end": verdict.end,
        "excerpt": _excerpt(chunk.text, verdict),
        "kept": verdict.kept,
        "reason": verdict.reason or None,
        "detail": verdict.detail or None,
    }
