"""A checksum of every array of a state, made where the array lies and the same on every mesh.

An array's elements are taken as unsigned integers, multiplied by odd weights that depend on their place, and summed
modulo 2^32. Such a sum does not depend on the order of its terms, so shards add up to the same number however the array
is split, and no process sees more than its own. An odd weight is invertible modulo 2^32: one changed element always
changes the sum. What changes many elements (zeros for a lost chunk, two chunks swapped) slips through once in 2^32.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec


def checksums(tree: Any) -> dict[str, int]:
    """The checksum of every array by its name, such as `params.layers.mlp.gate`. Every process of a job calls it."""
    named = {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
    waiting = tuple(getattr(leaf.sharding, "memory_kind", None) == "pinned_host" for leaf in named.values())
    meshes = {leaf.sharding.mesh for leaf in named.values() if isinstance(leaf.sharding, NamedSharding)}
    mesh = meshes.pop() if len(meshes) == 1 else None
    sums = jax.device_get(_program(waiting, mesh)(list(named.values())))
    return {name: int(value) for name, value in zip(named, sums, strict=True)}


def checksum(piece: np.ndarray, first: int = 0, block: int = 1 << 20) -> int:
    """Of a piece of an array in host memory, a stretch of the whole whose first element has the place `first` there:
    the sums of all pieces add up to the array's, modulo 2^32. block: elements that are summed at once."""
    flat = np.ascontiguousarray(piece).reshape(-1)
    sums = (
        int(_sum(jnp.asarray(flat[start : start + block]), (first + start) % 2**32))
        for start in range(0, len(flat), block)
    )
    return sum(sums) % 2**32


@functools.cache
def _program(waiting: tuple[bool, ...], mesh: Any) -> Any:
    def program(leaves: list[jax.Array]) -> jax.Array:
        pairs = zip(leaves, waiting, strict=True)
        return jnp.stack([_from_host(leaf) if hosted else _sum(leaf) for leaf, hosted in pairs])

    return jax.jit(program, out_shardings=NamedSharding(mesh, PartitionSpec()) if mesh else None)


def _from_host(array: jax.Array) -> jax.Array:
    """Of an array in host memory: the device holds one slice of it at a time, as during the optimizer's update."""
    if array.ndim < 2:
        return _sum(jax.device_put(array, jax.memory.Space.Device))
    size = math.prod(array.shape[1:])

    def add(index: jax.Array, total: jax.Array) -> jax.Array:
        piece = lax.dynamic_index_in_dim(array, index, 0, keepdims=False)
        first = lax.convert_element_type(index, jnp.uint32) * jnp.uint32(size % 2**32)
        return total + _sum(jax.device_put(piece, jax.memory.Space.Device), first)

    return lax.fori_loop(0, array.shape[0], add, jnp.uint32(0))


def _sum(array: jax.Array, first: jax.Array | int = 0) -> jax.Array:
    """uint32 of an array whose first element has the place `first` in the whole."""
    bits = _bits(array)
    place = jnp.full(bits.shape, first, jnp.uint32)
    stride = 1
    for axis in reversed(range(bits.ndim)):
        place += lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return jnp.sum(bits * _weight(place), dtype=jnp.uint32)


def _weight(place: jax.Array) -> jax.Array:
    """An odd number for every place, without a pattern that the values of weights could share."""
    mixed = place * jnp.uint32(0x9E3779B1)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x85EBCA77)
    return (mixed ^ (mixed >> 13)) | jnp.uint32(1)


def _bits(array: jax.Array) -> jax.Array:
    """An array's elements as uint32; one of 8 bytes becomes two."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[array.dtype.itemsize]
    return lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
