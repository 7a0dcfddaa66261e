"""The one way that data stages use Ray Data: blocks of work described by small tables, each done whole by one task.

What travels through Ray's object store is a description of the work and a ledger of what was done, never text or
tokens: a task reads from storage and writes to storage, to file names that the block decides, so that a repeated task
overwrites its own output.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from infra.stage import StageContext, StageFailure


def map_blocks(
    context: StageContext,
    blocks: Sequence[pa.Table],
    function: Callable[..., pa.Table],
    arguments: Mapping[str, Any],
) -> Iterator[pa.Table]:
    """`function(block, **arguments)` for every block, one task each, results as they come, in any order.

    Raises StageFailure within seconds when the context is asked to stop, and whatever `function` raises.
    """
    import ray.data

    # Its warnings are about choices made here, such as having no bars of its own.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    # batch_size=None: a batch is a block, so the blocks given here are the units of work, of retry and of output.
    done = ray.data.from_arrow(list(blocks)).map_batches(
        function, batch_size=None, batch_format="pyarrow", fn_kwargs=dict(arguments)
    )
    for result in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        if context.stop.is_set():
            raise StageFailure("preempted", f"stage {context.stage.name} was asked to stop")
        yield result
