"""The HTP pass over one file or one directory: `tag()`, `strip()`, `read_hierarchy()`.

It reads the nodes, asks `attribution` for each node's module, and appends the tags with
`carriers`; weights stay in the file. It exports nothing and runs nothing.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.onnx_file.reader import read_model, whole
from modelexport_optimum.onnx_file.rewriter import Edit, node_bytes, rewrite
from modelexport_optimum.onnx_file.skeleton import walk_graphs, walk_nodes
from modelexport_optimum.tagging import attribution, carriers
from modelexport_optimum.tagging.config_json import read_config, replace_metadata, write_config
from modelexport_optimum.tagging.directory_trees import given_trees, trees_of_files
from modelexport_optimum.tagging.model_record import PREFIX, is_marked, record_edits
from modelexport_optimum.tagging.open_files import (
    by_directory,
    files_of,
    open_file,
    writable_files,
)
from modelexport_optimum.tagging.tag_report import (
    FileReport,
    TagReport,
    counted,
    report_of_carried,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from modelexport_optimum.onnx_file.skeleton import Node
    from modelexport_optimum.tagging.module_tree import ModuleTree
    from modelexport_optimum.tagging.open_files import OpenFile
    from modelexport_optimum.tagging.recorded_calls import Calls


@dataclass(frozen=True, slots=True)
class NodeTag:
    """One node of a tagged file.

    Attributes:
        name: Node name; may be "".
        op_type: Operator.
        tag: The tag.
        module_path: Path of the node's module, as `named_modules()` spells it.
        module_class: Class name of the module.
        evidence: How the node was placed, one of `attribution.EVIDENCE_KINDS`.
        graph: Path of the nested graph that the node stands in, "" for the top graph.
    """

    name: str
    op_type: str
    tag: str
    module_path: str
    module_class: str
    evidence: str
    graph: str


def tag(
    path: str | os.PathLike[str],
    *,
    model: Any = None,  # noqa: ANN401
    trust_remote_code: bool = False,
    source: str | None = None,
    recorded: Sequence[Calls] = (),
) -> TagReport:
    """Writes onto every node which module it came from, in place and atomically.

    A file whose nodes all carry their tags is left as it is.

    Args:
        path: A `.onnx` file, or a directory with any number of them.
        model: Where the classes are from: a Hub name or directory of the source model, a
            model in memory, or its `ModuleTree`s. By default the config.json beside each
            file; without one the tags are made of the paths alone.
        trust_remote_code: Whether code in the model's repository may be run.
        source: Name of the source model for the record; by default that of `model`.
        recorded: The calls that `calls.recorded_calls` saw while the files were traced.

    Returns:
        What was found in each file.

    Raises:
        UsageError: There is no such file, or no `.onnx` file in the directory.
        InvalidModelError: A file is not a whole ONNX model.
        ModelExportError: A file cannot be written. Every file is as it was or tagged whole.
    """
    given = given_trees(model, trust_remote_code)
    if source is None and isinstance(model, str | os.PathLike):
        source = os.fspath(model)
    with contextlib.ExitStack() as stack:
        files = [open_file(file, stack) for file in writable_files(Path(path))]
        groups = by_directory(files)
        for directory in groups:
            read_config(directory)  # before anything is written
        reports = []
        for directory, group in groups.items():
            if given is None and all(file.complete for file in group):
                reports += [report_of_carried(file) for file in group]
            else:
                trees = trees_of_files(directory, group, given, trust_remote_code)
                for file in group:
                    placed = attribute_file(file, *trees[file.path], given is not None, recorded)
                    reports.append(_tag_file(file, placed, source))
            write_config(directory, reports)
    return TagReport(tuple(reports))


def strip(path: str | os.PathLike[str]) -> list[Path]:
    """Takes the tags out again, which gives back the bytes that were there before.

    Args:
        path: A `.onnx` file, or a directory with any number of them.

    Returns:
        The files that were changed.

    Raises:
        ModelExportError: As for `tag`.
    """
    changed = []
    with contextlib.ExitStack() as stack:
        files = [open_file(file, stack) for file in writable_files(Path(path))]
        for directory in by_directory(files):
            read_config(directory)  # before anything is written
        for file in files:
            edits = {
                node.start: removed
                for node in walk_nodes(file.model.graph)
                if (removed := _removal(file, node))
            }
            metadata = [
                Edit(start, end, b"")
                for key, _, start, end in file.model.metadata
                if key.startswith(PREFIX)
            ]
            if edits or metadata:
                rewrite(file.fd, file.model, edits, metadata)
                changed.append(file.path)
        for directory in by_directory(files):
            if replace_metadata(directory, None):
                changed.append(directory / "config.json")
    return changed


def read_hierarchy(path: str | os.PathLike[str]) -> Iterator[NodeTag]:
    """Reads the tags of a file or a directory, with `onnx` alone.

    Args:
        path: A tagged `.onnx` file, or a directory with any number of them.

    Yields:
        Every node of every graph, in file order.

    Raises:
        ModelExportError: A file is not tagged, or cannot be read.
    """
    for file in files_of(Path(path)):
        model = read_model(file)
        marked = is_marked(model)
        for graph_path, graph in walk_graphs(model.graph):
            for node in graph.nodes:
                carried = carriers.read(node, marked=marked)
                modules = carried.modules
                if modules is None:
                    raise ModelExportError(
                        f"{file} is not tagged (node {node.name or node.op_type}): "
                        f"run `modelexport-optimum tag {path}`"
                    )
                module_path, module_class = modules[-1]
                yield NodeTag(
                    node.name,
                    node.op_type,
                    carried.tag,
                    module_path,
                    module_class,
                    carried.evidence or attribution.CARRIER,
                    graph_path,
                )


def attribute_file(
    file: OpenFile, tree: ModuleTree, base: str, afresh: bool, recorded: Sequence[Calls]
) -> attribution.Attribution:
    """Asks for each node's module; tags that it carries are believed unless placed afresh."""
    prior: dict[int, tuple[attribution.Paths, str]] = {}
    for node in walk_nodes(file.model.graph):
        carried = file.carried[node.start]
        modules = carried.modules
        if modules is not None and not afresh:
            paths = tuple(path for path, _ in modules)
            if all(path in tree.modules for path in paths):
                prior[node.start] = (paths, carried.evidence or attribution.CARRIER)
    return attribution.attribute(file.model, tree, base, prior=prior, recorded=recorded)


