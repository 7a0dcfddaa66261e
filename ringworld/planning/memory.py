"""Bytes of one chip by part, from shapes alone: an estimate in microseconds, so that thousands of meshes can be tried.

The peak is the highest of three moments: the backward pass of a layer, the loss, the update. Each is a list of the
arrays that the code holds then. Two counts cannot be read off the code, because the compiler decides what shares
memory: how many arrays of queries and keys the attention's backward pass holds. They were taken from the TPU compiler's
answers for a Llama-2 7B layer of 1M tokens on eight chips (libtpu 0.0.51, heads 32 and 64, key heads 8 and 32, every
mesh axis): without a ring it agrees within 5% of the whole, with a ring within 10% where keys are as many as queries,
and it is up to 20% low where they are fewer. `ringworld.planning.aot` has the compiler's own figure.
"""

from __future__ import annotations

from dataclasses import dataclass

from ringworld.planning.shapes import Shapes
from ringworld.train.recipe import TrainOptions

# The compiler of TPUs crashes on arrays of so many elements, stacked ones apart.
LARGEST_ARRAY = 2**31
_FLOAT32 = 4


@dataclass(frozen=True)
class ChipMemory:
    """Bytes of one chip at its fullest moment, and what it keeps in host memory.

    weights, optimizer, gradients    float32, sharded
    saved          what the layers keep for the backward pass, on the chip
    temporaries    all else: intermediate results of one layer, its whole weights, the loss's chunk, the batch
    host           saved inputs and optimizer moments that wait in host memory
    """

    weights: float
    optimizer: float
    gradients: float
    saved: float
    temporaries: float
    host: float

    @property
    def total(self) -> float:
        """Of the chip's own memory."""
        return self.weights + self.optimizer + self.gradients + self.saved + self.temporaries


def chip_memory(shapes: Shapes, options: TrainOptions, ring: int) -> ChipMemory:
    """The estimate for one chip of a mesh with so long a ring."""
    weights = _FLOAT32 * shapes.state_weights
    on_host = options.optimizer_on == "host"
    gradients = weights * (2 if shapes.passes > 1 else 1)  # the sum so far and a microbatch's own
    saved, offloaded = _saved(shapes, options)
    layer = saved + _layer(shapes, options, ring)
    loss = saved + _loss(shapes, options)
    # The updates and their clipped gradients; from the host, moments of a layer or of the tables at a time.
    update = 4.0 * _FLOAT32 * max(_layer_state(shapes), _tables_state(shapes)) if on_host else 2 * weights
    batch = 5 * _FLOAT32 * shapes.gathered * shapes.passes
    peak = max(layer, loss, update) + batch
    return ChipMemory(
        weights=weights,
        optimizer=0.0 if on_host else 2.0 * weights,
        gradients=gradients,
        saved=min(saved, peak),
        temporaries=peak - min(saved, peak),
        host=offloaded + (2.0 * weights if on_host else 0.0),
    )


def largest_array(shapes: Shapes, options: TrainOptions) -> int:
    """Elements of the largest array that is not a stack over layers."""
    groups = options.memory.head_groups
    seen = shapes.chunk * max(shapes.embed, shapes.mlp)
    return max(shapes.hidden, shapes.queries // groups, shapes.keys // groups, seen)


def _saved(shapes: Shapes, options: TrainOptions) -> tuple[float, float]:
    """What layers keep for the backward pass: bytes on the chip, and in host memory."""
    memory, item = options.memory, shapes.itemsize
    if memory.remat == "none":
        return shapes.layers * _all_of_layer(shapes, options), 0.0
    # Attention's output and its log-sum-exp, float32 for each query and head.
    found = item * shapes.queries + _FLOAT32 * shapes.queries / shapes.head_dim if memory.remat == "attention" else 0.0
    inputs = item * shapes.hidden * shapes.layers / memory.every
    # With every > 1 a group's own inputs are made again, and attention's output with them.
    within = memory.every * (item * shapes.hidden + found) if memory.every > 1 else shapes.layers * found
    in_flight = item * shapes.hidden if memory.offload else 0.0
    return inputs * (1 - memory.offload) + within + in_flight, inputs * memory.offload


def _all_of_layer(shapes: Shapes, options: TrainOptions) -> float:
    """Everything of one layer that its gradient needs: its input and middle, queries, keys, values and output; and
    where no chunk is made again, the products' inputs and the norms' float32 arrays, two each."""
    kept = shapes.itemsize * (2 * shapes.hidden + 2 * shapes.queries + 2 * shapes.keys)
    if options.memory.chunk and shapes.chunk < shapes.gathered:
        return kept
    return kept + _products(shapes) + 4 * _FLOAT32 * shapes.hidden


def _products(shapes: Shapes) -> float:
    """Of the tokens that products see at once: both norms' outputs, gate, up and their product."""
    return shapes.itemsize * shapes.chunk * (2 * shapes.embed + 3 * shapes.mlp)


def _layer(shapes: Shapes, options: TrainOptions, ring: int) -> float:
    """A layer's backward pass, at attention or at the products, with its weights."""
    memory, item = options.memory, shapes.itemsize
    groups = memory.head_groups
    queries, keys = shapes.queries / groups, shapes.keys / groups
    if ring > 1:
        # The hop at hand, the sum so far and their merger; keys that are here and keys on their way.
        of_queries, of_keys = 3 * item + 5 * _FLOAT32, 4 * item + 2 * _FLOAT32
    else:
        of_queries, of_keys = 2 * item + _FLOAT32, 2 * item + 2 * _FLOAT32
    attention = 2 * item * shapes.hidden + of_queries * queries + of_keys * keys
    if groups > 1:
        attention += 3 * item * shapes.queries  # output of all groups, as they come and in order, and its gradient
    if shapes.chunk == shapes.gathered:
        attention += item * shapes.gathered * shapes.embed  # the projections' input waits for their gradient
    products = _products(shapes) + item * (3 * shapes.hidden + 2 * shapes.queries + 2 * shapes.keys)
    whole = (2 * item + _FLOAT32) * shapes.layer_weights + item * shapes.table_weights
    group = 0.0
    if memory.every > 1:
        group = memory.every * _FLOAT32 * _layer_state(shapes) + item * shapes.hidden
    return max(attention, products) + whole + _FLOAT32 * _tables_state(shapes) + group


def _loss(shapes: Shapes, options: TrainOptions) -> float:
    """Hidden states and their gradient, the head and its gradient whole, one chunk of logits three times."""
    chunk = min(options.loss_chunk, shapes.gathered)
    logits = chunk * shapes.vocabulary * (2 * _FLOAT32 + shapes.itemsize)
    return 3 * shapes.itemsize * shapes.hidden + (shapes.itemsize + _FLOAT32) * shapes.table_weights + logits


def _tables_state(shapes: Shapes) -> float:
    """Parameters of embedding and head that this chip keeps."""
    whole = shapes.layers * shapes.layer_weights + shapes.tables * shapes.table_weights
    return shapes.state_weights * shapes.tables * shapes.table_weights / whole


def _layer_state(shapes: Shapes) -> float:
    """Parameters of one layer that this chip keeps."""
    return (shapes.state_weights - _tables_state(shapes)) / shapes.layers
