"""`python -m ringworld.vision.train`: a process that makes a VQGAN. Its exit codes: see `ringworld.command`."""

from __future__ import annotations

import sys

from ringworld.command import guarded, process_parser


def main(arguments: list[str]) -> int:
    """Parse, train or import. Returns the exit code."""
    parser = process_parser("ringworld.vision.train", "Train or import a VQGAN.")
    parser.add_argument("--state", required=True, metavar="DIR", help="checkpoints and progress.jsonl; resumed from")
    options = parser.parse_args(arguments)

    def work() -> int:
        # Imported here: a wrong word is answered without waiting for JAX.
        from ringworld.distributed import join
        from ringworld.errors import UserError
        from ringworld.mesh import make_mesh, parse_mesh
        from ringworld.vision.vqgan_job import load_vqgan_job
        from ringworld.vision.vqgan_make import make_vqgan

        job, mesh = load_vqgan_job(options.recipe), parse_mesh(options.mesh)
        if options.num_processes > 1:
            raise UserError(f"--num-processes {options.num_processes}: a VQGAN is trained on one host; set hosts: 1")
        join(None, 1, 0, job.options.compilation_cache)
        return make_vqgan(job, options.state, make_mesh(mesh))

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
