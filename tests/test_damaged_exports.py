"""Damaged tags, metadata, JSON and nodes: one error that names the file, or counted as not there.

What the fuzzers have found stands here, each in its smallest form.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import onnx
import pytest
from onnx import TensorProto, helper

from modelexport_optimum.batches.earlier_runs import published_record
from modelexport_optimum.batches.results import Results
from modelexport_optimum.errors import InvalidModelError, ModelExportError, UsageError
from modelexport_optimum.example_inputs.declared import Declared
from modelexport_optimum.hierarchy.diff import diff
from modelexport_optimum.hierarchy.extract import extract
from modelexport_optimum.hierarchy.inspect import inspect
from modelexport_optimum.module_trees.config_bounds import check_counts
from modelexport_optimum.onnx_file.reader import LEFT_IN_FILE, read_model
from modelexport_optimum.onnx_file.wire import length_delimited
from modelexport_optimum.profiling.profile import profile
from modelexport_optimum.reporting.report import report
from modelexport_optimum.system.json_files import parse_json, read_json
from modelexport_optimum.tagging import htp
from modelexport_optimum.tags import carriers, tag_grammar

if TYPE_CHECKING:
    from collections.abc import Callable


def saved(path: Path, *nodes: onnx.NodeProto, **fields: object) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph([*nodes], "main", [x], [y], **fields)
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.fixture
def tagged(tmp_path: Path) -> Path:
    path = saved(tmp_path / "m.onnx", helper.make_node("Neg", ["x"], ["y"], name="/a/Neg"))
    htp.tag(path)
    return path


def changed(path: Path, change: Callable[[onnx.NodeProto], object]) -> Path:
    model = onnx.load(path)
    change(model.graph.node[0])
    onnx.save(model, path)
    return path


def metadata_of(node: onnx.NodeProto, key: str) -> onnx.StringStringEntryProto:
    return next(entry for entry in node.metadata_props if entry.key == key)


# The grammar


@pytest.mark.parametrize(
    "texts",
    [
        [],
        ["", "a", "Neg"],
        ["it's", 'say "it"', "it's \\"],
        ["\n\r\t\0\x7f", "é\u202e", "\U0001f600", "', '"],
    ],
)
def test_lists_of_texts_are_read_as_python_writes_them(texts: list[str]) -> None:
    assert tag_grammar.parse_texts(repr(texts)) == texts


@pytest.mark.parametrize(
    "text",
    [
        "", "[", "]", "['", "['a'", "['a',]", "['a' 'b']", "['a', ]", "[''] * 9", "('a',)", "[1]",
        "['a', None]", "[['a']]", "['\\ud800']", "['\\N{BULLET}']", "['\\U00110000']", "['a\\']",
        "['a\nb']", "['\0']", "['\r', 'a']",
        "[" * 100_000, "['a'" + " + 'a'" * 9 + "]", "{'a'}", "['a'] ", "exit()",
        repr(["a"] * 1000), repr(["a" * 1_000_000]),
    ],
)  # fmt: skip
def test_what_is_no_list_of_texts_is_none(text: str) -> None:
    assert tag_grammar.parse_texts(text) is None


@pytest.mark.parametrize(
    "tag", ["/A" + "/B.c" * 1000, "/A/B." + "c" * 100_000, "/A/B.c\n", "/A b", "/", "//", "/A/.b"]
)
def test_what_is_no_tag_is_none(tag: str) -> None:
    assert tag_grammar.parse_tag(tag) is None


# Names with line ends and control characters


def test_a_name_with_a_line_end_leaves_an_error_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        inspect(tmp_path / "first\r\nsecond  third")
    assert "first second  third does not exist" in str(error.value)


def test_the_head_of_a_report_shows_control_characters(tmp_path: Path, tagged: Path) -> None:
    model = onnx.load(tagged)
    model.metadata_props.add(key="modelexport_optimum.torch", value="\x1b[31m\u202e")
    onnx.save(model, tagged)
    page = report(tagged, tmp_path / "page.html").read_text(encoding="utf-8")
    assert not {"\x1b", "\u202e"} & {*page}


# What earlier batches left


NO_RECORDS = {
    "nested": b"[" * 100_000,
    "another's": b'{"model": "m", "output": "o"}',
    "output": b'{"model": "m", "output": 5, "status": "ok", "made": {}}',
    "made": b'{"model": "m", "output": "o", "status": "ok", "made": 3}',
    "files": b'{"model": "m", "output": "o", "status": "ok", "made": {}, "files": [5]}',
    "bytes": b"\xff",
}


@pytest.mark.parametrize("content", NO_RECORDS.values(), ids=NO_RECORDS)
def test_what_is_no_record_of_a_batch_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_bytes(content + b"\n")
    with pytest.raises(UsageError, match="this is not a result of a batch"):
        Results(tmp_path)
    pending = tmp_path / "a.pending"
    pending.write_bytes(content)
    assert published_record(pending) is None
    assert not pending.exists()


# Pipes and devices


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with a name")
def test_a_pipe_is_not_waited_for(tagged: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.onnx"
    os.mkfifo(pipe)
    reasons = []
    for use in (
        lambda: inspect(pipe),
        lambda: htp.tag(pipe),
        lambda: report(tagged, tmp_path / "page.html", profile=pipe),
        lambda: profile(tagged, inputs=pipe),
        lambda: check_counts(pipe),
        lambda: Results(tmp_path),
    ):
        (tmp_path / "results.jsonl").unlink(missing_ok=True)
        os.mkfifo(tmp_path / "results.jsonl")
        with pytest.raises((ModelExportError, OSError)) as error:
            use()
        reasons.append(str(error.value))
    assert all("it is no regular file" in reason for reason in reasons), reasons
    assert read_json(pipe) is None


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no /dev/zero")
def test_a_device_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to("/dev/zero")
    assert read_json(tmp_path / "config.json") is None
    assert Declared(tmp_path).longest() is None


def test_a_lock_that_is_a_link_makes_no_file_elsewhere(tagged: Path) -> None:
    elsewhere = tagged.parent.parent / f"{tagged.parent.name}-elsewhere"
    (tagged.parent / ".modelexport-optimum.lock").symlink_to(elsewhere)
    before = tagged.read_bytes()
    with pytest.raises(ModelExportError, match="cannot write in"):
        htp.strip(tagged)
    assert tagged.read_bytes() == before
    assert not elsewhere.exists()


# Carriers


DAMAGE: dict[str, Callable[[onnx.NodeProto], object]] = {
    "scopes end early": lambda node: setattr(
        metadata_of(node, carriers.NAME_SCOPES), "value", "['', 'a"
    ),
    "scopes of another length": lambda node: setattr(
        metadata_of(node, carriers.NAME_SCOPES), "value", "['', 'Neg']"
    ),
    "scopes of another module": lambda node: setattr(
        metadata_of(node, carriers.NAME_SCOPES), "value", "['', 'b', 'Neg']"
    ),
    "classes are no list": lambda node: setattr(
        metadata_of(node, carriers.CLASS_HIERARCHY), "value", "1 + 1"
    ),
    "evidence is none": lambda node: setattr(
        metadata_of(node, carriers.EVIDENCE), "value", "\x1b["
    ),
    "attribute is not UTF-8": lambda node: setattr(node.attribute[0], "s", b"/A\xe7"),
    "tag is cut": lambda node: setattr(node, "doc_string", node.doc_string[:-2]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_carriers_are_written_anew_and_taken_out(damage: str, tagged: Path) -> None:
    whole = {node.tag for node in htp.read_hierarchy(tagged)}
    changed(tagged, DAMAGE[damage])
    inspect(tagged)
    assert htp.tag(tagged).files[0].changed
    assert not htp.tag(tagged).files[0].changed
    assert {node.tag for node in htp.read_hierarchy(tagged)} == whole
    changed(tagged, DAMAGE[damage])
    htp.strip(tagged)
    [node] = onnx.load(tagged).graph.node
    assert not node.metadata_props
    assert not node.attribute


def test_classes_without_scopes_are_the_nodes_own(tmp_path: Path) -> None:
    node = helper.make_node("Neg", ["x"], ["y"], name="/a/Neg")
    node.metadata_props.add(key=carriers.CLASS_HIERARCHY, value="somebody's")
    path = saved(tmp_path / "m.onnx", node)
    before = path.read_bytes()
    htp.tag(path)
    assert not htp.tag(path).files[0].changed
    htp.strip(path)
    assert path.read_bytes() == before


def test_damaged_record_of_the_classes_is_none(tagged: Path) -> None:
    model = onnx.load(tagged)
    for entry in model.metadata_props:
        if entry.key == "modelexport_optimum.classes":
            entry.value = '{"A": [[['
    model.graph.node[0].metadata_props[0].value = "?"
    onnx.save(model, tagged)
    assert htp.tag(tagged).files[0].changed


@pytest.mark.parametrize("path", ["a\nb", "/a", ".".join("a" * 10_000)])
def test_a_module_that_no_tag_can_name_is_refused(path: str) -> None:
    root = tag_grammar.Segment("", "m.Root")
    with pytest.raises(ModelExportError, match="cannot have a tag"):
        carriers.spell((root, tag_grammar.Segment(path, "m.A")))


@pytest.mark.parametrize("scope", ["/a" * 5000, "/a\nb"])
def test_a_name_that_no_scope_has_says_nothing(scope: str, tmp_path: Path) -> None:
    node = helper.make_node("Neg", ["x"], ["y"], name=f"{scope}/Neg")
    path = saved(tmp_path / "m.onnx", node)
    assert htp.tag(path).files[0].modules == {"": "Module"}
    assert [node.module_path for node in htp.read_hierarchy(path)] == [""]


# The file


def test_texts_that_are_not_utf_8_are_told(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", helper.make_node("Neg", ["x"], ["y"], name="/a/Neg"))
    path.write_bytes(path.read_bytes().replace(b"/a/Neg", b"/\xff/Neg"))
    with pytest.raises(InvalidModelError, match="not UTF-8"):
        read_model(path)


def with_node(path: Path, node: bytes) -> Path:
    """Writes a file again with other bytes for its only node."""
    model = onnx.load(path)
    del model.graph.node[:]
    graph = length_delimited(1, node) + model.graph.SerializeToString()
    model.ClearField("graph")
    path.write_bytes(model.SerializeToString() + length_delimited(7, graph))
    assert onnx.load(path).graph.node[0].op_type == "Neg"
    return path


# An empty group of the number 99, and one that holds a field and another group.
GROUPS = [b"\x9b\x06\x9c\x06", b"\x9b\x06\x12\x03abc\x0b\x08\x01\x0c\x9c\x06"]


@pytest.mark.parametrize("group", GROUPS)
def test_groups_are_stepped_over_as_protobuf_does(group: bytes, tmp_path: Path) -> None:
    node = helper.make_node("Neg", ["x"], ["y"], name="/a/Neg")
    strange = length_delimited(1, b"key") + group
    data = node.SerializeToString() + group + length_delimited(9, strange)
    path = with_node(saved(tmp_path / "m.onnx", node), data)
    before = path.read_bytes()
    htp.tag(path)
    assert [node.module_path for node in htp.read_hierarchy(path)] == ["a"]
    htp.strip(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("number", [5, 6, 9])
def test_fields_of_another_wire_type_are_nobodys(number: int, tmp_path: Path) -> None:
    node = helper.make_node("Neg", ["x"], ["y"], name="/a/Neg")
    data = node.SerializeToString() + bytes([number << 3, 7])  # a number
    path = with_node(saved(tmp_path / "m.onnx", node), data)
    before = path.read_bytes()
    htp.tag(path)
    htp.strip(path)
    assert path.read_bytes() == before


def test_node_that_protobuf_reads_and_nobody_can_walk_is_told(tmp_path: Path) -> None:
    node = helper.make_node("Neg", ["x"], ["y"], name="/a/Neg")
    padded = node.SerializeToString().replace(b"\x1a\x06/a/Neg", b"\x9a\x00\x06/a/Neg")
    path = with_node(saved(tmp_path / "m.onnx", node), padded)
    with pytest.raises(InvalidModelError, match=r"m\.onnx.*padded"):
        htp.tag(path)


def test_graphs_nested_deeper_than_protobuf_reads_are_told(tmp_path: Path) -> None:
    message = b""
    for _ in range(2000):
        message = length_delimited(1, length_delimited(5, length_delimited(6, message)))
    start = onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 18)])
    path = tmp_path / "m.onnx"
    path.write_bytes(start.SerializeToString() + length_delimited(7, message))
    with pytest.raises(InvalidModelError, match=r"m\.onnx is not a whole ONNX file"):
        read_model(path)


def test_opset_that_is_none_is_told(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", helper.make_node("Neg", ["x"], ["y"]))
    model = onnx.load(path)
    model.opset_import[0].version = 2**40
    onnx.save(model, path)
    with pytest.raises(InvalidModelError, match="opset"):
        read_model(path)


@pytest.mark.parametrize("dims", [[-1], [2**62, 4]])
def test_shapes_that_no_weights_have_are_told(dims: list[int], tmp_path: Path) -> None:
    weight = onnx.TensorProto(name="w", dims=dims, data_type=1, raw_data=b"1234")
    path = saved(tmp_path / "m.onnx", helper.make_node("Neg", ["x"], ["y"]), initializer=[weight])
    with pytest.raises(InvalidModelError, match="initializer w"):
        read_model(path)


def test_type_that_came_after_this_onnx_is_shown(tmp_path: Path) -> None:
    weight = onnx.TensorProto(name="w", dims=[4], raw_data=b"1234")
    weight.data_type = 99
    node = helper.make_node("Add", ["x", "w"], ["y"], name="/a/Add")
    path = saved(tmp_path / "m.onnx", node, initializer=[weight])
    htp.tag(path)
    assert inspect(path)[0].whole.parameters == 4


# JSON


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"[" * 100_000, "nested too deep"),
        (b'{"a": 1, "a": 2}', "a is given twice"),
        (b'{"a": {"b": 1, "b": 1}}', "b is given twice"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8"),
        (b'"\\ud800"', "surrogate"),
        (b"1" * 5000, "digits"),
        (b"{", "Expecting"),
        (b"", "Expecting"),
    ],
)
def test_json_that_others_read_otherwise_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_json(data)


def test_a_key_that_is_given_twice_is_found_at_once() -> None:
    keys = [*range(20_000), 19_999]
    began = time.process_time()
    with pytest.raises(ValueError, match="19999 is given twice"):
        parse_json("{" + ",".join(f'"{key}": 1' for key in keys) + "}")
    assert time.process_time() - began < 2  # each key was looked for among all: 5 s


def test_json_with_a_byte_order_mark_is_read() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "bert", "hidden_size": "x"},
        {"model_type": "bert", "hidden_size": -1},
        {"model_type": [], "architectures": ["BertModel"]},
        {"model_type": "bert", "architectures": 3},
    ],
)
def test_config_of_no_model_is_told(config: dict[str, object], tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", helper.make_node("Neg", ["x"], ["y"], name="/a/Neg"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    before = path.read_bytes()
    with pytest.raises(ModelExportError, match=r"config\.json"):
        htp.tag(tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "bert", "num_hidden_layers": 10**9},
        {"model_type": "bert", "num_hidden_layers": 100_000, "hidden_size": 12,
         "intermediate_size": 2, "vocab_size": 2, "architectures": ["BertModel"]},
        {"model_type": "bert", "num_labels": 10**12},
        {"model_type": "qwen2", "num_hidden_layers": 1e99},
        {"model_type": "qwen2", "num_hidden_layers": 10**400},
        {"model_type": "resnet", "depths": [2, 10**9], "architectures": ["ResNetModel"]},
    ],
)  # fmt: skip
def test_config_of_more_than_any_model_has_is_told(
    config: dict[str, object], tmp_path: Path
) -> None:
    path = saved(tmp_path / "m.onnx", helper.make_node("Neg", ["x"], ["y"], name="/a/Neg"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    before = path.read_bytes()
    started = time.process_time()
    with pytest.raises(ModelExportError, match=r"config\.json (has|describes)"):
        htp.tag(tmp_path)
    assert time.process_time() - started < 30  # with what is imported; else days
    assert path.read_bytes() == before


# What views read further


@pytest.mark.parametrize("data_type", [1, 127])
def test_data_that_are_not_of_their_shape_or_type_are_told(data_type: int, tmp_path: Path) -> None:
    node = helper.make_node("Add", ["x", "w"], ["y"], name="/a/Add")
    weight = onnx.TensorProto(name="w", dims=[2], data_type=data_type, float_data=[1.0])
    path = saved(tmp_path / "m.onnx", node, initializer=[weight])
    htp.tag(path)
    with pytest.raises(InvalidModelError, match=r"m\.onnx.*'w'"):
        diff(path, path)


def test_field_that_looks_like_our_own_is_told(tmp_path: Path) -> None:
    node = helper.make_node("Softmax", ["x"], ["y"], name="/a/Softmax", axis=0)
    path = saved(tmp_path / "m.onnx", node)
    model = onnx.load(path)
    strange = length_delimited(LEFT_IN_FILE, b"somewhere")
    model.graph.node[0].attribute[0].MergeFromString(strange)
    onnx.save(model, path)
    htp.tag(path)
    with pytest.raises(InvalidModelError, match=r"m\.onnx"):
        diff(path, path)


@pytest.mark.parametrize("place", ["-1", "x", "9" * 5000])
def test_places_of_external_data_that_are_none_are_told(place: str, tmp_path: Path) -> None:
    node = helper.make_node("Add", ["x", "w"], ["y"], name="/a/Add")
    weight = onnx.TensorProto(name="w", dims=[2], data_type=1, raw_data=bytes(8))
    path = saved(tmp_path / "m.onnx", node, initializer=[weight])
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location="m.data", size_threshold=0
    )
    htp.tag(path)
    for key, function in (("offset", lambda: diff(path, path)), ("length", lambda: htp.tag(path))):
        model = onnx.load(path, load_external_data=False)
        for entry in model.graph.initializer[0].external_data:
            if entry.key == key:
                entry.value = place
        onnx.save(model, path)
        with pytest.raises(InvalidModelError, match=r"m\.onnx"):
            function()


@pytest.mark.parametrize("shape", [[2**31, 2**31], [-5]])
def test_inputs_that_no_machine_holds_are_not_made(shape: list[int], tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", helper.make_node("Neg", ["x"], ["y"], name="/a/Neg"))
    model = onnx.load(path)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape))
    onnx.save(model, path)
    htp.tag(path)
    with pytest.raises(ModelExportError, match="--inputs"):
        profile(path)


def test_types_that_nothing_can_infer_are_told(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Unheard", ["x"], ["v"], name="/a/Unheard", domain="of.nobody"),
        helper.make_node("Neg", ["v"], ["y"], name="/b/Neg"),
    ]
    path = saved(tmp_path / "m.onnx", *nodes)
    htp.tag(path)
    with pytest.raises(ModelExportError, match=r"m\.onnx: its types cannot be inferred"):
        extract(path, "a", tmp_path / "part.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


@pytest.fixture
def times(tagged: Path) -> dict[str, object]:
    """What `profile --json` writes of a file, in the parts that a report shows."""
    module = {"module": "", "ms": 1.0, "own_ms": 1.0}
    unplaced = {"op_type": "X", "ms": 1, "kernel_count": 1}
    return {
        "file": str(tagged), "iterations": 1, "run_ms": 1.0, "kernels_ms": 1.0,
        "inputs": [{"name": "x", "type": "float[2]"}], "providers": [{"provider": "CPU"}],
        "modules": [module], "unplaced": [unplaced],
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {}, {"file": "\0"}, {"file": 1}, {"run_ms": "1"}, {"run_ms": 10**400}, {"run_ms": True},
        {"kernels_ms": float("nan")}, {"inputs": {}}, {"providers": [1]}, {"iterations": None},
        {"modules": [{"module": ""}]}, {"modules": [{"module": [], "ms": 1, "own_ms": 1}]},
        {"unplaced": [{"op_type": None, "ms": 1, "kernel_count": 1}]},
    ],
)  # fmt: skip
def test_times_of_another_form_are_refused(
    change: dict[str, object], times: dict[str, object], tagged: Path, tmp_path: Path
) -> None:
    written = tmp_path / "times.json"
    written.write_text(json.dumps({"files": [{**times, **change}]}))
    page = tmp_path / "page.html"
    if not change:
        assert report(tagged, page, profile=written).exists()
        return
    with pytest.raises(UsageError, match=r"times\.json is not the output"):
        report(tagged, page, profile=written)
    assert not page.exists()


@pytest.mark.parametrize("place", [4, 8, 10])
def test_archives_that_are_damaged_are_refused(place: int, tagged: Path, tmp_path: Path) -> None:
    """Its version, the flag that says that it is encrypted, and its compression."""
    archive = tmp_path / "inputs.npz"
    numpy.savez(archive, x=numpy.ones(2, numpy.float32))
    data = bytearray(archive.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + place + 2 * (place == 4)] = 99
    archive.write_bytes(data)
    with pytest.raises(UsageError, match=r"inputs\.npz"):
        profile(tagged, inputs=archive)
