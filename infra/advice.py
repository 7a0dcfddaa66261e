"""What to do about a failure: from its class and the end of its log to a sentence or two, by a table.

Pure, and only for people: nothing decides by it. The first rule whose words stand in the message or in the log wins;
below them all there is a sentence for each class.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

OFTEN = 5
"""So many preemptions of a stage are worth a word of their own."""


@dataclass(frozen=True)
class Rule:
    """words: patterns, any of which is enough, upper or lower case. kinds: the classes that it is for."""

    name: str
    words: tuple[str, ...]
    sentence: str
    kinds: tuple[str, ...] = ("user", "stalled", "crashed")

    def holds(self, kind: str, text: str) -> bool:
        return kind in self.kinds and re.search("|".join(self.words), text, re.IGNORECASE) is not None


def _status(code: str) -> str:
    # Not the number alone: steps, losses and sizes are full of them.
    return rf"(HTTP|status|error)[^\n]*[^\w.]{code}\b(?!\.)"


RULES = (
    Rule(
        "not finite",
        (r"step \d+: loss=\S+, gradient norm=", r"loss is (nan|inf)"),
        "The loss left the numbers: lower learning_rate, lengthen warmup_steps, or look at the rows that the message "
        "names; the checkpoints before it are kept.",
    ),
    Rule(
        "device memory",
        (
            r"RESOURCE_EXHAUSTED(?!.*(quota|rate))",
            r"out of memory (allocating|while trying)",
            r"CUDA(_ERROR_OUT_OF_MEMORY| out of memory)",
            r"ran out of memory in memory space hbm",
            r"exceed\w* (the )?hbm",
        ),
        "A device ran out of memory: take the next rung of the memory ladder (placement.train.memory.remat=attention, "
        "then layer, then chunk and offload), fewer placement.train.microbatch_rows, or more ring; "
        "flows/plan.py search=true proposes what fits.",
    ),
    Rule(
        "disk full",
        (r"disk full", r"No space left on device", r"Disk quota exceeded"),
        "A disk is full: free some space at the place that the message names, then give the same command again; "
        "placement.train.keep=1 keeps fewer checkpoints.",
    ),
    Rule(
        "host memory",
        (
            r"\bMemoryError",
            r"Cannot allocate memory",
            r"std::bad_alloc",
            r"\boom[-_ ]?kill",
            r"memory pressure",
            "SIGKILL",
        ),
        "A process was killed as the system does when a host's memory runs out: look at that host's kernel log, give "
        "the placement more memory, or take fewer workers a host and less offload.",
    ),
    Rule(
        "missing package",
        (r"No module named", r"ImportError: cannot import name"),
        "A package is missing where the trainer ran: install requirements.lock there, or use an image that holds it.",
    ),
    Rule(
        "credentials",
        (
            _status("401"),
            r"Unauthorized",
            r"Anonymous caller",
            r"determine credentials",
            r"DefaultCredentialsError",
            r"invalid_grant",
        ),
        "Storage does not know who asks: give the machines a service account, or set GOOGLE_APPLICATION_CREDENTIALS.",
    ),
    Rule(
        "permission",
        (_status("403"), r"PERMISSION_DENIED", r"does not have storage\.", r"AccessDenied", r"Permission denied"),
        "Storage refuses: the machines' account must be allowed to read and write there (on Google Cloud: the role "
        "storage.objectAdmin on the bucket).",
    ),
    Rule(
        "rate limit",
        (_status("429"), r"rateLimitExceeded", r"Too Many Requests", r"Quota exceeded"),
        "Storage asks for fewer requests: use fewer workers, or ask for a higher quota. What was saved is safe.",
    ),
    Rule(
        "coordinator",
        (
            r"Barrier timed out",
            r"coordination (service|agent)",
            r"DEADLINE_EXCEEDED",
            r"heartbeat timeout",
            r"connect to coordinator",
            r"shutdown barrier",
            r"\bgloo\b.*(timed? ?out|failed|closed)",
        ),
        "A rank could not reach the coordinator, or lost it. Where another rank's log holds an earlier failure, that "
        "one counts; otherwise open the hosts' network to each other on all ports.",
    ),
    Rule(
        "storage away",
        (
            _status("50[0234]"),
            r"Service ?Unavailable",
            r"Read timed out",
            r"(timed out|timeout|unreachable|refused).*(storage|\bgcs)",
        ),
        "Storage did not answer: nothing saved is lost. When it does not come back by itself, look at its status page "
        "and at the hosts' network.",
    ),
    Rule(
        "port",
        (r"Address already in use", r"EADDRINUSE", r"port \d+ is (already )?in use"),
        "A port was taken between being found and being used: the next attempt finds another. If it comes back, "
        "something on that host holds very many.",
    ),
    Rule(
        "accelerator busy",
        (
            r"TPU is already in use",
            r"libtpu\S* lockfile",
            r"Device or resource busy",
            r"CUDA_ERROR_DEVICE_UNAVAILABLE",
            r"CUDA-capable devices are busy",
        ),
        "Another process holds the accelerator: find it on that host and end it (a notebook, another run's trainer).",
    ),
    Rule(
        "hardware",
        (r"\bXid\b", r"\bECC error", r"uncorrectable", r"NVLink error", r"\bICI\b.*(error|fail)", r"Machine check"),
        "The hardware reported an error: take that host out of the cluster before the next attempt lands on it.",
    ),
    Rule(
        "native crash",
        (r"Segmentation fault", "SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", r"Fatal Python error"),
        "Native code crashed: the trace at the end of the log names the library. If it comes back at the same step, "
        "run that attempt's job.yaml by hand.",
    ),
    Rule(
        "host lost",
        (
            r"lost its host",
            r"host \d+ of \d+ died",
            r"node .*(died|terminated|removed)",
            r"Actor(Died|Unavailable)Error",
        ),
        "A machine went away: the next attempt takes another. When it happens often, "
        "placement.train.save_seconds=auto chooses how often to save.",
    ),
)
CLASSES = {
    "user": "Repair what the message names, then give the same command again; nothing was retried.",
    "preempted": "It was asked to leave, and had saved: the next attempt goes on there.",
    "stalled": "No step finished in time; the log holds every thread's stack. A rank that waits outside a collective "
    "is the culprit. Raise placement.train.stall_seconds only where steps are that long.",
    "crashed": "The end of the log says where. If it comes back at the same step, run that attempt's job.yaml by hand.",
}


def advise(kind: str, message: str, log_tail: str = "", preemptions: int = 0) -> str:
    """For a failure of a class of `infra.verdict`. preemptions: of its stage so far, this one included."""
    if preemptions >= OFTEN:
        return (
            f"Preempted {preemptions} times: nothing is broken, but each costs a restart; "
            "placement.train.save_seconds=auto bounds what is lost, machines that stay end it."
        )
    text = f"{message}\n{log_tail}"
    rule = next((rule for rule in RULES if rule.holds(kind, text)), None)
    return rule.sentence if rule else CLASSES.get(kind, CLASSES["crashed"])
