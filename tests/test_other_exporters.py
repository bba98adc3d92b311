"""Graphs not straight from the TorchScript exporter: dynamo's, optimized, quantized."""

from __future__ import annotations

import ast
import shutil
import tracemalloc
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper
from optimum.exporters.onnx import main_export

from modelexport_optimum.attribution import export_record
from modelexport_optimum.tagging import htp
from modelexport_optimum.tags import carriers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def tagged(exported: Callable[[str], Path], tmp_path: Path) -> Path:
    directory = shutil.copytree(exported("bert"), tmp_path / "tagged")
    htp.tag(directory)
    return directory


def modules(model_class: str, directory: Path) -> dict[str, str]:
    config = transformers.AutoConfig.from_pretrained(directory)
    model = getattr(transformers, model_class)(config)
    return {p: type(m).__name__ for p, m in model.named_modules(remove_duplicate=False)}


# PyTorch's dynamo exporter


@pytest.mark.parametrize(
    ("config_class", "model_class"),
    [("BertConfig", "BertForSequenceClassification"), ("AlbertConfig", "AlbertForMaskedLM")],
)
@pytest.mark.parametrize("with_config", [True, False])
def test_dynamo_graph_is_read_from_its_own_record(
    config_class: str, model_class: str, with_config: bool, tmp_path: Path
) -> None:
    config = getattr(transformers, config_class)(
        vocab_size=64,
        embedding_size=16,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        attn_implementation="eager",
    )
    model = getattr(transformers, model_class)(config).eval()
    ids = torch.ones(2, 8, dtype=torch.long)
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        model, (ids, ids), path, dynamo=True, external_data=False, verbose=False,
        input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    if with_config:
        config.save_pretrained(tmp_path)
    before = path.read_bytes()
    report = htp.tag(path)
    assert set(report.evidence_counts) == {"tracer"}
    expected = {p: type(m).__name__ for p, m in model.named_modules(remove_duplicate=False)}
    recorded = {
        node.name: ast.literal_eval(entry.value)[-2]
        for node in onnx.load(path).graph.node
        for entry in node.metadata_props
        if entry.key == "pkg.torch.onnx.name_scopes"
    }
    for node in htp.read_hierarchy(path):
        assert expected[node.module_path] == node.module_class
        assert node.module_path == recorded[node.name]
        assert node.tag.startswith(f"/{model_class}")
    onnx.checker.check_model(str(path))
    assert not htp.tag(path).files[0].changed
    htp.strip(path)
    assert path.read_bytes() == before


