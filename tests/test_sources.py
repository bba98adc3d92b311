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

import transformers_exports as exports
from replaced_nodes import Replaced, is_whole, record

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
        Counter(node.op_type for node in onnx.load(tmp_path / f"optimized-{t}.onnx").graph.node)
        for t in (False, True)
    ]
    assert counts[0] == counts[1]
