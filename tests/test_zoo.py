"""Every architecture of the zoo: the tags are right, and the model is as it was."""

from __future__ import annotations

import functools
import os
import shutil
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
import zoo

from modelexport_optimum.onnx_file.reader import read_model
from modelexport_optimum.onnx_file.skeleton import walk_graphs
from modelexport_optimum.system.atomic_write import unflushed
from modelexport_optimum.tagging import htp
from modelexport_optimum.tags import carriers, tag_grammar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from witness import Graph, Witness

    from modelexport_optimum.tagging.htp import NodeTag
    from modelexport_optimum.tagging.tag_report import TagReport

DEFAULT_LEVEL = "ENABLE_ALL"
OTHER_LEVELS = ["DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED"]
RANDOM = {
    *("Bernoulli", "Multinomial"),
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
}

# What must stand in a module of this very class, once for each time that its operator ran on
# what depends on the input: a constant may be folded, and what no output needs is left out.
PLAIN = {
    "Linear": ("aten::linear", {"MatMul", "Gemm"}),
    "Conv2d": ("conv", {"Conv"}),
    "LayerNorm": ("aten::layer_norm", {"LayerNormalization"}),
    "Embedding": ("aten::embedding", {"Gather"}),
}

# Operators of PyTorch that leave no node, or one that the exporter folds into another's.
LEAVE_NO_NODE = {
    "aten::batch_norm", "aten::contiguous", "aten::detach", "aten::dropout", "aten::dropout_",
    "aten::expand_as", "aten::feature_dropout", "aten::Int", "aten::ne", "aten::ScalarImplicit",
    "aten::select", "aten::size", "aten::slice", "aten::to", "aten::type_as",
}  # fmt: skip


class Tagged:
    """One architecture, exported and tagged once."""

    def __init__(self, witness: Witness, source: Path, directory: Path, levels: list[str]) -> None:
        self.witness = witness
        self.levels = levels
        self.directory = directory
        shutil.copytree(witness.output, directory)
        self.before = contents(directory)
        self.report: TagReport = htp.tag(directory)
        if not self.report.classes_known:
            # A class of its own, or one that no config.json describes: the source knows.
            self.report = htp.tag(directory, model=source, trust_remote_code=True)

    @functools.cached_property
    def files(self) -> list[tuple[Path, list[NodeTag], dict[str, Graph]]]:
        """Each file as it was tagged, with the tags in it, and the graphs traced into it."""
        return [
            (
                file.file,
                list(htp.read_hierarchy(file.file)),
                self.witness.branches(file.file.relative_to(self.directory).as_posix()),
            )
            for file in self.report.files
        ]


def levels_of(number: int) -> list[str]:
    """The optimization levels at which an architecture is run, by its place in the table.

    That of all users, and one of the others: each of those has a third of the architectures, of
    all families. `make zoo-levels` runs every architecture at every level.
    """
    if os.environ.get("EVERY_LEVEL"):
        return [*OTHER_LEVELS, DEFAULT_LEVEL]
    return [OTHER_LEVELS[number % len(OTHER_LEVELS)], DEFAULT_LEVEL]


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module", autouse=True)
def no_flush() -> Iterator[None]:
    """Wait for no disk: of a file that is lost with the machine, nothing is asked here."""
    with unflushed():
        yield


@pytest.fixture(scope="module", params=zoo.ARCHITECTURES, ids=lambda row: row.name)
def tagged(
    request: pytest.FixtureRequest,
    witnessed: Callable[[str], Witness],
    model_directory: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Tagged]:
    directory = tmp_path_factory.mktemp("zoo") / "export"
    name = request.param.name
    levels = levels_of(zoo.ARCHITECTURES.index(request.param))
    yield Tagged(witnessed(name), model_directory(name), directory, levels)
    shutil.rmtree(directory)


