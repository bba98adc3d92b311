"""The wire format of protobuf: numbers, and the fields of a message in a file or in bytes.

This module knows nothing of ONNX; the format is that of
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from modelexport_optimum.system.files import read_at

if TYPE_CHECKING:
    from collections.abc import Iterator

VARINT, I64, LEN, GROUP, _GROUP_END, I32 = range(6)

WINDOW_BYTES = 256 * 1024
"""Number of bytes that a reader holds."""

_ONE_BYTE = [bytes((value,)) for value in range(0x80)]
"""The encoding of the numbers below 128, which are most keys and lengths."""


def varint(value: int) -> bytes:
    """Encode a number as protobuf does."""
    if value < 0x80:
        return _ONE_BYTE[value]
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    return bytes((value & 0x7F | 0x80,)) + varint(value >> 7)


def length_delimited(number: int, payload: bytes) -> bytes:
    """Encode a field of wire type LEN."""
    return varint(number << 3 | LEN) + varint(len(payload)) + payload


class FieldReader:
    """Random access to an open file through one small window."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self._start = 0
        self._window = b""

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from start to end."""
        if not 0 <= start <= end <= self.size:
            raise DecodeError("a field reaches past the end of the file")
        offset = start - self._start
        if offset >= 0 and end - self._start <= len(self._window):
            return self._window[offset : offset + end - start]
        if end - start > WINDOW_BYTES:
            return pread(self.fd, start, end - start)
        self._start, self._window = start, read_at(self.fd, WINDOW_BYTES, start)
        return self._window[: end - start]

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """Return the number that is encoded at a position, and the end of its encoding."""
        offset = position - self._start
        if position < end and 0 <= offset < len(self._window):
            byte = self._window[offset]
            if byte < 0x80:  # as most keys and lengths are
                return byte, position + 1
        data = self.read(position, min(position + 10, end))
        value = 0
        for index, byte in enumerate(data):
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value, position + index + 1
        raise DecodeError("a number does not end")

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield (number, wire type, value, key's start, payload's start) of each field.

        The value is the number of a VARINT, else the payload's length in bytes.
        """
        position = start
        while position < end:
            key_start = position
            key, position = self.varint(position, end)
            number, wire = key >> 3, key & 7
            if key < 0x80 and position != key_start + 1:
                raise DecodeError("a field's key is padded")
            if wire == VARINT:
                value, following = self.varint(position, end)
            elif wire == LEN:
                value, position = self.varint(position, end)
                following = position + value
            elif wire in (I64, I32):
                value = 8 if wire == I64 else 4
                following = position + value
            elif wire == GROUP:
                following = self._group_end(number, position, end)
                value = following - position
            else:
                raise DecodeError(f"wire type {wire}")
            if number == 0 or following > end:
                raise DecodeError("a field reaches past its message")
            yield number, wire, value, key_start, position
            position = following

    def _group_end(self, number: int, start: int, end: int) -> int:
        """Return the end of a group, after its end key; groups may be nested."""
        opened = [number]
        position = start
        while opened:
            key, position = self.varint(position, end)
            wire = key & 7
            if wire == GROUP:
                opened.append(key >> 3)
            elif wire == _GROUP_END:
                if opened.pop() != key >> 3:
                    raise DecodeError("a group does not end")
            elif wire == VARINT:
                _, position = self.varint(position, end)
            elif wire in (LEN, I64, I32):
                length = 8 if wire == I64 else 4
                if wire == LEN:
                    length, position = self.varint(position, end)
                position += length
            else:
                raise DecodeError(f"wire type {wire}")
            if position > end or len(opened) > 100:  # protobuf's own bound
                raise DecodeError("a group does not end")
        return position

    def after(self, wire: int, value: int, start: int, end: int) -> int:
        """Return the end of the field whose payload begins at start."""
        return self.varint(start, end)[1] if wire == VARINT else start + value

    def text(self, start: int, length: int) -> str:
        """Return the string of a field's payload."""
        return self.read(start, start + length).decode()


def pread(fd: int, start: int, length: int) -> bytes:
    """Read exactly this many bytes."""
    parts = []
    while length:
        part = read_at(fd, length, start)
        if not part:
            raise DecodeError("the file ends early")
        parts.append(part)
        start, length = start + len(part), length - len(part)
    return b"".join(parts)


def bytes_fields(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number, key's start, payload's start, end) of each field of a message.

    Args:
        data: A serialized message.

    Raises:
        DecodeError: The bytes are not a message.
    """
    reader = _BytesReader(data)
    for number, wire, value, key, start in reader.fields(0, len(data)):
        yield number, key, start, reader.after(wire, value, start, len(data))


class _BytesReader(FieldReader):
    def __init__(self, data: bytes) -> None:
        super().__init__(-1, len(data))
        self._window = data
