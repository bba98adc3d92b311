"""The pass over a file: bytes, carriers, atomicity, and what it must never touch."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from needs import POSIX
from onnx import TensorProto, helper

from modelexport_optimum import export
from modelexport_optimum.errors import InvalidModelError, ModelExportError
from modelexport_optimum.module_trees.module_tree import Module, ModuleTree
from modelexport_optimum.onnx_file import rewriter
from modelexport_optimum.onnx_file.find import onnx_files
from modelexport_optimum.onnx_file.reader import read_model
from modelexport_optimum.tagging import htp
from modelexport_optimum.tags import carriers, tag_grammar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def bert(exported: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(exported("bert"), tmp_path / "bert")


def small_model(nodes: list[onnx.NodeProto], path: Path, **kwargs: object) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["d"])
    graph = helper.make_graph(nodes, "main", [x], [y], **kwargs)
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


# The carriers


def test_example_of_the_contract(bert: Path) -> None:
    htp.tag(bert)
    [node] = [
        node
        for node in htp.read_hierarchy(bert / "model.onnx")
        if node.name == "/bert/encoder/layer.0/attention/self/query/MatMul"
    ]
    assert node.tag == (
        "/BertForMaskedLM/BertModel.bert/BertEncoder.encoder/BertLayer.layer.0"
        "/BertAttention.attention/BertSdpaSelfAttention.self/Linear.query"
    )
    assert node.module_path == "bert.encoder.layer.0.attention.self.query"
    assert node.module_class == "Linear"
    assert node.evidence == "scope"


def test_metadata_have_the_form_that_dynamo_writes(bert: Path) -> None:
    htp.tag(bert)
    [node] = [
        node
        for node in onnx.load(bert / "model.onnx").graph.node
        if node.name == "/bert/embeddings/word_embeddings/Gather"
    ]
    metadata = {entry.key: entry.value for entry in node.metadata_props}
    assert metadata["pkg.torch.onnx.name_scopes"] == (
        "['', 'bert', 'bert.embeddings', 'bert.embeddings.word_embeddings', 'Gather']"
    )
    assert metadata["pkg.torch.onnx.class_hierarchy"] == (
        "['transformers.models.bert.modeling_bert.BertForMaskedLM', "
        "'transformers.models.bert.modeling_bert.BertModel', "
        "'transformers.models.bert.modeling_bert.BertEmbeddings', "
        "'torch.nn.modules.sparse.Embedding', 'Gather']"
    )
    assert metadata["namespace"] == (
        ": transformers.models.bert.modeling_bert.BertForMaskedLM"
        "/bert: transformers.models.bert.modeling_bert.BertModel"
        "/bert.embeddings: transformers.models.bert.modeling_bert.BertEmbeddings"
        "/bert.embeddings.word_embeddings: torch.nn.modules.sparse.Embedding"
    )


def test_config_gains_its_key_and_loses_it_again(bert: Path) -> None:
    before = (bert / "config.json").read_bytes()
    report = htp.tag(bert)
    described = json.loads((bert / "config.json").read_text())
    metadata = described.pop("htp_metadata")
    assert described == json.loads(before)
    tags = {node.tag for node in htp.read_hierarchy(bert)}
    named = {module for tag in tags for module in tag_grammar.parse_tag(tag) or ()}
    assert metadata["hierarchy_modules"] == len(named) == report.module_count
    assert metadata["module_types"] == sorted({name for _, name in named})
    assert "BertLayer" in metadata["module_types"]  # which owns no node itself
    assert metadata["export_strategy"] == "htp"
    htp.strip(bert)
    assert (bert / "config.json").read_bytes() == before


def test_broken_config_is_told_before_anything_is_written(bert: Path) -> None:
    (bert / "config.json").write_text("{")
    before = contents(bert)
    for function in (htp.tag, htp.strip):
        with pytest.raises(ModelExportError, match=r"config\.json"):
            function(bert)
    assert contents(bert) == before


@pytest.mark.parametrize(
    ("source", "recorded"), [("org/name", "org/name"), (os.fsdecode(b"a\xff"), r"a\udcff")]
)
def test_model_records_who_tagged_it(bert: Path, source: str, recorded: str) -> None:
    htp.tag(bert, source=source)
    metadata = {e.key: e.value for e in onnx.load(bert / "model.onnx").metadata_props}
    assert metadata["modelexport_optimum.source"] == recorded
    for package in ("version", "torch", "transformers", "optimum"):
        assert metadata[f"modelexport_optimum.{package}"]


def test_text_that_was_there_follows_the_tag(tmp_path: Path) -> None:
    path = small_model(
        [
            helper.make_node("Relu", ["x"], ["a"], name="/a/Relu", doc_string="/Not/A.tag\nmine"),
            helper.make_node("Neg", ["a"], ["y"], name="/Neg"),
        ],
        tmp_path / "m.onnx",
    )
    before = path.read_bytes()
    htp.tag(path)
    [first, _] = onnx.load(path).graph.node
    assert first.doc_string == "/Module/Module.a\n/Not/A.tag\nmine"
    htp.strip(path)
    assert path.read_bytes() == before
    assert htp.strip(path) == []
    assert path.read_bytes() == before


def test_a_value_that_was_computed_before_is_no_parameter_of_a_module(tmp_path: Path) -> None:
    """ONNX Runtime makes a constant of `/a/layers.1/Mul` an initializer of the value's name."""
    computed = "/a/layers.1/Mul_output_0"
    path = small_model(
        [
            helper.make_node("Add", ["x", computed], ["sum"], name="Add_7"),
            helper.make_node("Neg", ["sum"], ["y"], name="/b/Neg"),
        ],
        tmp_path / "m.onnx",
        initializer=[helper.make_tensor(computed, TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])],
    )
    before = path.read_bytes()
    assert htp.tag(path).files[0].modules == {"": "Module", "b": "Module"}
    htp.strip(path)
    assert path.read_bytes() == before


