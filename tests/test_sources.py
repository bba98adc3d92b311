"""Exports of transformers 5: its own exporter's, fused for ONNX Runtime and not.

They run in the environment of ``make test-sources``, which has no Optimum. The witness of a node
with PyTorch's record is this record; of a fused one, the unfused graph of the same export.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest

pytest.importorskip("transformers.exporters", reason="needs transformers 5: make test-sources")

import torch
import transformers
import transformers_exports as exports
from replaced_nodes import Replaced, is_whole, record
from typer.testing import CliRunner

import modelexport_optimum as package
from modelexport_optimum.cli.main import app
from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.system.packages import OTHER_EXPORTER
from modelexport_optimum.tagging import htp

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The export of a model of the table, by its name. Not to be written to."""
    made: dict[str, Path] = {}

    def directory(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("exports") / name
            exports.export(name, made[name])
        return made[name]

    return directory


@pytest.mark.parametrize("name", exports.MODELS)
def test_every_node_is_where_pytorch_called_it(
    name: str, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    judge(shutil.copytree(exported(name), tmp_path / name))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_every_node_of_a_graph_of_any_size_is_there_too(name: str, tmp_path: Path) -> None:
    """Its attentions are fused with the cache, the lengths of which are computed by new nodes."""
    exports.export(name, tmp_path, dynamic=True)
    judge(tmp_path)


def judge(directory: Path) -> None:
    """Compare every node of an export with PyTorch's record, and fused ones with the unfused."""
    modules = json.loads((directory / "modules.txt").read_text())
    unfused = onnx.load(directory / exports.UNFUSED / "model.onnx", load_external_data=False).graph
    for file in sorted(directory.rglob("model.onnx")):
        before = file.read_bytes()
        graph = onnx.load(file, load_external_data=False).graph  # as it is without our records
        report = htp.tag(file).files[0]
        assert report.classes_known
        nodes = list(htp.read_hierarchy(file))
        wrong = {n.module: n.module_class for n in nodes if modules.get(n.module) != n.module_class}
        assert wrong == {}
        for node, tagged in zip(graph.node, nodes, strict=False):
            if is_whole(node):
                assert tagged.module == record(node)[-1], node.name
        assert not htp.tag(file).files[0].changed
        written = onnx.load(file, load_external_data=False).graph.node
        for node, tagged in zip(written, nodes, strict=False):
            assert record(node)[-1] == tagged.module, node.name
            metadata = {entry.key: entry.value for entry in node.metadata_props}
            assert len(metadata) == len(node.metadata_props)
            groups = re.sub(r"@\d+", "", metadata["namespace"]).split("/")
            # PyTorch's own ends with the operation, ours with the module.
            assert tagged.module in [group.partition(": ")[0] for group in groups[-2:]]
        if file.parent.name == exports.UNFUSED:  # it knows no operator of ONNX Runtime
            onnx.checker.check_model(str(file))
        else:
            counts = fused_nodes(unfused, graph, nodes)
            assert counts["wrong"] == 0
            # Of those whose own values tell what they replaced, nearly all are on the nearest one.
            assert counts["nearest"] >= 0.8 * (counts["nearest"] + counts["coarser"])
        htp.strip(file)
        assert file.read_bytes() == before


def fused_nodes(
    unfused: onnx.GraphProto, fused: onnx.GraphProto, nodes: list[htp.NodeTag]
) -> Counter[str]:
    """Compare the fused nodes' modules with those of what they replaced."""
    replaced = Replaced(unfused, fused)
    counts = Counter[str]()
    for node, tagged in zip(fused.node, nodes, strict=False):
        found = None if is_whole(node) else replaced.judge(node, tagged.module)
        if found is None:
            continue
        counts[found] += 1
        if found == "wrong":
            print(f"{node.op_type} {node.name} is on {tagged.module or 'the root'}")
        assert found != "coarser" or tagged.module, f"{node.op_type} {node.name} is on the root"
    return counts


def test_witness_sees_a_fused_node_on_another_layer(exported: Callable[[str], Path]) -> None:
    graphs = [
        onnx.load(exported("llama") / file, load_external_data=False).graph
        for file in (f"{exports.UNFUSED}/model.onnx", "cuda/model.onnx")
    ]
    replaced = Replaced(*graphs)
    layers = [f"model.layers.{number}.self_attn" for number in (0, 1)]
    judged = [
        [replaced.judge(node, layer) for layer in layers]
        for node in graphs[1].node
        if node.op_type == "Split"  # of the packed query, key and value, and of the MLP's two
    ]
    assert judged == [
        ["nearest", "wrong"], ["wrong", "wrong"], ["wrong", "nearest"], ["wrong", "wrong"],
    ]  # fmt: skip


def test_parts_for_generation_stand_in_the_model(tmp_path: Path) -> None:
    parts = exports.export_for_generation(tmp_path)
    modules = json.loads((tmp_path / "modules.txt").read_text())
    files = {part: tmp_path / f"{part}.onnx" for part in parts}
    before = {file: file.read_bytes() for file in files.values()}
    graphs = {part: onnx.load(file, load_external_data=False).graph for part, file in files.items()}
    htp.tag(tmp_path)
    for part, base in parts.items():
        for node, tagged in zip(graphs[part].node, htp.read_hierarchy(files[part]), strict=True):
            assert tagged.tag.startswith("/Qwen2AudioForConditionalGeneration")
            assert modules[tagged.module] == tagged.module_class
            if is_whole(node):
                path = ".".join(name for name in (base, record(node)[-1]) if name)
                assert tagged.module == path, node.name
    assert not any(report.changed for report in htp.tag(tmp_path).files)
    htp.strip(tmp_path)
    assert {file: file.read_bytes() for file in files.values()} == before
    # One alone is the same, and without a description of the whole each is a root of its own.
    htp.tag(files["lm_head"])
    assert [node.module for node in htp.read_hierarchy(files["lm_head"])] == ["lm_head"]
    htp.strip(tmp_path)
    (tmp_path / "config.json").unlink()
    htp.tag(tmp_path)
    roots = {part: next(htp.read_hierarchy(file)).tag.split("/")[1] for part, file in files.items()}
    assert roots["audio_encoder"] == "Qwen2AudioEncoder"
    assert roots["lm_head"] == "Linear"
    assert not any(report.changed for report in htp.tag(tmp_path).files)


@pytest.mark.parametrize("source", ["cpu", exports.UNFUSED])
@pytest.mark.parametrize("name", ["bert", "swin"])
def test_quantized_nodes_are_where_what_they_replaced_was(
    name: str, source: str, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    path = exported(name) / ("" if source == "cpu" else source) / "model.onnx"
    exports.quantize(path, tmp_path / "quantized", name, dynamic=True)
    file = tmp_path / "quantized" / "model.onnx"
    modules = json.loads((exported(name) / "modules.txt").read_text())
    unfused, quantized = (
        onnx.load(one, load_external_data=False).graph
        for one in (exported(name) / exports.UNFUSED / "model.onnx", file)
    )
    before = file.read_bytes()
    htp.tag(file)
    nodes = list(htp.read_hierarchy(file))
    assert all(modules[node.module] == node.module_class for node in nodes)
    replaced = Replaced(unfused, quantized)
    judged: dict[str, list[str]] = {}
    for node, tagged in zip(quantized.node, nodes, strict=True):
        if not is_whole(node) and (found := replaced.judge(node, tagged.module)):
            judged.setdefault(found, []).append(node.name)
            # The last Linear has nothing left that tells its module.
            assert tagged.module or "logits" in node.output, node.name
    assert "wrong" not in judged
    assert len(judged["nearest"]) > len(judged["coarser"])
    htp.strip(file)
    assert file.read_bytes() == before


def test_tags_change_nothing_in_what_runs(exported: Callable[[str], Path], tmp_path: Path) -> None:
    directory = shutil.copytree(exported("llama"), tmp_path / "llama")
    outputs = []
    for tagged in (False, True):
        if tagged:
            htp.tag(directory)
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"optimized-{tagged}.onnx")
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(directory / "model.onnx", options)
        feed = {key: value.numpy() for key, value in exports.TEXT.items()}
        outputs.append(session.run(None, feed))
    for before, after in zip(*outputs, strict=True):
        assert np.array_equal(before, after)
    counts = [
        Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
        for path in (tmp_path / "optimized-False.onnx", tmp_path / "optimized-True.onnx")
    ]
    assert counts[0] == counts[1]


# Everything else on such an export, without Optimum


@pytest.fixture
def bert(exported: Callable[[str], Path], tmp_path: Path) -> Path:
    directory = shutil.copytree(exported("bert"), tmp_path / "bert")
    htp.tag(directory / "model.onnx")
    htp.tag(directory / exports.UNFUSED)
    return directory


def test_verify_runs_plain_sessions_and_reads_export_json(bert: Path) -> None:
    report = package.verify(bert, providers=["cpu"])
    checks = {check.name: (check.status, check.message) for check in report.checks}
    assert report.ok, checks
    assert checks["export.json"] == ("ok", "BertForSequenceClassification")
    assert checks["dimensions"][0] == "ok"
    assert checks["architectures"][0] == "unavailable"
    assert "Optimum" in checks["architectures"][1]
    (result,) = report.providers
    assert (result.status, result.ran, result.ort_class) == ("ok", "session", None)
    manifest = json.loads((bert / "export.json").read_text())
    manifest["components"]["model"]["metadata"]["kwargs"]["input_ids"]["dtype"] = "int32"
    (bert / "export.json").write_text(json.dumps(manifest))
    wrong = {check.name: check for check in package.verify(bert, providers=["cpu"]).checks}
    assert wrong["export.json"].status == "failed"
    assert "takes input_ids as int64 of rank 2" in wrong["export.json"].message


def test_config_json_gains_the_hierarchy(bert: Path) -> None:
    described = json.loads((bert / "config.json").read_text())["htp_metadata"]
    assert "BertSelfOutput" in described["module_types"]


def test_views_read_it(bert: Path, tmp_path: Path) -> None:
    unfused = bert / exports.UNFUSED
    (view,) = package.inspect(bert / "model.onnx", modules=["bert.encoder.layer.0"])
    assert {node.module.path for node in view.nodes} >= {
        "bert.encoder.layer.0.attention.self",
        "bert.encoder.layer.0.attention.output",
    }
    assert package.diff(unfused / "model.onnx", bert / "model.onnx").to_dict()
    cut = package.extract(
        bert / "model.onnx", module="bert.encoder.layer.0", output=tmp_path / "cut.onnx"
    )
    onnxruntime.InferenceSession(cut.file)
    assert package.profile(bert / "model.onnx", iterations=2).to_dict()
    compared = package.compare(unfused / "model.onnx", bert / "model.onnx")
    assert compared.to_dict()["modules"]


def test_what_needs_optimum_says_so_in_one_line(bert: Path, tmp_path: Path) -> None:
    for work in (
        lambda: package.export(bert, tmp_path / "out"),
        lambda: package.compare(bert, model=bert),
    ):
        with pytest.raises(ModelExportError, match=r"^Optimum's exporter is not installed") as told:
            work()
        assert "transformers.exporters" in str(told.value)


def test_commands_for_a_model_that_optimum_cannot_export(tmp_path: Path) -> None:
    """Those that the error names, on a model of which Optimum 0.1.0 knows nothing."""
    export, tag = re.findall("`(.*?)`", OTHER_EXPORTER)
    model, inputs = exports.model_of("mixtral")
    directory = tmp_path / "DIR"
    names = {"transformers": transformers, "model": model, "inputs": inputs}
    eval(export.replace("DIR", str(directory)), names)
    program, *arguments = shlex.split(tag.replace("DIR", str(directory)))
    assert program == "modelexport-optimum"
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    modules = {node.module for node in package.read_hierarchy(directory)}
    assert {"model.layers.1.self_attn.q_proj", "model.norm"} <= modules
    assert package.verify(directory, providers=["cpu"]).ok


def test_classes_are_known_from_the_config_alone(bert: Path) -> None:
    """As for a graph whose nodes have no record: the model is built without weights."""
    from modelexport_optimum.module_trees.model_classes import candidates

    (found,) = candidates(bert)
    tree = found.tree()
    model, _ = exports.model_of("bert")
    assert {p: m.module_class for p, m in tree.modules.items()} == {
        p: type(m).__name__ for p, m in model.named_modules(remove_duplicate=False)
    }
    shapes = {n: tuple(t.shape) for n, t in model.named_parameters(remove_duplicate=False)}
    assert shapes.items() <= tree.tensors.items()
    assert isinstance(found.tree().build(), torch.nn.Module)


def test_generation_is_run_with_a_cache_that_transformers_does_not_know() -> None:
    """Whisper of transformers 5 cannot return the logits then, as it is with Optimum's models."""
    from modelexport_optimum.verifying.inference import NEW_TOKENS, infer

    model, inputs = exports.model_of("whisper")
    inputs = {"input_features": inputs["input_features"]}
    expected = model.generate(
        **inputs, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, do_sample=False,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    whisper = type(model)

    class Foreign(whisper):  # type: ignore[misc, valid-type]
        @functools.wraps(whisper.forward)
        def forward(self, **kwargs: Any) -> Any:
            known = kwargs.pop("cache", None)
            answer = super().forward(**kwargs, cache=getattr(known, "known", known))
            length = answer.cache.get_seq_length
            answer.cache = SimpleNamespace(known=answer.cache, get_seq_length=length)
            return answer

    model.__class__ = Foreign
    with pytest.raises(AttributeError, match="self_attention_cache"):
        model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True)
    model.encoder = model.model.encoder
    model.encoder.session = None
    arrays = {name: value.numpy() for name, value in inputs.items()}
    plan = SimpleNamespace(library="transformers", file_of=str, inputs={"None": arrays})
    kind, outputs = infer(plan, model)
    assert kind == "generate"
    assert np.array_equal(outputs.pop("tokens"), expected.sequences[:, -NEW_TOKENS:])
    assert list(outputs) == [f"logits.{step}" for step in range(NEW_TOKENS)]
    for array, logits in zip(outputs.values(), expected.logits, strict=True):
        assert np.array_equal(array, logits)


def test_weights_that_are_made_up_are_named(tmp_path: Path) -> None:
    """Transformers 5 says it in a table."""
    from modelexport_optimum.exporting.missing_weights import missing_weights_recorded

    model, _ = exports.model_of("bert")
    model.bert.save_pretrained(tmp_path)
    warnings: list[str] = []
    with missing_weights_recorded(warnings):
        type(model).from_pretrained(tmp_path)
    (warning,) = warnings
    assert warning.startswith(f"BertForSequenceClassification of {tmp_path}: newly initialized: ")
    assert {*warning.rpartition(": ")[2].split(", ")} == {"classifier.bias", "classifier.weight"}
