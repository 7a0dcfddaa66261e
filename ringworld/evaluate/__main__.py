"""`python -m ringworld.evaluate`: an evaluation process. Its exit codes: see `ringworld.command`."""

from __future__ import annotations

import sys

from ringworld.command import guarded, process_parser
from ringworld.exits import DONE


def main(arguments: list[str]) -> int:
    """Parse, join the job, evaluate. Returns the exit code."""
    options = process_parser("ringworld.evaluate", "Evaluate one stage.").parse_args(arguments)

    def work() -> int:
        # Imported here: a wrong word is answered without waiting for JAX.
        from ringworld.distributed import join
        from ringworld.evaluate.recipe import load_job
        from ringworld.mesh import parse_mesh

        job, mesh = load_job(options.recipe), parse_mesh(options.mesh)
        join(options.coordinator, options.num_processes, options.process_id, job.options.compilation_cache)
        from ringworld.evaluate.evaluator import evaluate

        evaluate(job, mesh)
        return DONE

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
