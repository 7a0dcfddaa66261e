"""What the library's command lines share: the words that every process of a job takes, and how an error becomes a code.

Exit codes: 0 done and all saves durable; 64 user error, do not retry; 75 preempted, saved; 124 stalled; else crashed.
A process of several that fails leaves at once: JAX's own way out first waits five minutes for the others, which wait in
a collective for this one.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable

from ringworld.errors import UserError
from ringworld.exits import USER_ERROR
from ringworld.life import SignsOfLife


def process_parser(module: str, description: str) -> argparse.ArgumentParser:
    """A parser of --recipe, --mesh and the three words of a job of several processes."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--recipe", required=True, metavar="FILE", help="the job: recipe, inputs and options, as YAML")
    parser.add_argument("--mesh", default="fsdp=-1", help="as in data=1,fsdp=-1,tensor=1,ulysses=1,ring=4")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of a job of several processes")
    parser.add_argument("--num-processes", type=int, default=1)
    parser.add_argument("--process-id", type=int, default=0)
    return parser


def guarded(work: Callable[[], int]) -> int:
    """The exit code of `work`, which gives signs of life from here on; a UserError is one line on stderr and 64. Does
    not return from a failure in a job of several processes."""
    with SignsOfLife():
        try:
            return work()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            _leave(USER_ERROR)
            return USER_ERROR
        except Exception:
            if _is_one_of_several():
                traceback.print_exc()
                _leave(1)
            raise


def _leave(code: int) -> None:
    if _is_one_of_several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _is_one_of_several() -> bool:
    jax = sys.modules.get("jax")  # a wrong word is answered without importing it
    return jax is not None and jax.distributed.is_initialized()
