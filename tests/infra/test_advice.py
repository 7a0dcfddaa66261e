"""Each failure that people meet gets the advice that fits it, from words that the libraries really print."""

from __future__ import annotations

import re

import pytest

from infra.advice import CLASSES, RULES, advise

NAN = (
    "step 7: loss=nan, gradient norm=nan. Its batch is rows [3, 9] of the packing plan. The checkpoints before it are "
    "kept; lower learning_rate (now 0.1), lengthen warmup_steps, or look at these rows"
)
HBM = (
    "jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.\n"
    "exited with code 1"
)
GLOO = (
    "jax.errors.JaxRuntimeError: INTERNAL: Error dispatching computation: Gloo context initialization failed: "
    "DEADLINE_EXCEEDED: GetKeyValue() timed out [type.googleapis.com/tensorflow.CoordinationServiceError='']"
)


@pytest.mark.parametrize(
    ("kind", "message", "tail", "rule"),
    [
        ("user", NAN, "", "not finite"),
        ("crashed", "rank 0 of 2 on 10.0.0.1 exited with code 1", HBM, "device memory"),
        (
            "crashed",
            "",
            "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 40G",
            "device memory",
        ),
        ("user", "disk full (No space left on device) at /runs: free some space", "", "disk full"),
        ("crashed", "", "OSError: [Errno 122] Disk quota exceeded", "disk full"),
        ("crashed", "rank 1 of 2 on 10.0.0.2 was killed by signal 9 (SIGKILL)", "step 4\nstep 5", "host memory"),
        ("crashed", "rank 1 of 2 on 10.0.0.2 was killed by signal 11 (SIGSEGV)", "", "native crash"),
        ("crashed", "exited with code 1", "ModuleNotFoundError: No module named 'libtpu'", "missing package"),
        ("crashed", "HttpError: Anonymous caller does not have storage.objects.get access", "", "credentials"),
        ("crashed", "HttpError: x@y does not have storage.objects.create access, 403", "", "permission"),
        ("crashed", "", "gcsfs.retry.HttpError: The object exceeded the rate limit, 429", "rate limit"),
        ("crashed", "", "gcsfs.retry.HttpError: Service Unavailable, 503", "storage away"),
        ("crashed", "", "RuntimeError: UNKNOWN: bind: Address already in use", "port"),
        ("crashed", "", "RuntimeError: The TPU is already in use by process with pid 77", "accelerator busy"),
        ("crashed", "", "NVRM: Xid (PCI:0000:65:00): 79, GPU has fallen off the bus", "hardware"),
        ("crashed", "", "DEADLINE_EXCEEDED: Barrier timed out. Id: PjRT_Client_Connect", "coordinator"),
        ("crashed", "", GLOO, "coordinator"),
        ("crashed", "was killed by signal 6 (SIGABRT)", "Shutdown barrier has failed: a task died", "coordinator"),
        ("crashed", "rank 1 of 2 on 10.0.0.2 lost its host: The actor died", "", "host lost"),
    ],
)
def test_a_known_failure_gets_its_own_sentence(kind: str, message: str, tail: str, rule: str):
    assert advise(kind, message, tail) == next(known.sentence for known in RULES if known.name == rule)


@pytest.mark.parametrize("kind", ["user", "preempted", "stalled", "crashed"])
def test_an_unknown_failure_gets_the_sentence_of_its_class(kind: str):
    assert advise(kind, "exited with code 3", "step 12 loss 4.503\nstep 13 loss 4.0") == CLASSES[kind]


def test_preemptions_are_worth_a_word_only_when_they_are_often():
    assert advise("preempted", "", "", preemptions=4) == CLASSES["preempted"]
    assert "save_seconds=auto" in advise("preempted", "", "", preemptions=5)


def test_what_a_stopped_trainer_left_in_its_log_is_no_failure_of_its_own():
    assert (
        advise("preempted", "asked to stop", "RESOURCE_EXHAUSTED: Out of memory while trying") == CLASSES["preempted"]
    )


def test_patterns_are_patterns():
    for rule in RULES:
        assert all(re.compile(words) for words in rule.words)
