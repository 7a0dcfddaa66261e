"""Seconds of a training step: counted operations and counted bytes, each over what the chip can do.

A step is four phases one after another: the layers' products, their attention, the loss, the update. In each, matrix
units, memory and links work at once, so a phase takes the longest of the three; what of its traffic sticks out is
`exposed`. Counted are the operations that the code does, with what the memory ladder does again; the MFU is of the
operations that the mathematics needs (`ringworld.train.flops`), as in progress.jsonl.

The two efficiencies are assumptions: the share of the peak rate that large products and attention kernels usually
reach. Measure a step and set them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ringworld.attention import best_backend
from ringworld.mesh import AXES
from ringworld.model.layout import DIMENSION_AXES
from ringworld.planning.hardware import Chip, Machine
from ringworld.planning.shapes import Shapes
from ringworld.train.recipe import TrainOptions, TrainRecipe

# Products of head_dim per visible pair in the backward pass; 2 in the forward pass. The Pallas backends go over the
# scores twice, once for queries and once for keys, and make scores and their gradient again each time.
_BACKWARD_PRODUCTS = {"xla": 5, "pallas_tpu": 7, "pallas_gpu": 7}
_FLOAT32 = 4


@dataclass(frozen=True)
class Efficiency:
    """The share of the peak rate that is reached: by products with weights, and by attention."""

    products: float = 0.7
    attention: float = 0.5


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step by phase. exposed: of these, traffic that no computation hides."""

    products: float
    attention: float
    loss: float
    update: float
    host: float
    exposed: float

    @property
    def seconds(self) -> float:
        return self.products + self.attention + self.loss + self.update + self.host


@dataclass(frozen=True)
class _Phase:
    """Seconds on the matrix units, in the chip's memory and on the links."""

    matrix: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        return max(self.matrix, self.memory, self.links)

    @property
    def exposed(self) -> float:
        return max(0.0, self.links - max(self.matrix, self.memory))


def step_time(
    recipe: TrainRecipe,
    options: TrainOptions,
    shapes: Shapes,
    sizes: Mapping[str, int],
    machine: Machine,
    chip: Chip,
    attention_pairs: float,
    efficiency: Efficiency,
) -> StepTime:
    """One step on a machine of these chips. attention_pairs: of the whole batch, as the packing plan lets through."""
    peak = chip.flops(recipe.dtype)
    wires = _Wires(sizes, machine, chip)
    products = _products(shapes, options, sizes, wires, chip, peak * efficiency.products)
    attention = _attention(shapes, options, sizes, wires, chip, attention_pairs, peak * efficiency.attention)
    loss = _loss(shapes, sizes, wires, chip, peak * efficiency.products)
    # Weights, two moments and gradients are read, the first three written; the gradients once more for their norm.
    update = 8 * _FLOAT32 * shapes.state_weights / chip.hbm_bandwidth
    moments = 4 * _FLOAT32 * shapes.state_weights / chip.host_bandwidth if options.optimizer_on == "host" else 0.0
    inputs = shapes.itemsize * shapes.hidden * shapes.layers / options.memory.every * shapes.passes
    # Saved inputs go to the host and come back while the layers compute.
    waiting = 2 * options.memory.offload * inputs / chip.host_bandwidth
    sticking_out = max(0.0, waiting - products.seconds - attention.seconds)
    return StepTime(
        products=products.seconds,
        attention=attention.seconds,
        loss=loss.seconds,
        update=update,
        host=moments + sticking_out,
        exposed=products.exposed + attention.exposed + loss.exposed,
    )


def forwards(options: TrainOptions) -> tuple[int, int]:
    """How often a layer's products and its attention are computed forward in a step, by the memory ladder."""
    memory = options.memory
    again = 0 if memory.remat == "none" else 1
    group = 1 if memory.every > 1 else 0
    # Chunks of a layer that keeps everything are made again all the same.
    chunked = 1 if memory.remat == "none" and memory.chunk else 0
    attention = 1 + group + (again if memory.remat == "layer" else 0)
    return 1 + again + group + chunked, attention