def _tag_file(file: OpenFile, placed: attribution.Attribution, source: str | None) -> FileReport:
    nodes = list(walk_nodes(file.model.graph))
    spelled: dict[attribution.Paths, carriers.Spelled] = {}
    tags = {}
    for node in nodes:
        paths = placed.placements[node.start].paths
        if paths not in spelled:
            spelled[paths] = carriers.spell(placed.chain(node))
        tags[node.start] = spelled[paths].tag
    free = carriers.attribute_places(file.model, tags)
    edits: dict[int, list[Edit]] = {}
    for node in nodes:
        placement = placed.placements[node.start]
        added = carriers.encode(
            node,
            spelled[placement.paths],
            placement.evidence,
            attribute=node.start in free,
            doc_string=file.carried[node.start].doc_string,
        )
        removed = _removal(file, node)
        edits[node.start] = [*removed, Edit(node.end, node.end, added)]
    chains = list({id(chain): chain for chain in map(placed.chain, nodes)}.values())
    metadata = record_edits(file, chains, source)
    changed = _would_change(file, nodes, edits) or bool(metadata)
    if changed:
        rewrite(file.fd, file.model, edits, metadata)
    owners = {chain[-1].path: chain[-1].module_class for chain in chains}
    return FileReport(
        path=file.path,
        nodes=len(nodes),
        modules=owners,
        evidence=counted(placement.evidence for placement in placed.placements.values()),
        attribute=len(free),
        on_root=sum(len(placed.chain(node)) == 1 for node in nodes),
        root_class=placed.tree.root_class,
        classes_known=placed.tree.classes_known,
        changed=changed,
    )


def _removal(file: OpenFile, node: Node) -> list[Edit]:
    carried = file.carried[node.start]
    if not (carried.tag or carried.evidence or carried.attribute):
        return []
    with whole(file.path):
        return carriers.removal(node, node_bytes(file.fd, node), carried)


def _would_change(file: OpenFile, nodes: Sequence[Node], edits: dict[int, list[Edit]]) -> bool:
    """Whether any edit of a node puts other bytes where it takes bytes away."""
    for node in nodes:
        removed = b"".join(
            node_bytes(file.fd, node)[edit.start - node.start : edit.end - node.start]
            for edit in edits[node.start]
        )
        if removed != b"".join(edit.data for edit in edits[node.start]):
            return True
    return False
