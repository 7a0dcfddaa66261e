"""Notices that a machine of Google Cloud is about to be taken away, turned into the SIGTERM that a trainer knows.

A thread asks the metadata server of the machine, which answers only to the machine itself, whether it was preempted and
whether maintenance is due. Either is a request to save and leave; what follows is that of any SIGTERM, on all processes
of the job. A server that does not answer is told once and asked again: no notice is no reason to stop.
https://cloud.google.com/compute/docs/instances/create-use-preemptible#detecting_if_a_vm_was_preempted
"""

from __future__ import annotations

import http.client
import os
import signal
import sys
import threading
import urllib.request
from types import TracebackType
from typing import Self

POLL_SECONDS = 2.0  # a preempted machine has 30
PATIENCE_SECONDS = 5.0  # for one answer
HOST_VARIABLE = "GCE_METADATA_HOST"  # as in Google's own clients
# A path below instance/, and the answer that means nothing is due.
CALM = {"preempted": "FALSE", "maintenance-event": "NONE"}


class Notices:
    """Watches while it is entered; sends SIGTERM to its own process at the first notice, then watches no more."""

    def __init__(self, poll_seconds: float = POLL_SECONDS) -> None:
        self._poll = poll_seconds
        host = os.environ.get(HOST_VARIABLE, "metadata.google.internal")
        self._address = f"http://{host}/computeMetadata/v1/instance"
        # Without this an HTTP proxy of the environment would be asked about itself.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._over = threading.Event()
        self._unanswered = False
        self._thread = threading.Thread(target=self._watch, name="notices", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            for what, calm in CALM.items():
                answer = self._ask(what)
                if answer is not None and answer.upper() != calm:
                    print(f"notice from the machine: {what} is {answer}; saving", file=sys.stderr, flush=True)
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
            if self._over.wait(self._poll):
                return

    def _ask(self, what: str) -> str | None:
        request = urllib.request.Request(f"{self._address}/{what}", headers={"Metadata-Flavor": "Google"})
        try:
            with self._opener.open(request, timeout=PATIENCE_SECONDS) as answer:
                return answer.read(200).decode("ascii", errors="replace").strip()
        except (OSError, http.client.HTTPException) as error:
            if not self._unanswered:
                print(f"warning: no notices: {request.full_url}: {error}; asking again", file=sys.stderr, flush=True)
            self._unanswered = True
            return None
