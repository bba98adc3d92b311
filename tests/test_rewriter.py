"""Files that protobuf allows and no exporter writes: fields in any order, repeated, padded.

A model is serialized here by hand, so that a drawn order, padding and repetition of its fields
can be given to it. What is read of it must not depend on these, and `strip` must give them back.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING
from unittest import mock

import onnx
import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from modelexport_optimum.errors import InvalidModelError, ModelExportError
from modelexport_optimum.onnx_file import block_sharing, rewriter
from modelexport_optimum.onnx_file.reader import read_model
from modelexport_optimum.onnx_file.skeleton import walk_nodes
from modelexport_optimum.tagging import htp
from modelexport_optimum.tags import carriers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from google.protobuf.message import Message


def varint(value: int, width: int = 0) -> bytes:
    """A number as protobuf encodes it, padded to a width."""
    parts = []
    while value > 0x7F or len(parts) < width - 1:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


class Writer:
    """Serializes a message with its fields in a drawn order."""

    def __init__(self, draw: Callable[[int], int], *, pads: bool, repeats: bool) -> None:
        self.draw = draw  # a number below the one given
        self.pads = pads
        self.repeats = repeats

    def message(self, message: Message) -> bytes:
        kinds: list[list[bytes]] = []
        for field, value in message.ListFields():
            values = value if field.is_repeated else [value]
            pieces = [self.field(field, one) for one in values]
            scalar = field.message_type is None and not field.is_repeated
            if self.repeats and scalar and self.draw(3) == 0:
                other = b"other" if field.type == FieldDescriptor.TYPE_BYTES else "other"
                wrong = other if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else 1
                pieces.insert(0, self.field(field, wrong))  # the later one counts
            kinds.append(pieces)
        merged = []
        while kinds:  # in any order, but repeated fields among themselves in theirs
            kind = kinds[self.draw(len(kinds))]
            merged.append(kind.pop(0))
            kinds = [kind for kind in kinds if kind]
        return b"".join(merged)

    def field(self, field: FieldDescriptor, value: object) -> bytes:
        key = field.number << 3
        if field.message_type is not None:
            return self.with_length(key, self.message(value))
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            return self.with_length(key, value.encode() if isinstance(value, str) else value)
        if field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT:
            return varint(key | 5) + struct.pack("<f", value)
        return varint(key) + varint(int(value) % 2**64, self.width())

    def with_length(self, key: int, data: bytes) -> bytes:
        return varint(key | 2) + varint(len(data), self.width()) + data

    def width(self) -> int:
        return self.draw(6) if self.pads and self.draw(3) == 0 else 0


SCOPES = ["/a", "/a/b", "/c/c.0", "/a_1", ""]


@st.composite
def models(draw: st.DrawFn) -> ModelProto:
    """A model with branches in branches, texts of its own on nodes, and a tensor here and there."""
    count = 0

    def graph(depth: int, outer: str) -> GraphProto:
        nonlocal count
        nodes = []
        value = outer
        for _ in range(draw(st.integers(1, 3))):
            count += 1
            kind = draw(st.sampled_from(["Neg", "Add", "Constant", "If" if depth else "Abs"]))
            made = NodeProto(op_type=kind, output=[f"v{count}"])
            made.name = f"{draw(st.sampled_from(SCOPES))}/{kind}_{count}"
            if draw(st.booleans()):
                made.doc_string = draw(st.sampled_from(["text", "/Root/A.a", "two\nlines", "é"]))
            if draw(st.integers(0, 3)) == 0:
                made.metadata_props.add(key="namespace", value="theirs")
            if draw(st.integers(0, 3)) == 0:  # without a root, which no tag agrees with
                made.metadata_props.add(key=carriers.NAME_SCOPES, value="['a', 'relu']")
            if kind == "If":
                made.input.append("condition")
                for name in ("then_branch", "else_branch"):
                    attribute = made.attribute.add(name=name, type=AttributeProto.GRAPH)
                    attribute.g.CopyFrom(graph(depth - 1, value))
            elif kind == "Constant":
                size = draw(st.sampled_from([1, 300, 20_000]))
                tensor = TensorProto(dims=[size], data_type=1, raw_data=bytes(4 * size))
                made.attribute.add(name="value", type=AttributeProto.TENSOR).t.CopyFrom(tensor)
            else:
                made.input.extend([value] * (2 if kind == "Add" else 1))
            nodes.append(made)
            value = f"v{count}" if kind != "Constant" else value
        outputs = [helper.make_tensor_value_info(value, TensorProto.FLOAT, None)]
        inputs, weights = [], []
        if outer == "x":
            inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, "n"])]
            weights = [helper.make_tensor("condition", TensorProto.BOOL, [], [True])]
            weights.append(TensorProto(name="a.w", dims=[700], data_type=1, raw_data=bytes(2800)))
        return helper.make_graph(nodes, f"g{count}", inputs, outputs, weights)

    made = helper.make_model(graph(2, "x"), opset_imports=[helper.make_opsetid("", 18)])
    if draw(st.booleans()):
        made.metadata_props.add(key="theirs", value="kept")
    return made


def without_tags(model: ModelProto) -> ModelProto:
    """The model as somebody would see it who knows the carriers, and nothing of the rewriter."""
    made = ModelProto.FromString(model.SerializeToString())
    kept = [e for e in made.metadata_props if not e.key.startswith("modelexport_optimum.")]
    del made.metadata_props[:]
    made.metadata_props.extend(kept)

    def visit(graph: GraphProto) -> None:
        for node in graph.node:
            tag, _, rest = node.doc_string.partition("\n")
            assert tag.startswith("/Module")
            node.ClearField("doc_string")
            if rest:
                node.doc_string = rest
            kept = [a for a in node.attribute if a.name != carriers.ATTRIBUTE]
            del node.attribute[:]
            node.attribute.extend(kept)
            keys = [entry.key for entry in node.metadata_props]
            del node.metadata_props[keys.index(carriers.EVIDENCE) :]
            for entry in node.metadata_props:
                entry.key = entry.key.removeprefix(carriers.ASIDE)
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    visit(attribute.g)

    visit(made.graph)
    return made


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink one takes minutes
)
@given(
    model=models(),
    data=st.data(),
    pads=st.booleans(),
    repeats=st.booleans(),
    shared=st.sampled_from([100, block_sharing.LEAST_SHARED_BYTES]),
)
def test_whatever_the_order_of_the_fields_strip_gives_the_bytes_back(
    tmp_path_factory: pytest.TempPathFactory,
    model: ModelProto,
    data: st.DataObject,
    pads: bool,
    repeats: bool,
    shared: int,
) -> None:
    randoms = data.draw(st.randoms(use_true_random=False))
    before = Writer(randoms.randrange, pads=pads, repeats=repeats).message(model)
    assert ModelProto.FromString(before) == model  # protobuf's own reader sees no difference
    directory = tmp_path_factory.getbasetemp() / "orders"
    directory.mkdir(exist_ok=True)
    path = directory / "model.onnx"
    path.write_bytes(before)
    try:
        with mock.patch.object(block_sharing, "LEAST_SHARED_BYTES", shared):
            report = htp.tag(path)
    except ModelExportError as error:
        assert pads  # the one thing that cannot always be kept
        assert "padded" in str(error)
        assert path.read_bytes() == before
    else:
        assert report.node_count == sum(1 for _ in walk_nodes(read_model(path).graph))
        assert without_tags(onnx.load(path)) == model
        tagged = path.read_bytes()
        with mock.patch.object(block_sharing, "LEAST_SHARED_BYTES", shared):
            assert not htp.tag(path).files[0].changed
        assert path.read_bytes() == tagged
        htp.strip(path)
        assert path.read_bytes() == before
    assert [file.name for file in directory.iterdir()] == ["model.onnx"]


def test_branch_that_ends_with_its_nodes(tmp_path: Path) -> None:
    """All messages around the innermost node end where it ends."""
    node = helper.make_node("Neg", ["x"], ["y"], name="/a/Neg").SerializeToString()

    def field(number: int, data: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(data)) + data

    branch = field(5, field(1, b"then_branch") + varint(20 << 3) + b"\5" + field(6, field(1, node)))
    outer = field(1, field(4, b"If") + field(3, b"/b/If") + branch)
    before = b"\x08\x08" + field(8, b"\x10\x12") + field(7, outer)
    path = tmp_path / "model.onnx"
    path.write_bytes(before)
    htp.tag(path)
    [made] = onnx.load(path).graph.node
    assert made.doc_string == "/Module/Module.b"
    [inner] = made.attribute[0].g.node
    assert inner.doc_string == "/Module/Module.a"
    htp.strip(path)
    assert path.read_bytes() == before


def test_graph_in_two_pieces_is_refused(tmp_path: Path) -> None:
    graph = GraphProto(node=[helper.make_node("Neg", ["x"], ["y"])])
    attribute = AttributeProto(name="then_branch", type=AttributeProto.GRAPH, g=graph)
    data = attribute.SerializeToString() * 2
    node = NodeProto(op_type="If").SerializeToString() + b"\x2a" + varint(len(data)) + data
    model = ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 18)])
    graph_bytes = b"\x0a" + varint(len(node)) + node
    before = model.SerializeToString() + b"\x3a" + varint(len(graph_bytes)) + graph_bytes
    path = tmp_path / "model.onnx"
    path.write_bytes(before)
    with pytest.raises(InvalidModelError, match="two pieces"):
        htp.tag(path)
    assert path.read_bytes() == before


def test_what_does_not_read_back_does_not_take_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["y"], name="/a/Neg")]
    path = tmp_path / "model.onnx"
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], []), opset_imports=opsets), path)
    before = path.read_bytes()
    write = rewriter.write_all
    for damage in (
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: bytes(data).replace(b"/a/Neg", b"/a/Nig"),
        lambda data: bytes(data).replace(b"/Module/Module.a", b"/Module/Module.b"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(
                rewriter, "write_all", lambda fd, data, damage=damage: write(fd, damage(data))
            )
            with pytest.raises(ModelExportError, match="does not read back"):
                htp.tag(path)
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