def test_every_tag_names_a_module_of_the_model(tagged: Tagged) -> None:
    assert tagged.report.node_count
    for path, nodes, graphs in tagged.files:
        assert len(nodes) == sum(1 for _ in all_nodes(onnx.load(path, load_external_data=False)))
        tree = next(iter(graphs.values())).tree
        for node in nodes:
            assert tree.modules[node.module_path] == node.module_class, node
            chain = tag_grammar.parse_tag(node.tag)
            assert chain is not None
            assert chain[0] == ("", tree.root_class)
            assert all(tree.modules[module] == name for module, name in chain), node


def test_the_carriers_agree(tagged: Tagged) -> None:
    for path, nodes, _ in tagged.files:
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(model)
        for proto, node in zip(all_nodes(model), nodes, strict=True):
            metadata = {entry.key: entry.value for entry in proto.metadata_props}
            assert len(metadata) == len(proto.metadata_props)
            assert proto.doc_string.split("\n")[0] == node.tag
            for attribute in proto.attribute:
                if attribute.name == carriers.ATTRIBUTE:
                    assert attribute.s.decode() == node.tag
            assert metadata["namespace"].split("/")[-1].startswith(f"{node.module_path}: ")
            assert repr(node.module_path) in metadata["pkg.torch.onnx.name_scopes"]
            assert node.module_class in metadata["pkg.torch.onnx.class_hierarchy"]


def test_a_reader_of_a_parameter_is_where_the_parameter_is(tagged: Tagged) -> None:
    """In the module that owns it or shares it, or in one around that or inside.

    If that one ran: the weights of a module that is never called are handed to any other.
    """
    for path, nodes, graphs in tagged.files:
        model = read_model(path)
        for branch, graph in graphs.items():
            base = min(graph.traced)
            ran = {path for paths in graph.ran for path in paths}
            tied = {name: names for names in graph.tree.tied for name in names}
            for graph_path, nested in walk_graphs(model.graph):
                if branch not in graph_path:
                    continue
                by_name = {node.name: node for node in nodes if node.graph == graph_path}
                for node in nested.nodes:
                    if node.op_type == "Identity":
                        continue  # it carries the parameter that its output is named by
                    for name in node.inputs:
                        full = f"{base}.{name}" if base else name
                        if full not in graph.tree.tensors:
                            continue
                        owners = {n.rpartition(".")[0] for n in tied.get(full, {full})} & ran
                        placed = by_name[node.name].module_path
                        assert not owners or any(related(placed, o) for o in owners), (
                            node.name,
                            owners,
                        )


def related(path: str, owner: str) -> bool:
    return path == owner or not path or path.startswith(f"{owner}.") or owner.startswith(f"{path}.")


def test_the_modules_that_ran_own_the_nodes(tagged: Tagged) -> None:
    for path, nodes, graphs in tagged.files:
        for branch, graph in graphs.items():
            shared = {p: paths for paths in graph.tree.aliases for p in paths}
            own: dict[frozenset[str], list[NodeTag]] = defaultdict(list)
            for node in nodes:
                if branch in node.graph:
                    own[shared.get(node.module_path, frozenset({node.module_path}))].append(node)
            called = set(graph.times)
            for paths, placed in own.items():
                # An Identity stands on its parameter's module, which is perhaps never called,
                # and what several modules use on their nearest common ancestor.
                asked = [n for n in placed if n.evidence not in ("parameter", "data flow")]
                # The root is always an ancestor: of a part that is exported without a name.
                assert paths in called or not asked or "" in paths, (path.name, paths, asked[:3])
            for paths, operations in graph.ran.items():
                # A name may leave open which module it was: then what is around it has the node.
                label = min(paths).rpartition(".")[2]
                above = [n for n in own.get(frozenset({""}), ()) if f"/{label}/" in f"/{n.name}"]
                if above or (paths == graph.traced and frozenset({""}) in own):
                    continue
                if paths not in own and varying(graph, paths):
                    # The exporter merges modules without weights that are given the same.
                    name = graph.tree.modules[min(paths)]
                    twins = [
                        graph.tree.modules[min(p)] for p in own if graph.ran.get(p) == operations
                    ]
                    assert name in twins and not weights(graph, paths), (
                        path.name,
                        paths,
                        operations,
                    )