def test_strip_after_somebody_saved_the_tagged_model_anew(bert: Path) -> None:
    path = bert / "model.onnx"
    untagged = onnx.load(path)
    htp.tag(bert)
    onnx.save(onnx.load(path), path)
    assert not htp.tag(bert).files[0].changed
    htp.strip(bert)
    assert onnx.load(path) == untagged


def test_tag_is_lossless_and_its_grammar_reads_itself() -> None:
    chain = (
        tag_grammar.Segment("", "m.Root"),
        tag_grammar.Segment("a.0", "m.A"),
        tag_grammar.Segment("a.0.x/y", "m.B"),
    )
    assert tag_grammar.format_tag(chain) == "/Root/A.a.0/B.x/y"
    assert tag_grammar.parse_tag("/Root/A.a.0/B.x/y") == (
        ("", "Root"),
        ("a.0", "A"),
        ("a.0.x/y", "B"),
    )
    assert tag_grammar.parse_tag("no tag") is None
    assert tag_grammar.parse_tag("") is None


# Where the attribute stands


def test_attribute_is_left_out_where_it_would_change_what_is_built(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Neg", ["x"], ["n0"], name="/a/Neg"),
        helper.make_node("Neg", ["x"], ["n1"], name="/b/Neg"),  # the same, in another module
        helper.make_node("Abs", ["x"], ["n2"], name="/a/Abs"),
        helper.make_node("Abs", ["x"], ["n3"], name="/a/Abs_1"),  # the same, in the same module
        helper.make_node("Relu", ["n0"], ["n4"], name="/a/Relu"),  # copied by a fusion
        helper.make_node("Sum", ["n1", "n2", "n3", "n4"], ["y"], name="/Sum"),
    ]
    path = small_model(nodes, tmp_path / "m.onnx")
    htp.tag(path)
    carry = {
        node.name
        for node in onnx.load(path).graph.node
        if any(attribute.name == carriers.ATTRIBUTE for attribute in node.attribute)
    }
    assert carry == {"/a/Abs", "/a/Abs_1", "/Sum"}


# Nodes without a scope


