"""`python -m ringworld.generate`: one prompt, one question about a text, or a chat, from a finished model.

Answers go to stdout as they come, everything else to stderr. Exit codes: see `ringworld.command`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ringworld.command import guarded
from ringworld.errors import UserError
from ringworld.exits import DONE
from ringworld.generate.flags import add_model_flags, add_sampling_flags, opened_sampler, sampling_of

if TYPE_CHECKING:
    import numpy as np

    from ringworld.generate.sampler import Reply, Sampler

_DESCRIPTION = """Text from a finished model.

--prompt or --prompt-file alone: the text goes on. With --question: a user's turn, the text and then the question.
--chat: turn by turn; a text goes before the first question."""


def main(arguments: list[str]) -> int:
    """Parse, load, answer. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ringworld.generate", description=_DESCRIPTION, formatter_class=argparse.RawTextHelpFormatter
    )
    add_model_flags(parser)
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--prompt", metavar="TEXT")
    text.add_argument("--prompt-file", metavar="FILE", help="UTF-8; -: stdin")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--question", metavar="TEXT")
    asked.add_argument("--chat", action="store_true")
    parser.add_argument("--system", metavar="TEXT", help="the system's turn of a chat or question")
    parser.add_argument("--plain", action="store_true", help="LWM's plain template, whatever the model brings")
    add_sampling_flags(parser)
    options = parser.parse_args(arguments)
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.prompt is None and options.prompt_file is None and options.question is None and not options.chat:
        raise UserError("nothing to answer: give --prompt, --prompt-file, --question or --chat")
    text = _text(options)
    # Imported here: a wrong word is answered without waiting for JAX.
    from ringworld.generate.chat import Prompts
    from ringworld.generate.checkpoint import open_checkpoint

    sampling_of(options)  # refuse wrong values before any weight is read
    checkpoint = open_checkpoint(options.checkpoint, options.tokenizer)
    prompts, context = Prompts(checkpoint), options.context or checkpoint.context
    if options.chat:
        sampler = opened_sampler(checkpoint, options, slots=1, context=context)
        return _chat(sampler, prompts, text, options)
    if options.question is None:
        ids = prompts.of_text(text)
    else:
        ids = prompts.of_turns(_opening(options, _about(text, options.question)), options.plain)
    if len(ids) + options.max_tokens > context:
        raise UserError(
            f"the prompt has {len(ids)} tokens and --max-tokens is {options.max_tokens}, together more than the "
            f"context of {context}; shorten one of them, or give a longer --context than the model was trained at"
        )
    # A cache for this one answer, not for the longest that there could be.
    sampler = opened_sampler(checkpoint, options, slots=1, context=max(2, len(ids) + options.max_tokens))
    _answer(sampler, ids, options)
    return DONE


def _chat(sampler: Sampler, prompts: object, text: str, options: argparse.Namespace) -> int:
    from ringworld.data.conversations import Turn
    from ringworld.generate.chat import Prompts

    assert isinstance(prompts, Prompts)
    print("a line is a question; /new forgets what was said; end of file (Ctrl-D) ends", file=sys.stderr)
    turns: list[Turn] = []
    while True:
        try:
            print("\n> ", end="", file=sys.stderr, flush=True)
            question = input().strip()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return DONE
        if question == "/new":
            turns = []
        elif question:
            asked = [*turns, Turn("user", question)] if turns else _opening(options, _about(text, question))
            try:
                reply = _answer(sampler, prompts.of_turns(asked, options.plain), options)
            except UserError as refused:
                print(f"error: {refused}", file=sys.stderr)
                continue
            if reply is not None:
                turns = [*asked, Turn("assistant", reply.text.strip())]


def _answer(sampler: Sampler, ids: np.ndarray, options: argparse.Namespace) -> Reply | None:
    """Print an answer as it comes; None where it was interrupted."""
    from ringworld.generate.sampler import Prompt

    prompt = Prompt(ids, options.max_tokens, sampling_of(options), tuple(options.stop))
    reading = _Reading(sys.stderr.isatty())
    began = [0.0]

    def show(_: int, piece: object) -> None:
        from ringworld.generate.sampler import Piece

        assert isinstance(piece, Piece)
        if piece.token is None:
            reading.advance(piece.read, piece.of)
            return
        if not began[0]:
            reading.end()
            began[0] = time.monotonic()
        print(piece.text, end="", flush=True)

    try:
        [(_, reply)] = sampler.run([prompt], show)
    except KeyboardInterrupt:
        print("\n(interrupted)", file=sys.stderr)
        return None
    print(flush=True)
    if reply.finish == "error":
        raise UserError(
            "the model's output is no number (NaN or infinite): its weights are broken, or try --dtype float32"
        )
    if len(reply.tokens) > 1:
        rate = (len(reply.tokens) - 1) / max(time.monotonic() - began[0], 1e-9)
        print(
            f"[{reply.prompt_tokens} tokens read, {len(reply.tokens)} drawn, {rate:.1f} tokens/s, {reply.finish}]",
            file=sys.stderr,
        )
    return reply


class _Reading:
    """How far a long prompt is read, and the time left, on stderr: rewritten in place on a terminal."""

    def __init__(self, terminal: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._terminal, self._clock = terminal, clock
        self._first: tuple[float, int] | None = None
        self._told = 0.0

    def advance(self, read: int, of: int) -> None:
        now = self._clock()
        if self._first is None:  # the first chunk holds the compilation
            self._first = (now, read)
            return
        began, before = self._first
        rate = (read - before) / max(now - began, 1e-9)
        if self._terminal or now - self._told >= 10:
            self._told = now
            end = "\r" if self._terminal else "\n"
            left = _duration((of - read) / rate)
            print(
                f"reading {read:,} of {of:,} tokens, {rate:,.0f}/s, {left} left   ",
                end=end,
                file=sys.stderr,
                flush=True,
            )

    def end(self) -> None:
        if self._terminal and self._first is not None:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _text(options: argparse.Namespace) -> str:
    if options.prompt_file is None:
        return options.prompt or ""
    try:
        if options.prompt_file == "-":
            return sys.stdin.buffer.read().decode("utf-8")
        with open(options.prompt_file, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as wrong:
        raise UserError(f"--prompt-file {options.prompt_file}: {wrong}; give a text file in UTF-8") from wrong


def _about(text: str, question: str) -> str:
    return f"{text.strip()}\n\n{question}" if text.strip() else question


def _opening(options: argparse.Namespace, question: str) -> list:
    from ringworld.data.conversations import Turn

    system = [Turn("system", options.system)] if options.system else []
    return [*system, Turn("user", question)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