def weights(graph: Graph, paths: frozenset[str]) -> list[str]:
    return [name for name in graph.tree.tensors if name.rpartition(".")[0] in paths]


def varying(graph: Graph, paths: frozenset[str]) -> list[str]:
    """What the module ran on something that depends on an input, and that leaves a node."""
    return [
        operation
        for call in graph.calls
        if call.paths == paths
        for operation in call.varying
        if operation not in LEAVE_NO_NODE
    ]


def test_in_a_module_stands_what_its_class_says(tagged: Tagged) -> None:
    for path, nodes, graphs in tagged.files:
        for branch, graph in graphs.items():
            shared = {p: paths for paths in graph.tree.aliases for p in paths}
            stand: Counter[tuple[frozenset[str], str]] = Counter()
            for node in nodes:
                if branch in node.graph:
                    paths = shared.get(node.module_path, frozenset({node.module_path}))
                    stand[paths, node.op_type] += 1
            for paths in graph.times:
                plain = PLAIN.get(graph.tree.modules[min(paths)])
                if plain is None:
                    continue
                operation, operators = plain
                calls = [call for call in graph.calls if call.paths == paths]
                least = sum(operation in kind for call in calls for kind in call.varying)
                most = sum(operation in kind for call in calls for kind in call.operations)
                found = sum(stand[paths, operator] for operator in operators)
                assert least <= found <= most, (path.name, branch, paths, found, least, most)


def test_onnx_runtime_builds_and_computes_the_same(tagged: Tagged, tmp_path: Path) -> None:
    for file, nodes, graphs in tagged.files:
        name = file.relative_to(tagged.directory).as_posix()
        inputs = traced_inputs(graphs)
        drawn = {node.op_type for node in nodes} & RANDOM
        # ONNX Runtime's generator of random numbers is shared by all sessions.
        with ThreadPoolExecutor(1 if drawn else 2) as pool:
            for level in tagged.levels:
                plain, ours = (
                    pool.submit(run, path, level, inputs, tmp_path / optimized)
                    for path, optimized in (
                        (tagged.witness.output / name, "plain.onnx"),
                        (file, "ours.onnx"),
                    )
                )
                assert ours.result()[0] == plain.result()[0], (name, level)
                for output, value in plain.result()[1].items():
                    other = ours.result()[1][output]
                    exact = np.array_equal(other, value, equal_nan=value.dtype.kind == "f")
                    assert exact, (name, level, output)


def traced_inputs(graphs: dict[str, Graph]) -> dict[str, np.ndarray]:
    """The arrays that a file's graph was traced with; a merged decoder's those with past."""
    inputs = {"use_cache_branch": np.array([True])}
    for branch in sorted(graphs):
        inputs |= graphs[branch].inputs
    return inputs


def run(
    path: Path, level: str, inputs: dict[str, np.ndarray], optimized: Path
) -> tuple[Counter[str], dict[str, np.ndarray]]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
    options.optimized_model_filepath = str(optimized)
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    onnxruntime.set_seed(0)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    values = session.run(None, {value.name: inputs[value.name] for value in session.get_inputs()})
    operators = Counter(node.op_type for node in all_nodes(onnx.load(optimized)))
    return operators, dict(zip((o.name for o in session.get_outputs()), values, strict=True))


def test_strip_gives_back_the_bytes_and_a_second_tag_changes_nothing(tagged: Tagged) -> None:
    now = contents(tagged.directory)
    again = htp.tag(tagged.directory)
    assert contents(tagged.directory) == now
    assert not any(file.changed for file in again.files)
    assert again.evidence_counts == tagged.report.evidence_counts
    htp.strip(tagged.directory)
    assert contents(tagged.directory) == tagged.before


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of nested graphs after those of the graph around them."""

    def visit(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
        yield from graph.node
        for node in graph.node:
            for attribute in node.attribute:
                nested = [attribute.g] if attribute.HasField("g") else []
                for inner in [*nested, *attribute.graphs]:
                    yield from visit(inner)

    return visit(model.graph)
