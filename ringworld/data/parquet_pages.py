"""How large the pages of a Parquet column are, read from the headers of the pages alone.

A reader holds a page whole, so a text of gigabytes would be held before its length is known: file and row group state
only sums. pyarrow does not show the headers. They are structs in Thrift's compact protocol, of which the sizes are
fields 2 and 3 (parquet-format, `PageHeader`); everything else in them is skipped.
"""

from __future__ import annotations

from typing import Any, BinaryIO

_HEADER_BYTES = 1 << 16  # statistics in a header are of a few kilobytes at most
_UNPACKED, _PACKED = 2, 3
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12


def largest_page(file: BinaryIO, chunk: Any) -> int:
    """Bytes of the largest page, unpacked, of a column in a row group (a pyarrow `ColumnChunkMetaData`).

    OSError where the bytes at its place are no pages.
    """
    starts = [offset for offset in (chunk.dictionary_page_offset, chunk.data_page_offset) if offset is not None]
    place = min(starts)
    end, largest = place + chunk.total_compressed_size, 0
    while place < end:
        file.seek(place)
        try:
            header = _Compact(file.read(_HEADER_BYTES))
            sizes = header.struct()
            largest = max(largest, sizes[_UNPACKED])
            place += header.at + sizes[_PACKED]
        except (IndexError, KeyError, ValueError) as wrong:
            raise OSError(f"no page of {chunk.path_in_schema} at byte {place}") from wrong
        if sizes[_PACKED] < 0:
            raise OSError(f"a page of {chunk.path_in_schema} at byte {place} has a negative size")
    return largest


class _Compact:
    """A reader of Thrift's compact protocol that keeps whole numbers of the outermost struct. IndexError at the end."""

    def __init__(self, data: bytes) -> None:
        self.at = 0
        self._data = data

    def struct(self, depth: int = 0) -> dict[int, int]:
        """The whole numbers among the fields, by their number."""
        if depth > 16:
            raise ValueError("structs in structs without end")
        numbers: dict[int, int] = {}
        field = 0
        while (head := self._byte()) != 0:
            field = field + (head >> 4) if head >> 4 else self._signed()
            value = self._value(head & 15, depth, in_field=True)
            if value is not None:
                numbers[field] = value
        return numbers

    def _value(self, kind: int, depth: int, in_field: bool = False) -> int | None:
        if kind in (_TRUE, _FALSE):
            self.at += 0 if in_field else 1  # a field's type is its value
        elif kind == _BYTE:
            self.at += 1
        elif kind < _DOUBLE:
            return self._signed()
        elif kind == _DOUBLE:
            self.at += 8
        elif kind == _BINARY:
            size = self._unsigned()
            self.at += size
        elif kind in (_LIST, _SET):
            head = self._byte()
            for _ in range(self._unsigned() if head >> 4 == 15 else head >> 4):
                self._value(head & 15, depth)
        elif kind == _STRUCT:
            self.struct(depth + 1)
        else:
            raise ValueError(f"type {kind} stands in no header of a page")
        return None

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _unsigned(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
        return value | byte << shift

    def _signed(self) -> int:
        value = self._unsigned()
        return value >> 1 ^ -(value & 1)
