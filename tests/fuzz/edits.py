"""Random damage: to bytes, to protobuf fields with the lengths made right, and to JSON.

Damage to bytes finds what a broken disk or download does; most of it breaks the outermost
message, so that the inner ones are reached by edits of single fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import onnx

from modelexport_optimum.onnx_file.wire import length_delimited, varint

if TYPE_CHECKING:
    import random

    from google.protobuf.descriptor import Descriptor

DEEP = 3000

# What an input of the coverage-guided fuzzer begins with that is a text, and not a file.
TEXT_INPUT = b"text:"

# Texts that mean something to whoever reads a tag, its metadata, a path or a config.
TEXTS = [
    b"", b"/", b"//", b"/A", b"/A/B.", b"/A/B.c/D.e", b"/A/.b", b"/A/B.b.c.d", b"/\n", b"/A\n/B.c",
    b"/A" + b"/B.c" * DEEP, b"A" * 70_000, b"[]", b"['']", b"['', 'a', 'Neg']", b"['', 1, None]",
    b"[" * DEEP, b"[" * DEEP + b"]" * DEEP, b"-" * DEEP + b"1", b"['a' 'b']", b"('', 'a')", b"{}",
    b"['\\x00', '\\ud800', '\\N{BULLET}']", b"['\\", b"['", b"[''] * 1000000000",
    b"\xff\xfe", b"\xed\xa0\x80", b"\x00", b"\x1b[2J", b"../../etc/passwd", b"/etc/passwd",
    b"=1+1", b"<script>", "é\u202e".encode(), b"10**10**10", b"1e999", b"-1", b"9" * 5000,
    b"modelexport_optimum.version", b"modelexport_optimum.classes", b"modelexport_optimum.evidence",
    b"pkg.torch.onnx.name_scopes", b"pkg.torch.onnx.class_hierarchy", b"namespace",
    b"__hierarchy_tag", b"location", b"offset", b"length", b"scope", b"data flow", b"Constant",
    b"Identity", b"If", b"Gather", b"Conv", b"batch + 1 + ", b"weight.0", b".",
    b"__import__('os')", b"model.onnx",
]  # fmt: skip

NUMBERS = [0, 1, 2, 3, 5, 7, 16, 127, 128, 255, 2**14, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63,
           2**64 - 1]  # fmt: skip


@dataclass(slots=True)
class Field:
    """A protobuf field: a number, bytes, or a message."""

    number: int
    wire: int
    number_value: int = 0
    data: bytes = b""
    inner: list[Field] | None = None
    kind: Descriptor | None = field(default=None, repr=False)

    def encoded(self) -> bytes:
        """The field's bytes; its length is that of what it holds."""
        if self.inner is not None:
            return length_delimited(self.number, b"".join(f.encoded() for f in self.inner))
        if self.wire == 2:
            return length_delimited(self.number, self.data)
        key = varint(self.number << 3 | self.wire)
        return key + (varint(self.number_value) if self.wire == 0 else self.data)


def parsed(data: bytes, kind: Descriptor | None, depth: int = 100) -> list[Field] | None:
    """The fields of a message, or None if it is none, or nested deeper."""
    found = []
    position = 0
    while position < len(data):
        read = _varint(data, position)
        if read is None:
            return None
        key, position = read
        number, wire = key >> 3, key & 7
        if wire in (0, 2):
            read = _varint(data, position)
            if read is None:
                return None
            value, position = read
            if wire == 0:
                found.append(Field(number, 0, value))
                continue
        elif wire in (1, 5):
            value = 8 if wire == 1 else 4
        else:
            return None
        payload = data[position : position + value]
        if not number or len(payload) < value:
            return None
        position += value
        made = Field(number, wire, data=payload)
        known = kind.fields_by_number.get(number) if kind is not None else None
        if wire == 2 and depth and known is not None and known.message_type is not None:
            made.kind = known.message_type
            made.inner = parsed(payload, made.kind, depth - 1)
        found.append(made)
    return found


