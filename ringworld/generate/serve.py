"""`python -m ringworld.generate.serve`: a finished model behind an endpoint that OpenAI's clients talk to."""

from __future__ import annotations

import argparse
import os
import sys

from ringworld.command import guarded
from ringworld.errors import UserError
from ringworld.exits import DONE
from ringworld.generate.flags import add_model_flags, opened

KEY = "RINGWORLD_API_KEY"


def main(arguments: list[str]) -> int:
    """Parse, load, serve until a signal. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ringworld.generate.serve", description=__doc__)
    add_model_flags(parser)
    parser.add_argument("--host", default="127.0.0.1", help="whom to listen to; 0.0.0.0: everyone")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--name", help="the model's name in requests; the folder's last part")
    parser.add_argument("--slots", type=int, default=8, help="requests that are answered at a time")
    parser.add_argument("--queue", type=int, default=64, help="requests that may wait; more are answered 429")
    parser.add_argument("--max-body", type=int, default=64 << 20, metavar="BYTES", help="longest request")
    options = parser.parse_args(arguments)
    return guarded(lambda: _serve(options))


def _serve(options: argparse.Namespace) -> int:
    # Imported here: a wrong word is answered without waiting for JAX.
    import numpy as np
    import uvicorn

    from ringworld.generate.chat import Prompts
    from ringworld.generate.sampler import Prompt
    from ringworld.generate.server import Settings, make_app
    from ringworld.generate.service import Service

    if options.queue < 0 or options.max_body < 1 or not 0 <= options.port < 2**16:
        raise UserError(f"--queue {options.queue}, --max-body {options.max_body}, --port {options.port}: out of range")
    key = os.environ.get(KEY) or None
    checkpoint, sampler = opened(options, slots=options.slots)
    engine = sampler.engine
    name = options.name or checkpoint.name
    # Compiles what most requests need, so that the first one does not wait for it.
    for _ in sampler.run([Prompt(np.zeros(1, np.int32), max_tokens=min(2, engine.context - 1))]):
        pass
    print(
        f"serving {name} on http://{options.host}:{options.port}/v1, {engine.slots} slots of {engine.context} tokens, "
        f"cache {engine.cache_shape.bytes / 2**20:.0f} MiB, {'with a key' if key else f'no key ({KEY} is not set)'}",
        file=sys.stderr,
        flush=True,
    )
    with Service(sampler, capacity=engine.slots + options.queue) as service:
        app = make_app(service, Prompts(checkpoint), Settings(name, key, options.max_body))
        # The access log would be a line per request; it holds no headers either way.
        uvicorn.run(
            app, host=options.host, port=options.port, log_level="warning", access_log=False,
            timeout_graceful_shutdown=5,
        )  # fmt: skip
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
