"""`python -m ringworld.generate`: a prompt, a question about a text or a picture, a chat, or a picture to be drawn.

Answers go to stdout as they come, everything else to stderr. Exit codes: see `ringworld.command`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ringworld.command import guarded
from ringworld.errors import UserError
from ringworld.exits import DONE
from ringworld.generate.flags import add_model_flags, add_sampling_flags, opened_sampler, sampling_of
from ringworld.generate.meter import Meter
from ringworld.generate.vision_command import add_vision_flags, check_words, draw, look

if TYPE_CHECKING:
    import numpy as np

    from ringworld.data.conversations import Turn
    from ringworld.generate.chat import Prompts
    from ringworld.generate.checkpoint import Checkpoint
    from ringworld.generate.sampler import Reply, Sampler

_DESCRIPTION = """Text and pictures from a finished model.

--prompt or --prompt-file alone: the text goes on. With --question: a user's turn, the text and then the question.
--chat: turn by turn; a text goes before the first question.
--image or --video, with --question or --chat: a picture goes before the text. --draw and --out: a picture."""


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
    add_vision_flags(parser)
    options = parser.parse_args(arguments)
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    check_words(options)
    if options.draw:
        return draw(options)
    if options.prompt is None and options.prompt_file is None and options.question is None and not options.chat:
        raise UserError("nothing to answer: give --prompt, --prompt-file, --question or --chat; or --draw")
    text = _text(options)
    # Imported here: a wrong word is answered without waiting for JAX.
    from ringworld.generate.chat import Prompts
    from ringworld.generate.checkpoint import open_checkpoint

    sampling_of(options)  # refuse wrong values before any weight is read
    checkpoint = open_checkpoint(options.checkpoint, options.tokenizer)
    prompts, context = Prompts(checkpoint), options.context or checkpoint.context
    clips = _clips(options, checkpoint, prompts, text, context)
    if options.chat:
        sampler = opened_sampler(checkpoint, options, slots=1, context=context)
        return _chat(sampler, prompts, text, clips, options)
    if options.question is None:
        ids = prompts.of_text(text)
    else:
        ids = prompts.of_turns(_opening(options, text, options.question), options.plain, clips)
    if len(ids) + options.max_tokens > context:
        raise UserError(
            f"the prompt has {len(ids)} tokens and --max-tokens is {options.max_tokens}, together more than the "
            f"context of {context}; shorten one of them, or give a longer --context than the model was trained at"
        )
    # A cache for this one answer, not for the longest that there could be.
    sampler = opened_sampler(checkpoint, options, slots=1, context=max(2, len(ids) + options.max_tokens))
    _answer(sampler, ids, options)
    return DONE


def _clips(
    options: argparse.Namespace, checkpoint: Checkpoint, prompts: Prompts, text: str, context: int
) -> list[np.ndarray]:
    """The picture that is asked about, if any, in the room that the question and its answer leave; in a chat, four."""
    import numpy as np

    if options.image is None and options.video is None:
        return []
    turns = _opening(options, text, options.question or "?")
    beside = prompts.of_turns(turns, options.plain, [np.zeros(0, np.int32)])
    answers = min(4 * options.max_tokens, context // 2) if options.chat else options.max_tokens
    return [look(options, checkpoint, context - answers - len(beside))]


def _chat(
    sampler: Sampler, prompts: Prompts, text: str, clips: Sequence[np.ndarray], options: argparse.Namespace
) -> int:
    from ringworld.data.conversations import Turn
    from ringworld.vision.stream import without_clips

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
            asked = [*turns, Turn("user", without_clips(question))] if turns else _opening(options, text, question)
            try:
                reply = _answer(sampler, prompts.of_turns(asked, options.plain, clips), options)
            except UserError as refused:
                print(f"error: {refused}", file=sys.stderr)
                continue
            if reply is not None:
                turns = [*asked, Turn("assistant", reply.text.strip())]


def _answer(sampler: Sampler, ids: np.ndarray, options: argparse.Namespace) -> Reply | None:
    """Print an answer as it comes; None where it was interrupted."""
    from ringworld.generate.sampler import Prompt

    prompt = Prompt(ids, options.max_tokens, sampling_of(options), tuple(options.stop))
    reading = Meter("reading", "tokens")
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


def _opening(options: argparse.Namespace, text: str, question: str) -> list[Turn]:
    """The first turns: a picture, a text and the question go into the user's."""
    from ringworld.data.conversations import Turn
    from ringworld.vision.stream import CLIP, without_clips

    said = without_clips(f"{text.strip()}\n\n{question}" if text.strip() else question)
    seen = options.image is not None or options.video is not None
    system = [Turn("system", without_clips(options.system))] if options.system else []
    return [*system, Turn("user", f"{CLIP}\n{said}" if seen else said)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