def test_what_was_fused_with_an_addition_of_the_graphs_input_is_around_both(tmp_path: Path) -> None:
    """As the first layer's norm, where a part of a model is exported that takes embeddings."""
    project = helper.make_node("MatMul", ["x", "layer.proj.weight"], ["linear"], name="project")
    norm = helper.make_node(
        "SkipSimplifiedLayerNormalization", ["linear", "x", "layer.norm.weight"], ["mul"],
        name="norm", domain="com.microsoft",
    )  # fmt: skip
    norm.metadata_props.add(key=export_record.REWRITTEN, value="SkipRmsNorm, RmsNormFusion1")
    for node, name, value in ((project, "proj", "linear"), (norm, "norm", "mul")):
        scopes = ["", "layer", f"layer.{name}", value]
        node.metadata_props.add(key=carriers.NAME_SCOPES, value=repr(scopes))
        classes = ["m.Root", "m.Layer", "m.Part", "aten.any.default"]
        node.metadata_props.add(key=carriers.CLASS_HIERARCHY, value=repr(classes))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2]) for n in ("x", "mul")]
    weights = {"layer.proj.weight": np.eye(2), "layer.norm.weight": np.ones(2)}
    graph = helper.make_graph(
        [project, norm], "g", ends[:1], ends[1:],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    htp.tag(tmp_path / "model.onnx")
    placed = {node.name: node.module for node in htp.read_hierarchy(tmp_path / "model.onnx")}
    assert placed == {"project": "layer.proj", "norm": "layer"}


def test_record_that_leads_elsewhere_is_set_aside(tmp_path: Path) -> None:
    """Viewers and other tools find in its place the module that the tag names."""
    records = [
        ("['', 'a', 'x']", "['m.Root', 'm.A', 'aten.relu.default']"),
        ("['y']", "['aten.index_put.default']"),  # as torch.export leaves what it adds itself
        ("['', 'a', 'out']", "['m.Root', 'm.A', 'aten.relu.default']"),
    ]
    names = ["in", "x", "y", "out"]
    nodes = []
    for before, after, (scopes, classes) in zip(names, names[1:], records, strict=False):
        nodes.append(helper.make_node("Relu", [before], [after], name=f"node_{after}"))
        namespace = f"{after}: aten.relu.default"
        for key, value in (
            ("namespace", namespace), (carriers.CLASS_HIERARCHY, classes), ("other", "kept"),
            (carriers.NAME_SCOPES, scopes),
        ):  # fmt: skip
            nodes[-1].metadata_props.add(key=key, value=value)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("in", "out")]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:])), path)
    before = path.read_bytes()
    htp.tag(path)
    assert [node.module for node in htp.read_hierarchy(path)] == ["a", "a", "a"]
    onnx.checker.check_model(str(path))
    tagged = [
        [(entry.key, entry.value) for entry in node.metadata_props]
        for node in onnx.load(path).graph.node
    ]
    assert [dict(entries)[carriers.NAME_SCOPES] for entries in tagged] == [
        "['', 'a', 'x']", "['', 'a', 'node_y']", "['', 'a', 'out']",
    ]  # fmt: skip
    assert dict(tagged[1])["namespace"] == ": m.Root/a: m.A"
    assert dict(tagged[1])[f"{carriers.ASIDE}namespace"] == "y: aten.relu.default"
    assert all(len(dict(entries)) == len(entries) for entries in tagged)
    assert not htp.tag(path).files[0].changed
    htp.strip(path)
    assert path.read_bytes() == before


# Optimized during the export


@pytest.mark.parametrize(
    "options", [{"optimize": o} for o in ("O1", "O2", "O3")] + [{"slim": True}]
)
def test_optimized_exports(
    options: dict[str, object], model_directory: Callable[[str], Path], tmp_path: Path
) -> None:
    main_export(
        str(model_directory("bert")), tmp_path, task="fill-mask", do_validation=False, **options
    )
    path = tmp_path / "model.onnx"
    before = path.read_bytes()
    report = htp.tag(path)
    assert report.classes_known
    expected = modules("BertForMaskedLM", tmp_path)
    placed = {}
    for node in htp.read_hierarchy(path):
        assert expected[node.module_path] == node.module_class
        placed[node.name] = node
    # What kept its own name is where it was; a fused node is on a module around what it fuses.
    for name, node in placed.items():
        if name.startswith("/bert/encoder/layer.1/") and "_output_" not in name:
            assert node.module_path.startswith("bert.encoder.layer.1"), node
    deep = sum(len(node.module_path.split(".")) > 3 for node in placed.values())
    assert deep >= len(placed) / 2
    htp.strip(path)
    assert path.read_bytes() == before


# Changed after it was tagged


def optimized(path: Path, level: str = "ENABLE_EXTENDED") -> Path:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
    target = path.with_name("optimized.onnx")
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return target