def test_what_prepares_and_what_passes_on(tmp_path: Path) -> None:
    tree = ModuleTree(
        {path: Module(path, f"m.{name}", path) for path, name in
         [("", "Root"), ("a", "A"), ("a.l", "L"), ("a.r", "R"), ("b", "B")]},
        {"a.l.weight": (3,), "b.tied": (3,)},
    )  # fmt: skip
    weight = helper.make_tensor("a.l.weight", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    one = helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])
    nodes = [
        helper.make_node("Identity", ["a.l.weight"], ["b.tied"], name="Identity_0"),
        helper.make_node("Constant", [], ["c0"], name="Constant_1", value=one),
        helper.make_node("Neg", ["c0"], ["c1"], name="Neg_2"),
        helper.make_node("Constant", [], ["c2"], name="Constant_3", value=one),
        helper.make_node("Mul", ["x", "a.l.weight"], ["v0"], name="/a/l/Mul"),
        helper.make_node("Neg", ["v0"], ["v1"], name="Neg_5"),
        helper.make_node("Add", ["v1", "c1"], ["v2"], name="/a/r/Add"),
        helper.make_node("Mul", ["v2", "c2"], ["v3"], name="/a/l_1/Mul"),
        helper.make_node("Add", ["v3", "c2"], ["v4"], name="/a/r_1/Add"),
        helper.make_node("Abs", ["v4"], ["v5"], name="Abs_9"),
        helper.make_node("Mul", ["v5", "b.tied"], ["v6"], name="/b/Mul"),
        helper.make_node("Neg", ["v6"], ["y"], name="Neg_11"),
    ]
    path = small_model(nodes, tmp_path / "m.onnx", initializer=[weight])
    htp.tag(path, model=tree)
    placed = {node.name: (node.module_path, node.evidence) for node in htp.read_hierarchy(path)}
    assert placed["Identity_0"] == ("b", "parameter")  # it carries the parameter of b
    assert placed["Constant_1"] == ("a.r", "data flow")  # and the chain that prepares it
    assert placed["Neg_2"] == ("a.r", "data flow")
    assert placed["Constant_3"] == ("a", "data flow")  # two users: their common ancestor
    assert placed["Neg_5"] == ("a", "data flow")  # l feeds it and r reads it
    assert placed["/a/l_1/Mul"] == ("a.l", "scope")
    assert placed["Abs_9"] == ("", "data flow")
    assert placed["Neg_11"] == ("b", "data flow")


# Files