def _products(
    shapes: Shapes, options: TrainOptions, sizes: Mapping[str, int], wires: _Wires, chip: Chip, rate: float
) -> _Phase:
    """Projections, feed-forward and norms of all layers, with the weights' way to the chip and the gradients' back."""
    forward, _ = forwards(options)
    backward = 2  # twice the operations and the bytes of a forward pass
    passes = shapes.passes * shapes.layers
    operations = 2.0 * shapes.gathered * shapes.layer_weights * (forward + backward)
    heads = (shapes.heads + shapes.kv_heads) * shapes.head_dim * sizes["ulysses"]
    # Read and written by each product and norm, elements: of a gathered token, and of one of this chip's own.
    moved = shapes.gathered * (3 * shapes.embed + 4 * heads + 6 * shapes.mlp) + shapes.hidden * 8
    traffic = shapes.itemsize * (moved + 2 * shapes.layer_weights) * (forward + backward)
    embed_axes = DIMENSION_AXES["embed"]
    weights = wires.gather(shapes.itemsize * shapes.layer_weights, embed_axes) * forward
    weights += wires.gather(_FLOAT32 * shapes.layer_weights, embed_axes)
    groups = options.memory.head_groups
    hidden = wires.gather(shapes.itemsize * shapes.gathered * shapes.embed, ("tensor",))
    # In once for each group of heads and for the feed-forward, out after each of the two.
    tensor = hidden * (groups + 3) * (forward + 1)
    exchanged = shapes.itemsize * 2 * (shapes.queries + shapes.keys)
    ulysses = wires.gather(exchanged, ("ulysses",)) * (forward + 1)
    copies = 2 * wires.gather(_FLOAT32 * shapes.state_weights, ("data",))  # once a step: gradients are summed
    return _Phase(
        passes * operations / rate,
        passes * traffic / chip.hbm_bandwidth,
        passes * (weights + tensor + ulysses) + copies,
    )


def _attention(
    shapes: Shapes,
    options: TrainOptions,
    sizes: Mapping[str, int],
    wires: _Wires,
    chip: Chip,
    pairs: float,
    rate: float,
) -> _Phase:
    """Scores of all layers and what goes round the ring."""
    _, forward = forwards(options)
    ring = sizes["ring"]
    backend = best_backend(chip.platform) if options.attention == "auto" else options.attention
    products = 2 * forward + _BACKWARD_PRODUCTS[backend]
    # Rows are dealt so that all ranks compute equally much; as they come, the last rank of a long document decides.
    busiest = 2 - 1 / ring if options.layout == "contiguous" else 1.0
    of_rows = pairs / (sizes["data"] * sizes["fsdp"] * ring) * busiest
    operations = 2.0 * products * of_rows * shapes.heads * shapes.head_dim * shapes.layers
    passes = shapes.passes * shapes.layers
    # Sums in float32 are read and written at every hop: the output forward; three gradients backward.
    traffic = 2 * _FLOAT32 * ring * (forward * shapes.queries + shapes.queries + 2 * shapes.keys)
    keys = 2 * shapes.itemsize * shapes.keys
    gradients = 2 * _FLOAT32 * shapes.keys
    round_once = (ring - 1) * wires.send((forward + 1) * keys + gradients, "ring")
    return _Phase(operations / rate, passes * traffic / chip.hbm_bandwidth, passes * round_once)


def _loss(shapes: Shapes, sizes: Mapping[str, int], wires: _Wires, chip: Chip, rate: float) -> _Phase:
    """Three products with the head, whose logits are written and read as they come."""
    operations = 6.0 * shapes.gathered * shapes.table_weights
    traffic = shapes.gathered * (4 * _FLOAT32 * shapes.vocabulary + 4 * shapes.itemsize * shapes.embed)
    embed_axes = DIMENSION_AXES["embed"]
    head = wires.gather((shapes.itemsize + _FLOAT32) * shapes.table_weights, embed_axes)
    hidden = 2 * wires.gather(shapes.itemsize * shapes.gathered * shapes.embed, ("tensor",))
    passes = shapes.passes
    return _Phase(passes * operations / rate, passes * traffic / chip.hbm_bandwidth, passes * (head + hidden))


@dataclass(frozen=True)
class _Wires:
    """How long bytes take between the ranks of mesh axes.

    The device list is cut by the axes in their order, `ring` innermost. Ranks within one slice (or one machine of GPUs)
    are joined by fast links; between these there is the network. Each axis is taken to lie along one line of the torus.
    """

    sizes: Mapping[str, int]
    machine: Machine
    chip: Chip

    def gather(self, total: float, axes: tuple[str, ...]) -> float:
        """Seconds in which each rank of the axes comes to hold all `total` bytes, of which it has its part already; the
        same for the sum of such arrays dealt out, and for an all-to-all of them."""
        ranks, near = 1, 1
        for axis in axes:
            ranks *= self.sizes[axis]
            near *= self._near(axis)
        inside = total * (near - 1) / near / (self.chip.links * self.chip.link_bandwidth)
        # Each byte from afar enters a group of near ranks once, by the network of one of them.
        outside = total * (1 - near / ranks) / near / self.chip.network_bandwidth
        return max(inside, outside)

    def send(self, amount: float, axis: str) -> float:
        """Seconds of handing bytes to the next rank of an axis, all ranks at once."""
        if self.sizes[axis] == 1:
            return 0.0
        alone = self._near(axis) < self.sizes[axis]
        return amount / (self.chip.network_bandwidth if alone else self.chip.link_bandwidth)

    def _near(self, axis: str) -> int:
        """Ranks of an axis that fast links join."""
        stride = 1
        for inner in reversed(AXES):
            if inner == axis:
                return max(1, min(self.sizes[axis], self.machine.joined // stride))
            stride *= self.sizes[inner]
        raise KeyError(axis)
