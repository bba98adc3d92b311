"""The HTP pass over one file or one directory: `tag()`, `strip()`, `read_hierarchy()`.

It reads the nodes, asks `attribution` for each node's module, and appends the tags with
`carriers`; weights stay in the file. It exports nothing and runs nothing.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelexport_optimum.attribution import placements, rules
from modelexport_optimum.attribution.export_record import recorded_modules, recorded_value
from modelexport_optimum.attribution.retracing import retrace
from modelexport_optimum.errors import ModelExportError, system_errors_named
from modelexport_optimum.onnx_file.block_sharing import padded_rewrite
from modelexport_optimum.onnx_file.find import onnx_files
from modelexport_optimum.onnx_file.reader import damage_named, read_model
from modelexport_optimum.onnx_file.rewriter import Edit, Rewrite, node_bytes
from modelexport_optimum.onnx_file.skeleton import walk_all_graphs, walk_all_nodes
from modelexport_optimum.system.locks import in_one_thread
from modelexport_optimum.tagging import config_json
from modelexport_optimum.tagging.config_json import ConfigJson
from modelexport_optimum.tagging.directory_trees import given_trees, trees_of_files
from modelexport_optimum.tagging.open_files import by_directory, open_to_write, tagged_beside
from modelexport_optimum.tagging.tag_report import FileReport, TagReport, counted, report_of_carried
from modelexport_optimum.tags import carriers
from modelexport_optimum.tags.attribute_places import attribute_places
from modelexport_optimum.tags.model_record import is_marked, record_edits, record_removal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from modelexport_optimum.attribution.scopes import Paths
    from modelexport_optimum.attribution.traced_graphs import TracedGraph
    from modelexport_optimum.module_trees.module_tree import ModuleTree
    from modelexport_optimum.onnx_file.skeleton import Model, Node
    from modelexport_optimum.tagging.open_files import OpenFile


@dataclass(frozen=True, slots=True)
class NodeTag:
    """One node of a tagged file.

    Attributes:
        name: Node name; may be "".
        op_type: Operator.
        tag: The tag.
        module: Path of the node's module, as `named_modules()` spells it.
        module_class: Class name of the module.
        evidence: The evidence for the module, one of `placements.EVIDENCE_KINDS`.
        graph: Path of the nested graph, or of the function, that contains the node, "" for the main
            graph.
    """

    name: str
    op_type: str
    tag: str
    module: str
    module_class: str
    evidence: str
    graph: str

    @property
    def module_path(self) -> str:
        """The name that `module` had before 0.2.0."""
        return self.module


@in_one_thread
def tag(
    path: str | os.PathLike[str],
    *,
    model: Any = None,  # noqa: ANN401
    trust_remote_code: bool = False,
    source: str | None = None,
    traced: Sequence[TracedGraph] = (),
) -> TagReport:
    """Write the module of every node onto the node, in place and atomically.

    A file whose nodes all have their tags is not changed.

    Args:
        path: A `.onnx` file, or a directory with any number of them.
        model: The source of the classes: a Hub name or directory of the source model, a model in
            memory, or its `ModuleTree`s. By default the config.json next to each file; without one
            the tags contain only paths.
        trust_remote_code: Whether code in the model's repository may run.
        source: Name of the source model for the record; by default that of `model`.
        traced: The records of `traced_graphs` from the export of the files.

    Returns:
        A report on each file.

    Raises:
        UsageError: There is no such file, or no `.onnx` file in the directory.
        InvalidModelError: A file is not a whole ONNX model.
        ModelExportError: A file cannot be written. Every file is unchanged or completely tagged.
    """
    given = given_trees(model, trust_remote_code)
    if source is None and isinstance(model, str | os.PathLike):
        source = os.fspath(model)
    with system_errors_named(path), contextlib.ExitStack() as stack:
        files = open_to_write(Path(path), stack)
        groups = by_directory(files)
        for directory in groups:
            config = ConfigJson.read(directory)
            if config is not None:
                config.check_key()
        plans: list[_Plan] = []
        for directory, group in groups.items():
            if given is None and all(file.complete for file in group):
                plans += [_Plan(file, None, report_of_carried(file)) for file in group]
            else:
                trees = trees_of_files(directory, group, given, trust_remote_code)
                placed = attribute_files(group, trees, given is not None, traced)
                for file in group:
                    by_node = placed[file.path]
                    plans.append(_planned_tags(file, by_node, source, exported=given is not None))
        for plan in plans:
            plan.write()
        reports = tuple(plan.report for plan in plans if plan.report is not None)
        for directory, group in groups.items():
            own = [report.modules for report in reports if report.file.parent == directory]
            _write_config(directory, group, own)
    return TagReport(reports)


def strip(path: str | os.PathLike[str]) -> list[Path]:
    """Remove the tags, which restores the original bytes.

    Args:
        path: A `.onnx` file, or a directory with any number of them.

    Returns:
        The files that were changed.

    Raises:
        ModelExportError: As for `tag`.
    """
    changed = []
    with system_errors_named(path), contextlib.ExitStack() as stack:
        files = open_to_write(Path(path), stack)
        groups = by_directory(files)
        for directory in groups:
            ConfigJson.read(directory)  # before anything is written
        for plan in [_planned_removal(file) for file in files]:
            if plan.write():
                changed.append(plan.file.path)
        for directory, group in groups.items():
            if _write_config(directory, group, ()):
                changed.append(directory / config_json.NAME)
    return changed


def read_hierarchy(path: str | os.PathLike[str]) -> Iterator[NodeTag]:
    """Read the tags of a file or a directory. This needs only `onnx`.

    Args:
        path: A tagged `.onnx` file, or a directory with any number of them.

    Returns:
        Every node of every graph, in file order; the files are read one by one.

    Raises:
        UsageError: There is no such file. Raised at once.
        ModelExportError: A file is not tagged, or cannot be read. Raised when that file is reached.
    """
    return _read_nodes(path, onnx_files(Path(path)))


def _read_nodes(given: str | os.PathLike[str], files: Iterable[Path]) -> Iterator[NodeTag]:
    for file in files:
        model = read_model(file)
        marked = is_marked(model)
        for graph_path, graph in walk_all_graphs(model):
            for node in graph.nodes:
                carried = carriers.read(node, marked=marked)
                modules = carried.modules
                if modules is None:
                    raise ModelExportError(
                        f"{file} is not tagged (node {node.name or node.op_type}): "
                        f"run `modelexport-optimum tag {shlex.quote(os.fspath(given))}`"
                    )
                module_path, module_class = modules[-1]
                yield NodeTag(
                    node.name,
                    node.op_type,
                    carried.tag,
                    module_path,
                    module_class,
                    carried.placed_by,
                    graph_path,
                )


def attribute_files(
    group: Sequence[OpenFile],
    trees: Mapping[Path, tuple[ModuleTree, str]],
    afresh: bool,
    traced: Sequence[TracedGraph] = (),
) -> dict[Path, placements.Attribution]:
    """Find the module of each node of a directory's files.

    Tags on a node are kept unless it is placed again. If the names leave a choice and nothing was
    recorded while the files were made, the model is traced again.
    """
    prior = {file.path: {} if afresh else _prior(file, trees[file.path][0]) for file in group}

    def attribute(file: OpenFile, traced: Sequence[TracedGraph]) -> placements.Attribution:
        tree, base = trees[file.path]
        return rules.attribute(file.model, tree, base, prior=prior[file.path], traced=traced)

    placed = {file.path: attribute(file, traced) for file in group}
    undecided = [file for file in group if placed[file.path].undecided]
    if undecided and not traced:
        model = trees[undecided[0].path][0].build()
        if model is not None:
            again = retrace(model, [file.model for file in undecided])
            placed.update({file.path: attribute(file, again) for file in undecided})
    return placed


def _prior(file: OpenFile, tree: ModuleTree) -> dict[int, tuple[Paths, str]]:
    """Return the placements in the nodes' tags, for modules that the tree has."""
    prior: dict[int, tuple[Paths, str]] = {}
    for node in walk_all_nodes(file.model):
        carried = file.carried[node.start]
        if carried.modules is not None:
            paths = tuple(path for path, _ in carried.modules)
            if all(path in tree.modules for path in paths):
                prior[node.start] = (paths, carried.placed_by)
    return prior


