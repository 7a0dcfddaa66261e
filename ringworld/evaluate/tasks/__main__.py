"""`python -m ringworld.evaluate.tasks`: a model's scores on long-context tasks, at lengths and depths.

Writes `summary.json`, `needles.png`, and each prompt, reply and score, into --out; the table goes to stdout. The same
command again goes on where it was stopped. Exit codes: see `ringworld.command`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from ringworld.command import guarded
from ringworld.data.files import join, write_json
from ringworld.errors import UserError
from ringworld.exits import DONE
from ringworld.generate.flags import add_model_flags, opened_sampler

if TYPE_CHECKING:
    from ringworld.evaluate.tasks.answerers import Answerer
    from ringworld.evaluate.tasks.haystack import Haystack
    from ringworld.evaluate.tasks.questions import Asked
    from ringworld.generate.checkpoint import Checkpoint

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}


def main(arguments: list[str]) -> int:
    """Parse, ask, write. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ringworld.evaluate.tasks", description=__doc__)
    add_model_flags(parser)
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--tasks", default="ruler", help="names, or the groups ruler and all; with commas")
    parser.add_argument("--lengths", required=True, help="tokens of prompt and answer, as in 512,4k,1m")
    parser.add_argument("--depths", default="0,0.25,0.5,0.75,1", help="of single needles, 0..1; or random")
    parser.add_argument("--examples", type=int, default=5, help="of each task, length and depth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beyond", action="store_true", help="also lengths over the model's context")
    parser.add_argument("--chat", action="store_true", help="every prompt through the chat template")
    parser.add_argument("--plain", action="store_true", help="LWM's plain template, whatever the model brings")
    parser.add_argument("--haystack", nargs="+", metavar="PLACE", help="documents; without: those held out of --tokens")
    parser.add_argument("--tokens", metavar="DIR", help="the token store trained on; of a stage its own")
    parser.add_argument("--questions", nargs="+", metavar="FILE", help="of {context, question, answers}, for qa")
    parser.add_argument("--threshold", type=float, default=85.6, help="of the effective length, percent")
    parser.add_argument("--slots", type=int, default=1, help="prompts that are answered at a time")
    server = parser.add_argument_group("a server instead of the checkpoint's weights, of which only the rest is read")
    server.add_argument("--server", metavar="URL", help="as in http://localhost:8000/v1")
    server.add_argument("--model", help="the name that requests give; the checkpoint's")
    server.add_argument("--send", choices=("ids", "text"), default="ids")
    server.add_argument("--concurrency", type=int, default=4)
    server.add_argument("--api-key-env", metavar="NAME", help="the variable that holds the server's key")
    options = parser.parse_args(arguments)
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    lengths, depths = lengths_of(options.lengths), _depths(options.depths)
    if options.examples < 1 or options.slots < 1 or options.concurrency < 1:
        raise UserError(
            f"--examples {options.examples}, --slots {options.slots}, --concurrency {options.concurrency}: 1 or more"
        )
    # Imported here: a wrong word is answered without waiting for JAX.
    from ringworld.evaluate.tasks.grid import Grid, Result, Settings, cells_of
    from ringworld.evaluate.tasks.names import IN_DOCUMENTS, names_of
    from ringworld.evaluate.tasks.prompting import prompting_of
    from ringworld.evaluate.tasks.questions import read_questions
    from ringworld.evaluate.tasks.registry import tasks_of
    from ringworld.evaluate.tasks.report import draw, summarize, table
    from ringworld.generate.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(options.checkpoint, options.tokenizer)
    _check_lengths(lengths, options.context or checkpoint.context, options.beyond)
    prompting = prompting_of(checkpoint, options.chat, options.plain)
    store = _store(options)
    documents = bool(options.haystack or store)
    questions = read_questions(options.questions) if options.questions else []
    names = names_of(options.tasks.split(","), documents, bool(questions))
    haystack = _haystack(options, checkpoint, store) if set(names) & set(IN_DOCUMENTS) else None
    tasks = tasks_of(names, haystack, questions)
    who = f"{options.model or checkpoint.name} at {options.server}" if options.server else checkpoint.weights
    settings = Settings(
        model=who, tokenizer=checkpoint.tokenizer.hash, haystack=haystack.sha256 if haystack else "",
        questions=_digest(questions), count=options.examples, seed=options.seed,
        chat="plain" if options.chat and options.plain else "own" if options.chat else "",
    )  # fmt: skip
    grid = Grid(options.out, settings)
    cells = cells_of(tasks, lengths, depths)
    finished = 0

    def told(result: Result) -> None:
        nonlocal finished
        finished += 1
        score = result.refused or f"{100 * (result.score or 0):.1f}"
        print(f"[{finished}/{len(cells)}] {result.cell.name}: {score}", file=sys.stderr, flush=True)

    def answerer() -> Answerer:
        return _answerer(options, checkpoint, max(lengths))

    results = grid.answer(cells, {task.name: task for task in tasks}, prompting, answerer, told)
    summary = summarize(results, options.threshold)
    summary["settings"] = settings.mapping()
    write_json(join(options.out, "summary.json"), summary)
    draw(join(options.out, "needles.png"), results)
    print(table(summary))
    print(f"effective length at {options.threshold:g}%: {summary['effective_length']:,}")
    for name, reason in summary["refused"].items():
        print(f"refused: {name}: {reason}", file=sys.stderr)
    return DONE


