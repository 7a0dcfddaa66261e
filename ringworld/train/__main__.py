"""`python -m ringworld.train`: the command line of a trainer process. Its exit codes: see `ringworld.command`."""

from __future__ import annotations

import sys
import time

from ringworld.command import guarded, process_parser


def main(arguments: list[str]) -> int:
    """Parse, join the job, train. Returns the exit code."""
    parser = process_parser("ringworld.train", "Train one stage.")
    parser.add_argument("--state", required=True, metavar="DIR", help="checkpoints and progress.jsonl; resumed from")
    options, begun = parser.parse_args(arguments), time.time()

    def work() -> int:
        # Imported here: a wrong word is answered without waiting for JAX.
        from ringworld.distributed import join
        from ringworld.mesh import parse_mesh
        from ringworld.train.recipe import load_job

        job, mesh = load_job(options.recipe), parse_mesh(options.mesh)
        join(options.coordinator, options.num_processes, options.process_id, job.options.compilation_cache)
        from ringworld.train.trainer import train

        return train(job, options.state, mesh, begun)

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
