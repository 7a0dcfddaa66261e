"""The environment of a trainer: written down here in full, never whatever its parent happened to have.

A host actor's own environment is full of what must not reach a trainer: the cluster's token, `OMP_NUM_THREADS=1` set by
Ray, a stale `MEGASCALE_*` of the last multislice job that makes JAX wait for ever, an `XLA_FLAGS` of somebody's shell.
So only the variables listed here pass; anything else that a trainer needs is named in the placement's `env`.
"""

from __future__ import annotations

from collections.abc import Mapping

from infra.placement import Kind

# How to find programs, certificates and storage. Credentials are in files or come from the machine's identity.
_PASSED = frozenset(
    """
    PATH HOME USER LOGNAME LANG LANGUAGE TZ TMPDIR LD_LIBRARY_PATH PYTHONPATH VIRTUAL_ENV XDG_CACHE_HOME HF_HOME
    SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE
    HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy
    GOOGLE_APPLICATION_CREDENTIALS GOOGLE_CLOUD_PROJECT CLOUDSDK_CONFIG GCE_METADATA_HOST
    STORAGE_EMULATOR_HOST TENSORSTORE_GCS_HTTP_URL GOOGLE_AUTH_TOKEN_FOR_TESTING
    FSSPEC_GS_TOKEN FSSPEC_GS_PROJECT GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT
    """.split()  # noqa: SIM905 - a list of 30 quoted words is harder to read
)
# Facts about the machine: what Ray gave this actor of it, and what its image or device plugin says of its slice.
_PASSED_PREFIXES: Mapping[Kind, tuple[str, ...]] = {
    "cpu": ("LC_",),
    "gpu": ("LC_", "CUDA_", "NVIDIA_", "NCCL_"),
    "tpu": ("LC_", "TPU_"),
}
_SET: Mapping[Kind, Mapping[str, str]] = {
    "cpu": {"JAX_PLATFORMS": "cpu"},
    "gpu": {"JAX_PLATFORMS": "cuda,cpu"},
    "tpu": {"JAX_PLATFORMS": "tpu,cpu"},
}
# A log must end with the last line printed, and a death inside native code must leave a trace in it.
_PYTHON = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}


def trainer_environment(inherited: Mapping[str, str], kind: Kind, given: Mapping[str, str]) -> dict[str, str]:
    """What passes of `inherited`, then what the kind of host asks for, then `given` over both."""
    prefixes = _PASSED_PREFIXES[kind]
    passed = {name: value for name, value in inherited.items() if name in _PASSED or name.startswith(prefixes)}
    return {**passed, **_PYTHON, **_SET[kind], **given}