@dataclass(slots=True)
class _Plan:
    """The changes of one file, made when all files are known to be writable.

    Attributes:
        file: The file.
        rewrite: Its edits, or None if it does not change.
        report: The report on it; None for `strip`.
        tags: The tag of each node, in file order, to be read back; None for a node without a tag.
    """

    file: OpenFile
    rewrite: Rewrite | None
    report: FileReport | None
    tags: Sequence[str | None] = ()

    def write(self) -> bool:
        """Write the file, and return whether there was anything to write."""
        if self.rewrite is None:
            return False
        self.rewrite.write(self._wrong)
        return True

    def _wrong(self, written: Model) -> str | None:
        for node, tag in zip(walk_all_nodes(written), self.tags, strict=True):
            if not carriers.carries(node, tag):
                return f"the tag of the node {node.name or node.op_type}"
        return None


def _planned_tags(
    file: OpenFile, placed: placements.Attribution, source: str | None, *, exported: bool
) -> _Plan:
    nodes = list(walk_all_nodes(file.model))
    chains = {placed.placements[node.start].paths: placed.chain(node) for node in nodes}
    spelled = {paths: carriers.spell(chain) for paths, chain in chains.items()}
    tags = {node.start: spelled[placed.placements[node.start].paths].tag for node in nodes}
    free = attribute_places(file.model, tags)
    edits: dict[int, list[Edit]] = {}
    for node in nodes:
        placement = placed.placements[node.start]
        recorded = tuple(path for path, _ in recorded_modules(node))
        aside = bool(recorded_value(node)) and recorded != placement.paths
        added = carriers.encode(
            node,
            spelled[placement.paths],
            placement.evidence,
            attribute=node.start in free,
            doc_string=file.carried[node.start].doc_string,
            aside=aside,
        )
        removed = _removal(file, node, aside=aside)
        edits[node.start] = [*removed, Edit(node.end, node.end, added)]
    segments = (segment for chain in chains.values() for segment in chain)
    modules = {segment.path: segment.module_class for segment in segments}
    silent = placed.tree.silent(modules) if exported else None
    metadata = record_edits(file.model, chains.values(), source, silent)
    rewrite = padded_rewrite(file.fd, file.model, edits, metadata, carriers.padding)
    changed = _would_change(file, nodes, rewrite.node_edits) or bool(metadata)
    report = FileReport(
        file=file.path,
        node_count=len(nodes),
        modules=modules,
        evidence_counts=counted(Counter(p.evidence for p in placed.placements.values())),
        with_attribute=len(free),
        on_root=sum(len(placed.chain(node)) == 1 for node in nodes),
        module_class=placed.tree.root_class,
        classes_known=placed.tree.classes_known,
        changed=changed,
    )
    written = rewrite if changed else None
    return _Plan(file, written, report, [tags[node.start] for node in nodes])


