"""The words that the command lines share: which model, on which devices, and how to draw."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ringworld.generate.checkpoint import Checkpoint
    from ringworld.generate.sampler import Sampler
    from ringworld.generate.sampling import Sampling


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="a stage of a run, or a Hugging Face folder")
    parser.add_argument("--tokenizer", metavar="DIR", help="another tokenizer than the model's own")
    parser.add_argument("--mesh", default="ring=-1", help="as in ring=4,tensor=2; ring=-1: all devices hold the prompt")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of products and cache; the checkpoint's own")
    parser.add_argument("--context", type=int, help="tokens of prompt and answer together; the checkpoint's own")
    parser.add_argument("--chunk", type=int, default=2048, help="tokens of a prompt that are read at a time")


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, help="0, of text if left out: always the likeliest; of --draw: 1")
    parser.add_argument(
        "--top-k", type=int, help="0, of text if left out: all; of --draw: 8192, after the first frame 1000"
    )
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--min-p", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends the answer; may be repeated")


def sampling_of(options: argparse.Namespace) -> Sampling:
    from ringworld.generate.sampling import Sampling

    return Sampling(options.temperature or 0.0, options.top_k or 0, options.top_p, options.min_p, options.seed)


def opened(options: argparse.Namespace, slots: int) -> tuple[Checkpoint, Sampler]:
    """The checkpoint that the flags name, and its weights on the mesh, ready to sample."""
    from ringworld.generate.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(options.checkpoint, options.tokenizer)
    return checkpoint, opened_sampler(checkpoint, options, slots, options.context)


def opened_sampler(checkpoint: Checkpoint, options: argparse.Namespace, slots: int, context: int | None) -> Sampler:
    from ringworld.generate.sampler import open_sampler
    from ringworld.mesh import make_mesh, parse_mesh

    mesh = make_mesh(parse_mesh(options.mesh))
    return open_sampler(checkpoint, mesh, slots=slots, context=context, dtype=options.dtype, chunk=options.chunk)