def lengths_of(text: str) -> list[int]:
    """`512,4k,1m` in tokens, ascending; k is 1,024. UserError for anything else."""
    found = set()
    for part in text.split(","):
        match = re.fullmatch(r"([1-9]\d*)([km]?)", part.strip().lower())
        if match is None:
            raise UserError(f"--lengths {text}: {part!r} is no length; give them as in 512,4k,1m")
        found.add(int(match[1]) * _UNITS[match[2]])
    return sorted(found)


def _depths(text: str) -> tuple[float, ...]:
    if text == "random":
        return ()
    try:
        found = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        found = (-1.0,)
    if not all(0 <= depth <= 1 for depth in found):
        raise UserError(f"--depths {text}: give numbers in 0..1, as in 0,0.5,1, or random")
    return found


def _check_lengths(lengths: Sequence[int], context: int, beyond: bool) -> None:
    over = [length for length in lengths if length > context]
    if over and not beyond:
        raise UserError(
            f"--lengths {','.join(map(str, over))}: longer than the model's context of {context}; leave them out, or "
            f"ask for them by --beyond"
        )


def _store(options: argparse.Namespace) -> str | None:
    """The token store that a model was trained on, where that is known."""
    from ringworld.generate.checkpoint import tokens_of

    return options.tokens or tokens_of(options.checkpoint)


def _haystack(options: argparse.Namespace, checkpoint: Checkpoint, store: str | None) -> Haystack | None:
    from ringworld.data.token_store import TokenStore
    from ringworld.evaluate.tasks.haystack import held_out_documents, make_haystack, unseen_documents
    from ringworld.evaluate.tasks.prompting import prompting_of

    trained = TokenStore.open(store) if store else None
    if options.haystack:
        documents = unseen_documents(options.haystack, trained)
    elif trained is not None:
        documents = held_out_documents(trained, checkpoint.tokenizer)
    else:
        return None
    return make_haystack(documents, prompting_of(checkpoint).count)


def _digest(questions: Sequence[Asked]) -> str:
    if not questions:
        return ""
    return hashlib.sha256(json.dumps([asdict(asked) for asked in questions]).encode()).hexdigest()


def _answerer(options: argparse.Namespace, checkpoint: Checkpoint, longest: int) -> Answerer:
    from ringworld.evaluate.tasks.answerers import EngineAnswerer, ServerAnswerer, ServerOptions

    if options.server:
        key = os.environ.get(options.api_key_env) if options.api_key_env else None
        if options.api_key_env and not key:
            raise UserError(f"--api-key-env {options.api_key_env}: the variable is not set")
        named = options.model or checkpoint.name
        return ServerAnswerer(
            ServerOptions(options.server, named, options.send, options.chat, options.concurrency), key
        )
    return EngineAnswerer(opened_sampler(checkpoint, options, options.slots, longest))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