def test_external_data_is_not_touched(bert: Path, tmp_path: Path) -> None:
    path = bert / "model.onnx"
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    data = bert / "model.onnx_data"
    before, status = path.read_bytes(), data.stat()
    assert htp.tag(bert).files[0].changed
    after = data.stat()
    assert (after.st_ino, after.st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    onnx.checker.check_model(str(path))
    htp.strip(bert)
    assert path.read_bytes() == before
    data.rename(tmp_path / "elsewhere")
    with pytest.raises(InvalidModelError, match=r"model\.onnx_data"):
        htp.tag(bert)


def test_file_that_its_tags_would_make_too_long_is_refused(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bert / "model.onnx"
    before = contents(bert)
    # A file of 2 GB takes longer than the suite may: the limit comes to the file.
    monkeypatch.setattr(rewriter, "MAX_MESSAGE_BYTES", path.stat().st_size + 1000)
    with pytest.raises(ModelExportError, match="protobuf's limit"):
        htp.tag(bert)
    assert contents(bert) == before


def test_weights_in_a_branch_and_in_a_constant_are_stepped_over(tmp_path: Path) -> None:
    big = helper.make_tensor("big", TensorProto.FLOAT, [40_000], np.zeros(40_000, np.float32))
    inner = helper.make_graph(
        [
            helper.make_node("Constant", [], ["c"], name="/a/Constant", value=big),
            helper.make_node("ReduceSum", ["c"], ["r"], name="/a/ReduceSum"),
        ],
        "branch",
        [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, [1])],
    )
    condition = helper.make_tensor("condition", TensorProto.BOOL, [], [True])
    path = small_model(
        [helper.make_node("If", ["condition"], ["y"], then_branch=inner, else_branch=inner)],
        tmp_path / "m.onnx",
        initializer=[condition],
    )
    before = path.read_bytes()
    assert htp.tag(path).node_count == 5
    onnx.checker.check_model(str(path))
    placed = Counter(node.module_path for node in htp.read_hierarchy(path))
    assert placed == {"a": 5}
    graphs = {node.graph for node in htp.read_hierarchy(path)}
    assert graphs == {"", "If.then_branch", "If.else_branch"}
    htp.strip(path)
    assert path.read_bytes() == before


def test_padded_lengths_come_back(tmp_path: Path) -> None:
    """Some writers reserve a fixed width for a message's length before they know it."""
    path = small_model([helper.make_node("Neg", ["x"], ["y"], name="/a/Neg")], tmp_path / "m.onnx")
    data = path.read_bytes()
    model = read_model(path)
    [(key, start, _)] = model.graph.enclosing
    length = int.from_bytes(data[key + 1 : start], "little")
    assert length < 0x80
    path.write_bytes(data[: key + 1] + bytes([length | 0x80, 0x80, 0x80, 0]) + data[start:])
    before = path.read_bytes()
    assert onnx.load(path).graph.node[0].name == "/a/Neg"
    htp.tag(path)
    assert onnx.load(path).graph.node[0].doc_string == "/Module/Module.a"
    htp.strip(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("cut", [1, 100, 5_000, -1])
def test_truncated_file_is_refused(bert: Path, cut: int) -> None:
    path = bert / "model.onnx"
    path.write_bytes(path.read_bytes()[:cut])
    before = contents(bert)
    with pytest.raises(InvalidModelError, match=r"model\.onnx"):
        htp.tag(bert)
    assert contents(bert) == before


@POSIX
def test_mode_is_kept(bert: Path) -> None:
    path = bert / "model.onnx"
    path.chmod(0o640)
    htp.tag(bert)
    assert path.stat().st_mode & 0o777 == 0o640


KILLED = """
import sys, time
from modelexport_optimum.onnx_file import rewriter
from modelexport_optimum.tagging import htp
from modelexport_optimum.module_trees.module_tree import Module, ModuleTree
copy = rewriter._copy
def slow(*arguments):
    print("copying", flush=True)
    time.sleep(60)
rewriter._copy = slow
rewriter.WINDOW_BYTES = 1
htp.tag(sys.argv[1], model=ModuleTree({"": Module("", "m.Root", "")}))
"""


def test_killed_while_it_writes_the_old_file_is_there(bert: Path) -> None:
    path = bert / "model.onnx"
    before = path.read_bytes()
    process = subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"copying\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert path.read_bytes() == before
    assert [file.name for file in onnx_files(bert)] == ["model.onnx"]
    assert htp.tag(bert).files[0].changed


def test_time_grows_with_the_nodes(tmp_path: Path) -> None:
    """No more than linearly: four times the nodes in less than eight times the time."""
    seconds = []
    for count in (5_000, 20_000):
        nodes = []
        for index in range(count):
            value = f"v{index + 1}" if index < count - 1 else "y"
            name = f"/layers.{index // 20}/Neg_{index % 20}" if index % 3 else f"Neg_{index}"
            nodes.append(
                helper.make_node("Neg", [f"v{index}" if index else "x"], [value], name=name)
            )
        path = small_model(nodes, tmp_path / f"{count}.onnx")
        start = time.process_time()
        htp.tag(path)
        seconds.append(time.process_time() - start)
    assert seconds[1] < 8 * seconds[0]


# Exported by us


@pytest.mark.parametrize("name", ["bert", "t5", "musicgen"])
def test_stripped_export_is_what_optimum_writes(
    name: str,
    model_directory: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    import zoo
    from optimum.exporters.onnx import main_export

    [row] = [row for row in zoo.ARCHITECTURES if row.name == name]
    source = model_directory(name)
    options = row.arguments(source)
    # In this process, as ours: PyTorch's numbers in names depend on what was exported before.
    main_export(str(source), tmp_path / "plain", task=row.task, do_validation=False, **options)
    export(source, tmp_path / "ours", task=row.task, **options)
    htp.strip(tmp_path / "ours")
    for file in onnx_files(tmp_path / "plain"):
        assert (tmp_path / "ours" / file.name).read_bytes() == file.read_bytes()
