"""Exports of transformers 5: its own exporter's, fused for ONNX Runtime and not.

They run in the environment of ``make test-sources``, which has no Optimum. The witness of a node
with PyTorch's record is this record; of a fused one, the unfused graph of the same export.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest

pytest.importorskip("transformers.exporters", reason="needs transformers 5: make test-sources")

import torch
import transformers_exports as exports
from replaced_nodes import Replaced, is_whole, record

import modelexport_optimum as package
from modelexport_optimum.errors import ModelExportError
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
    directory = shutil.copytree(exported(name), tmp_path / name)
    modules = json.loads((directory / "modules.txt").read_text())
    graphs = {}
    for file in (directory / "model.onnx", directory / exports.UNFUSED / "model.onnx"):
        before = file.read_bytes()
        report = htp.tag(file).files[0]
        assert report.classes_known
        nodes = list(htp.read_hierarchy(file))
        wrong = {n.module: n.module_class for n in nodes if modules.get(n.module) != n.module_class}
        assert wrong == {}
        graph = graphs[file.parent.name] = onnx.load(file, load_external_data=False).graph
        for node, tagged in zip(graph.node, nodes, strict=False):
            if is_whole(node):
                assert tagged.module == record(node)[-1], node.name
        assert not htp.tag(file).files[0].changed
        if file.parent.name == exports.UNFUSED:  # it knows no operator of ONNX Runtime
            onnx.checker.check_model(str(file))
        htp.strip(file)
        assert file.read_bytes() == before
        htp.tag(file)
    counts = fused_nodes(graphs[exports.UNFUSED], graphs[name], directory / "model.onnx")
    assert counts["wrong"] == 0
    # Of those whose own values tell what they replaced, nearly all are on the nearest module.
    assert counts["nearest"] >= 0.8 * (counts["nearest"] + counts["coarser"])


def fused_nodes(unfused: onnx.GraphProto, fused: onnx.GraphProto, file: Path) -> Counter[str]:
    """Compare the fused nodes' modules with those of what they replaced."""
    replaced = Replaced(unfused, fused)
    counts = Counter[str]()
    for node, tagged in zip(fused.node, htp.read_hierarchy(file), strict=False):
        found = None if is_whole(node) else replaced.module(node)
        if found is None:
            continue
        module, own = found
        around = not tagged.module or f"{module}.".startswith(f"{tagged.module}.")
        inside = not module or tagged.module.startswith(f"{module}.")
        if tagged.module == module:
            counts["nearest"] += 1
        elif around and module:
            assert tagged.module, f"{node.op_type} {node.name} is on the root, not on {module}"
            counts["coarser"] += 1
        elif inside and not own:
            counts["part"] += 1
        else:
            counts["wrong"] += 1
            print(f"{node.op_type} {node.name}: {tagged.module}, not {module}")
    return counts


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


def test_classes_are_known_from_the_config_alone(bert: Path) -> None:
    """As for a graph whose nodes have no record: the model is built without weights."""
    from modelexport_optimum.tagging.model_classes import candidates

    (found,) = candidates(bert)
    tree = found.tree()
    model, _ = exports.model_of("bert")
    assert {p: m.module_class for p, m in tree.modules.items()} == {
        p: type(m).__name__ for p, m in model.named_modules(remove_duplicate=False)
    }
    shapes = {n: tuple(t.shape) for n, t in model.named_parameters(remove_duplicate=False)}
    assert shapes.items() <= tree.tensors.items()
    assert isinstance(found.tree().build(), torch.nn.Module)