def _varint(data: bytes, position: int) -> tuple[int, int] | None:
    value = 0
    for index, byte in enumerate(data[position : position + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    return None


def edit_model(data: bytes, donor: bytes, random: random.Random) -> bytes:
    """Damages a `.onnx` file.

    Args:
        data: The file.
        donor: Another one, of which parts are spliced in.
        random: Decides.
    """
    if random.random() < 0.4:
        return edit_bytes(data, donor, random)
    fields = parsed(data, onnx.ModelProto.DESCRIPTOR)
    if fields is None:
        return edit_bytes(data, donor, random)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        _edit_fields(fields, donor, random)
    return b"".join(f.encoded() for f in fields)


def _edit_fields(fields: list[Field], donor: bytes, random: random.Random) -> None:
    holders = [fields]
    for holder in holders:  # it grows
        holders += [f.inner for f in holder if f.inner is not None]
        if len(holders) > 5000:
            break
    holder = random.choice([h for h in holders if h] or [fields])
    if not holder:
        return
    index = random.randrange(len(holder))
    chosen = holder[index]
    kinds = [
        "value",
        "value",
        "value",
        "remove",
        "double",
        "order",
        "end",
        "splice",
        "nest",
        "type",
    ]
    what = random.choice(kinds)
    if what == "remove":
        del holder[index]
    elif what == "double":
        holder[index:index] = [chosen] * random.choice((1, 1, 2, 50))
    elif what == "order":
        random.shuffle(holder)
    elif what == "end":
        holder.append(holder.pop(index))
    elif what == "splice":
        others = parsed(donor, onnx.ModelProto.DESCRIPTOR) or fields
        flat = list(others)
        for other in flat:  # it grows
            flat += (other.inner or []) if len(flat) < 2000 else []
        taken = random.choice(flat)
        holder.insert(index, Field(chosen.number, 2, data=taken.encoded()))
    elif what == "nest":
        _nest(holder, chosen, random)
    elif what == "type":
        chosen.wire, chosen.inner = random.choice((0, 1, 2, 5)), None
        chosen.data = random.randbytes(8 if chosen.wire == 1 else 4)
        if random.random() < 0.5:
            chosen.number = random.choice((1, 2, 4, 5, 6, 7, 8, 9, 11, 14, 20, 25, 1000))
    else:
        _edit_value(chosen, random)


def _edit_value(chosen: Field, random: random.Random) -> None:
    if chosen.wire == 0:
        step = random.choice((-1, 1, 1 << random.randrange(40)))
        chosen.number_value = random.choice((*NUMBERS, max(0, chosen.number_value + step)))
    elif chosen.inner is not None and random.random() < 0.7:
        if chosen.inner:
            _edit_value(random.choice(chosen.inner), random)
    elif chosen.wire == 2:
        content = chosen.data if chosen.inner is None else chosen.encoded()
        text = random.choice(TEXTS)
        place = random.randrange(len(content) + 1)
        chosen.inner = None
        chosen.data = random.choice(
            (text, text, content[:place] + text + content[place:], content[:place],
             edit_bytes(content, text, random))
        )  # fmt: skip
    else:
        chosen.data = random.randbytes(len(chosen.data))


def _nest(holder: list[Field], chosen: Field, random: random.Random) -> None:
    """Puts a field into itself, or messages into one another to a great depth."""
    if chosen.inner is not None and random.random() < 0.5:
        chosen.inner.append(Field(chosen.number, 2, data=chosen.encoded()))
        return
    depth = random.choice((3, 40, 120, 1500))
    numbers = random.choice(((1, 5, 6), (1, 5, 11), (1, 6), (5, 5), (20, 7), (4,)))
    data = chosen.encoded()
    for level in range(depth):
        data = length_delimited(numbers[-1 - level % len(numbers)], data)
    holder.append(Field(chosen.number, 2, data=data))


def edit_bytes(data: bytes, donor: bytes, random: random.Random) -> bytes:
    """Flips, cuts, splices or doubles bytes, or puts other ones in their place."""
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        start = random.randrange(len(data) + 1)
        end = min(len(data), start + random.choice((1, 1, 2, 8, 64, 1024)))
        what = random.choice(("flip", "flip", "flip", "cut", "splice", "double", "end", "text"))
        if what == "flip" and end > start:
            changed = bytearray(data)
            for _ in range(random.choice((1, 1, 4))):
                changed[random.randrange(start, end)] ^= 1 << random.randrange(8)
            data = bytes(changed)
        elif what == "cut":
            data = data[:start] + data[end:]
        elif what == "splice":
            first = random.randrange(len(donor) + 1)
            data = data[:start] + donor[first : first + end - start] + data[end:]
        elif what == "double":
            data = data[:end] + data[start:]
        elif what == "end":
            data = data[:start]
        elif what == "text":
            data = data[:start] + random.choice(TEXTS) + data[end:]
    return data


JSON_TEXTS = [
    b"[" * 100_000, b"{", b"{}", b"[]", b"null", b"1", b'"', b"\xef\xbb\xbf", b"\xff\xfe{\x00}\x00",
    b'{"a": 1, "a": 2}', b'"htp_metadata": {"version": 1},', b'"htp_metadata": 3', b"NaN",
    b"1" * 5000, b"1e999", b'"\\ud800"', b'"model_type": "bert",', b'"model_type": [],',
    b'"architectures": 3,', b'"architectures": ["getattr", "_torch"],', b'"auto_map": [],',
    b'"auto_map": {"AutoConfig": 3},', b'"_class_name": "UNet2DConditionModel",',
    b'"_class_name": 3,', b'"image_size": "x",', b'"hidden_size": -1,', b'"hidden_size": "x",',
    b'"num_hidden_layers": 1000000000,', b'"num_hidden_layers": 0,', b'"vocab_size": 1e30,',
    b'"max_position_embeddings": 100000000000,', b'"torch_dtype": "x",', b'"dtype": [],',
    b"\r\n", b"\t", b"\x00", b'{"a":' * 3000, b",", b"}", b"\xe2\x80\xa8",
]  # fmt: skip


def edit_json(data: bytes, random: random.Random) -> bytes:
    """Damages a JSON file, most of the time so that it stays JSON for a while."""
    for _ in range(random.choice((1, 1, 2, 3))):
        text = random.choice(JSON_TEXTS)
        lines = data.splitlines(keepends=True)
        what = random.choice(("line", "line", "line", "bytes", "whole", "lose", "value"))
        if what == "line" and lines:
            lines.insert(random.randrange(1, len(lines) + 1), text)
            data = b"".join(lines)
        elif what == "lose" and len(lines) > 2:
            del lines[random.randrange(1, len(lines) - 1)]
            data = b"".join(lines)
        elif what == "value" and lines:
            index = random.randrange(len(lines))
            key, colon, value = lines[index].partition(b": ")
            tail = b",\n" if value.rstrip().endswith(b",") else b"\n"
            values = (b"null", b"-1", b"0", b'"x"', b"[]", b"{}", b"1e99", b"true", b"12345678901",
                      b"[[[1]]]", b'"\\u0000"')  # fmt: skip
            lines[index] = key + colon + (random.choice(values) + tail if colon else value)
            data = b"".join(lines)
        elif what == "whole":
            data = random.choice((text, b"", data + data, data.decode("latin-1").encode("utf-16")))
        else:
            data = edit_bytes(data, text, random)
    return cast("bytes", data)
