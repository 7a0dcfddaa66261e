"""`python -m ringworld.evaluate`: an evaluation process. Its exit codes are those of ringworld.train."""

from __future__ import annotations

import argparse
import sys

from ringworld.errors import UserError
from ringworld.train.vigil import EXIT_DONE, EXIT_USER_ERROR


def main(arguments: list[str]) -> int:
    """Parse, start the process group, evaluate. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ringworld.evaluate", description="Evaluate one stage.")
    parser.add_argument("--recipe", required=True, metavar="FILE", help="the job: recipe, inputs and options, as YAML")
    parser.add_argument("--mesh", default="fsdp=-1", help="as in data=1,fsdp=-1,tensor=1,ulysses=1,ring=4")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of a job of several processes")
    parser.add_argument("--num-processes", type=int, default=1)
    parser.add_argument("--process-id", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        from ringworld.distributed import join
        from ringworld.evaluate.recipe import load_job
        from ringworld.mesh import parse_mesh

        job, mesh = load_job(options.recipe), parse_mesh(options.mesh)
        join(options.coordinator, options.num_processes, options.process_id, job.options.compilation_cache)
        from ringworld.evaluate.evaluator import evaluate

        evaluate(job, mesh)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