@pytest.mark.parametrize("alone", [True, False])
def test_hierarchy_survives_onnx_runtimes_optimizer(
    alone: bool, tagged: Path, tmp_path: Path
) -> None:
    before = {node.name: node for node in htp.read_hierarchy(tagged / "model.onnx")}
    target = optimized(tagged / "model.onnx")
    if alone:  # without a config, the tags that survived are all there is
        target = target.rename(tmp_path / "alone.onnx")
    assert all(not node.metadata_props for node in onnx.load(target).graph.node)
    report = htp.tag(target)
    assert report.classes_known
    assert report.evidence_counts["carrier"] > report.node_count / 2
    expected = modules("BertForMaskedLM", tagged)
    namespaces = {
        entry.value
        for node in onnx.load(tagged / "model.onnx").graph.node
        for entry in node.metadata_props
        if entry.key == "namespace"
    }
    for node in htp.read_hierarchy(target):
        assert expected[node.module_path] == node.module_class
        if node.evidence == "carrier":
            assert node.tag == before[node.name].tag
    for proto in onnx.load(target).graph.node:
        metadata = {entry.key: entry.value for entry in proto.metadata_props}
        if metadata["modelexport_optimum.evidence"] == "carrier":
            assert metadata["namespace"] in namespaces
    assert not htp.tag(target).files[0].changed


def test_fused_node_is_on_a_module_around_what_it_fuses(tagged: Path) -> None:
    target = optimized(tagged / "model.onnx")
    htp.tag(target)
    fused = {n.module_path for n in htp.read_hierarchy(target) if n.op_type == "BiasGelu"}
    # The bias of a Linear and the activation beside it.
    assert fused == {
        "bert.encoder.layer.0.intermediate",
        "bert.encoder.layer.1.intermediate",
        "cls.predictions.transform",
    }


def test_model_quantized_afterwards_keeps_its_hierarchy(tagged: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    target = tagged / "quantized.onnx"
    quantize_dynamic(tagged / "model.onnx", target)
    before = {node.name: node for node in htp.read_hierarchy(tagged / "model.onnx")}
    report = htp.tag(target)
    expected = modules("BertForMaskedLM", tagged)
    kept = 0
    for node in htp.read_hierarchy(target):
        assert expected[node.module_path] == node.module_class
        if node.name in before:
            assert node.tag == before[node.name].tag
            kept += 1
    assert kept > report.node_count / 2
    own = Counter(n.op_type for n in htp.read_hierarchy(target) if n.name not in before)
    assert own["MatMulInteger"]
    for node in htp.read_hierarchy(target):
        if node.op_type == "MatMulInteger":
            origin = before[node.name.removesuffix("_quant")]
            assert origin.module_path.startswith(node.module_path)
            assert node.module_path


def test_model_quantized_without_tags(exported: Callable[[str], Path], tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    directory = shutil.copytree(exported("bert"), tmp_path / "bert")
    quantize_dynamic(directory / "model.onnx", directory / "quantized.onnx")
    (directory / "model.onnx").unlink()
    report = htp.tag(directory)
    assert report.classes_known
    expected = modules("BertForMaskedLM", directory)
    nodes = list(htp.read_hierarchy(directory))
    assert all(expected[node.module_path] == node.module_class for node in nodes)
    queries = [n for n in nodes if "layer.0/attention/self/query" in n.name and "quant" in n.name]
    assert queries
    assert all("layer.0.attention.self" in node.module_path for node in queries)


def test_long_chain_of_nodes_without_record_is_not_followed(tmp_path: Path) -> None:
    """The memory of the pass grows with the nodes, whatever a file records and what it does not."""
    length = 2000
    weights = {f"w{i}": np.eye(2, dtype=np.float32) for i in range(length)}
    nodes = [helper.make_node("MatMul", [f"v{i}", f"w{i}"], [f"v{i + 1}"]) for i in range(length)]
    last = helper.make_node("Relu", [f"v{length}"], ["out"], name="end")
    last.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'a', 'relu']")
    classes = "['m.Root', 'm.A', 'aten.relu.default']"
    last.metadata_props.add(key="pkg.torch.onnx.class_hierarchy", value=classes)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("v0", "out")
    ]
    graph = helper.make_graph(
        [*nodes, last], "chain", ends[:1], ends[1:],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    tracemalloc.start()
    try:
        htp.tag(tmp_path / "model.onnx")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000 * length
    assert [*htp.read_hierarchy(tmp_path / "model.onnx")][-1].module == "a"
