"""`python -m ringworld.huggingface`: export a finished stage, or say what a folder holds and whether it can be read.

Exit codes: see `ringworld.command`.
"""

from __future__ import annotations

import argparse
import sys

from ringworld.command import guarded
from ringworld.exits import DONE


def main(arguments: list[str]) -> int:
    """Parse, work. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ringworld.huggingface", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="a finished training stage -> a folder for transformers")
    export.add_argument(
        "--checkpoint", required=True, metavar="DIR", help="the stage's folder, as in runs/tiny/text-8k"
    )
    export.add_argument("--to", required=True, metavar="DIR", help="a new folder, or gs://")
    export.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    export.add_argument("--shard-bytes", type=int, default=5_000_000_000)
    inspect = commands.add_parser("inspect", help="read a folder's config and headers, and say what is wrong with it")
    inspect.add_argument("folder", metavar="DIR")
    options = parser.parse_args(arguments)
    return guarded(lambda: _export(options) if options.command == "export" else _inspect(options.folder))


def _export(options: argparse.Namespace) -> int:
    from ringworld.huggingface.export import export

    made = export(
        options.checkpoint, options.to, options.dtype, options.shard_bytes, lambda text: print(text, flush=True)
    )
    print(f"{made.folder}: {made.family}, {made.bytes:,} bytes, {', '.join(made.files)}")
    for note in made.notes:
        print(f"note: {note}")
    return DONE


def _inspect(folder: str) -> int:
    from ringworld.data.tokenizers import from_huggingface
    from ringworld.huggingface.read import check_folder
    from ringworld.huggingface.tokenizer import check_vocabulary
    from ringworld.model.llama import count_parameters

    stated = check_folder(folder)
    model = stated.model
    for name in model.__dataclass_fields__:
        print(f"{name}: {getattr(model, name)}")
    window = f", but a window of {stated.window}" if stated.window else ""
    print(f"context: {stated.context}{window}\nparameters: {count_parameters(model):,}\ndtype: {stated.dtype}")
    tokenizer = from_huggingface(folder)
    check_vocabulary(tokenizer, model, folder)
    print(f"tokenizer: {tokenizer.vocabulary_size} ids, end {tokenizer.eos_id}, {tokenizer.hash[:12]}")
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
