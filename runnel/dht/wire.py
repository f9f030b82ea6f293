"""Canonical messages: one value has one encoding, and nothing else decodes.

Values are None, bool, int (64 bits), float (64 bits, no NaN), str, bytes and lists of values, as
msgpack with the shortest form of each. Maps, extensions and 32-bit floats do not exist here. The
bytes of strangers are walked without allocating before msgpack sees them: an array header of five
bytes makes msgpack reserve memory for all the elements that it announces, at each level of nesting.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

import msgpack

from runnel.errors import PeerError

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_DEPTH = 8
"""Lists within lists: ``[[[[[[[[1]]]]]]]]`` is the deepest."""

MAX_VALUES = 65_536
"""Values in one message, lists counted too. Bulk belongs in bytes."""

_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
_FLOAT64 = struct.Struct(">d")
_FLOAT64_BYTE = 0xCB

# First byte -> how many bytes of a scalar follow it.
_SCALAR_BYTES = {
    **dict.fromkeys(range(0x80), 0),  # 0 to 127
    **dict.fromkeys(range(0xE0, 0x100), 0),  # -32 to -1
    **dict.fromkeys((0xC0, 0xC2, 0xC3), 0),  # None, False, True
    0xCC: 1,
    0xCD: 2,
    0xCE: 4,
    0xCF: 8,
    0xD0: 1,
    0xD1: 2,
    0xD2: 4,
    0xD3: 8,
    0xCB: 8,
}
# First byte -> how many bytes of length follow it.
_BYTES_LENGTH = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_LIST_LENGTH = {0xDC: 2, 0xDD: 4}


def pack(value: Any) -> bytes:
    """The encoding of `value`; tuples encode as lists, bytearrays as bytes.

    Raises:
        TypeError: a type that messages do not have.
        ValueError: NaN, an int beyond 64 bits, text that is not Unicode, too deep or too many.
    """
    _check(value, depth=0)
    data: bytes = msgpack.packb(value, use_bin_type=True)
    if len(data) > MAX_VALUES:  # fewer bytes cannot hold too many values
        _walk(data)
    return data


def unpack(data: Buffer, *, max_bytes: int) -> Any:
    """The value whose encoding is exactly `data`; lists for arrays, all bytes copied.

    Cost: one step of Python per value; memory in proportion to ``len(data)`` whatever it says.

    Raises:
        PeerError: "malformed": longer than `max_bytes`, cut, followed by more, not the canonical
            encoding of its value, or beyond `MAX_DEPTH` or `MAX_VALUES`.
    """
    view = memoryview(data).cast("B")
    if view.nbytes > max_bytes:
        raise PeerError("malformed", f"{view.nbytes} bytes, at most {max_bytes} expected")
    encoded = bytes(view)
    try:
        _walk(encoded)
        limit = len(encoded)
        value = msgpack.unpackb(
            encoded,
            raw=False,
            use_list=True,
            max_str_len=limit,
            max_bin_len=limit,
            max_array_len=limit,
            max_map_len=0,
            max_ext_len=0,
        )
        canonical = msgpack.packb(value, use_bin_type=True) == encoded
    except ValueError as error:  # msgpack's own errors are of this kind
        raise PeerError("malformed", str(error)) from None
    if not canonical:
        raise PeerError("malformed", "not the shortest encoding of its value")
    return value


_PLAIN, _LISTS = (bytes, bool, bytearray), (list, tuple)
"""Named, since a union of types is made anew at each call: a quarter of the time of a check."""


def _check(value: Any, *, depth: int) -> None:
    if value is None or isinstance(value, _PLAIN):
        return
    if isinstance(value, str):
        value.encode()  # UnicodeEncodeError, a ValueError, for lone surrogates
    elif isinstance(value, int):
        if not _MIN_INT <= value <= _MAX_INT:
            raise ValueError(f"{value} does not fit into 64 bits")
    elif isinstance(value, float):
        if math.isnan(value):  # it has many encodings, and is equal to none
            raise ValueError("NaN has no place in a message")
    elif isinstance(value, _LISTS):
        if depth >= MAX_DEPTH:
            raise ValueError(f"lists nested deeper than {MAX_DEPTH}")
        for element in value:
            _check(element, depth=depth + 1)
    else:
        raise TypeError(f"{type(value).__name__} has no place in a message")


def _walk(data: bytes) -> None:
    """Follows the structure of `data` without building it; ValueError unless it is one value."""
    open_lists = [1]  # values still to come, at each level; the outermost "list" is the message
    position = walked = 0
    while open_lists:
        if position >= len(data):
            raise ValueError(f"cut after {len(data)} bytes")
        count, position = _step(data, position)
        walked += 1
        if walked > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values")
        open_lists[-1] -= 1
        if count >= 0:
            if len(open_lists) > MAX_DEPTH:
                raise ValueError(f"lists nested deeper than {MAX_DEPTH}")
            open_lists.append(count)
        while open_lists and not open_lists[-1]:
            open_lists.pop()
    if position > len(data):
        raise ValueError(f"cut after {len(data)} bytes")
    if position < len(data):
        raise ValueError(f"{len(data) - position} bytes after the message")


def _step(data: bytes, position: int) -> tuple[int, int]:
    """Elements of the list that starts at `position` (-1 if it is no list), and where to go on."""
    first = data[position]
    position += 1
    size = _SCALAR_BYTES.get(first)
    if size is not None:
        if first == _FLOAT64_BYTE and math.isnan(_float_at(data, position)):
            raise ValueError("NaN has no place in a message")
        return -1, position + size
    if 0x90 <= first <= 0x9F:
        return first & 0x0F, position
    if 0xA0 <= first <= 0xBF:
        return -1, position + (first & 0x1F)
    if (width := _BYTES_LENGTH.get(first)) is not None:
        length = int.from_bytes(data[position : position + width], "big")
        return -1, position + width + length
    if (width := _LIST_LENGTH.get(first)) is not None:
        return int.from_bytes(data[position : position + width], "big"), position + width
    raise ValueError(f"byte {first:#04x} starts no value that messages have")


def _float_at(data: bytes, position: int) -> float:
    if position + _FLOAT64.size > len(data):
        raise ValueError(f"cut after {len(data)} bytes")
    value: float = _FLOAT64.unpack_from(data, position)[0]
    return value
