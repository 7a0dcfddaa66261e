"""safetensors files by path or URL, a part at a time: headers are read and checked first, data when it is asked for.

The library's own reader maps local files alone, and its writer wants all data at once. The format is small: eight bytes
with the length of a header in JSON, the header (name -> dtype, shape, offsets), and the data without gaps. Nothing read
is ever executed.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from ringworld.data.files import is_local, open_to_read, open_to_write, size_of
from ringworld.errors import UserError

DTYPES: Mapping[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
_LARGEST_HEADER = 100_000_000  # the library's own limit


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file. start: its first byte in the file."""

    file: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class File:
    """A file's tensors by name, and its metadata: texts by name."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def read_header(place: str) -> File:
    """What a file holds. UserError where there is none, and where it is cut short or no safetensors file."""
    size = size_of(place)
    if size is None:
        raise UserError(f"{place} is not there; is a shard missing? Download or copy the folder again")
    with open_to_read(place) as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
        if length > min(size - 8, _LARGEST_HEADER):
            raise UserError(f"{place} is no safetensors file, or cut short: its header would have {length} bytes")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        metadata = header.pop("__metadata__", {})
        tensors = {name: _tensor(place, name, told, 8 + length) for name, told in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as wrong:
        raise UserError(f"{place} is no safetensors file: its header cannot be read ({wrong})") from None
    for name, (tensor, end) in tensors.items():
        if end > size:
            raise UserError(f"{place} is cut short: {name} ends at byte {end}, the file at {size}; copy it again")
        known = DTYPES.get(tensor.dtype)
        if known is not None and end - tensor.start != math.prod(tensor.shape) * known.itemsize:
            raise UserError(f"{place}: {name} of shape {list(tensor.shape)} has {end - tensor.start} bytes")
    return File({name: tensor for name, (tensor, _) in tensors.items()}, metadata)


def _tensor(place: str, name: str, told: Any, base: int) -> tuple[Tensor, int]:
    first, last = told["data_offsets"]
    shape = tuple(told["shape"])
    if not all(type(number) is int and number >= 0 for number in (first, last, *shape)) or last < first:
        raise ValueError(f"{name}: {told}")
    return Tensor(place, name, str(told["dtype"]), shape, base + first), base + last


class Reader:
    """Parts of tensors as float32. Local files are mapped; of a file elsewhere the tensor last asked for is kept, so
    that the parts of several devices cost one transfer."""

    def __init__(self) -> None:
        self._kept: tuple[Tensor, np.ndarray] | None = None

    def read(self, tensor: Tensor, spans: Sequence[slice]) -> np.ndarray:
        """float32 of the shape of the spans. UserError for a dtype that is not read."""
        return np.asarray(self._whole(tensor)[tuple(spans)]).astype(np.float32)

    def _whole(self, tensor: Tensor) -> np.ndarray:
        dtype = DTYPES.get(tensor.dtype)
        if dtype is None:
            raise UserError(f"{tensor.file}: {tensor.name} is {tensor.dtype}; {', '.join(DTYPES)} are read: convert it")
        if is_local(tensor.file):
            if not math.prod(tensor.shape):
                return np.zeros(tensor.shape, dtype)
            return np.memmap(tensor.file, dtype=dtype, mode="r", offset=tensor.start, shape=tensor.shape)
        if self._kept is None or self._kept[0] != tensor:
            wanted = math.prod(tensor.shape) * dtype.itemsize
            with open_to_read(tensor.file) as file:
                file.seek(tensor.start)
                data = file.read(wanted)
            if len(data) != wanted:
                raise UserError(f"{tensor.file} is cut short within {tensor.name}; copy it again")
            self._kept = tensor, np.frombuffer(data, dtype).reshape(tensor.shape)
        return self._kept[1]


@dataclass(frozen=True)
class Planned:
    """A tensor to be written, of a dtype of DTYPES."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def write_file(
    place: str, planned: Sequence[Planned], arrays: Iterable[np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """A file of the planned tensors, whose arrays come in their order, one at a time, and are cast to their dtype."""
    header: dict[str, Any] = {"__metadata__": dict(metadata or {}) | {"format": "pt"}}
    offset = 0
    for tensor in planned:
        span = [offset, offset + tensor.bytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": span}
        offset = span[1]
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with open_to_write(place) as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for tensor, array in zip(planned, arrays, strict=True):
            if array.shape != tensor.shape:
                raise ValueError(f"{tensor.name}: {array.shape} was given for {tensor.shape}")
            cast = np.ascontiguousarray(array, DTYPES[tensor.dtype])
            file.write(cast.view(np.uint8).reshape(-1).data)
