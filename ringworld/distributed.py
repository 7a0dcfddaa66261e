"""Joining the processes of a job: one call before any device is touched."""

from __future__ import annotations

import jax


def join(coordinator: str | None, num_processes: int, process_id: int, compilation_cache: str = "") -> None:
    """Connect this process to its job (nothing to do for a job of one) and set the folder of compiled programs."""
    if compilation_cache:
        jax.config.update("jax_compilation_cache_dir", compilation_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if num_processes > 1:
        # Without it the CPU backend has no collectives between processes; other backends ignore it.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(coordinator, num_processes, process_id)