def _planned_removal(file: OpenFile) -> _Plan:
    nodes = list(walk_all_nodes(file.model))
    edits = {node.start: removed for node in nodes if (removed := _removal(file, node))}
    metadata = record_removal(file.model)
    changed = bool(edits or metadata)
    rewrite = Rewrite(file.fd, file.model, edits, metadata) if changed else None
    return _Plan(file, rewrite, None, [None] * len(nodes))


def _removal(file: OpenFile, node: Node, *, aside: bool = False) -> list[Edit]:
    carried = file.carried[node.start]
    marked = carriers.EVIDENCE in dict(node.metadata)
    if not (aside or marked or carried.tag or carried.attribute):
        return []
    with damage_named(file.path):
        return carriers.removal(node, node_bytes(file.fd, node), carried, aside=aside)


def _would_change(file: OpenFile, nodes: Sequence[Node], edits: dict[int, list[Edit]]) -> bool:
    """Return whether any edit of a node replaces bytes with other bytes."""
    for node in nodes:
        removed = b"".join(
            node_bytes(file.fd, node)[edit.start - node.start : edit.end - node.start]
            for edit in edits[node.start]
        )
        if removed != b"".join(edit.data for edit in edits[node.start]):
            return True
    return False


def _write_config(
    directory: Path, group: Sequence[OpenFile], modules: Iterable[Mapping[str, str]]
) -> bool:
    """Write the modules of the files' tags into config.json; return whether it changed."""
    config = ConfigJson.read(directory)
    if config is None or not (config.is_of_model or config.has_key):
        return False
    named = tagged_beside(directory, group)
    for each in modules:
        named.update(each)
    return config.write(config_json.metadata_of(named) if named and config.is_of_model else None)
