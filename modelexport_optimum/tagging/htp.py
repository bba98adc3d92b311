"""The HTP pass over one file or one directory: `tag()`, `strip()`, `read_hierarchy()`.

It reads the nodes, asks `attribution` for each node's module, and appends the tags with
`carriers`; weights stay in the file. It exports nothing and runs nothing.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import InvalidModelError, ModelExportError, UsageError
from modelexport_optimum.onnx_file.reader import read_model
from modelexport_optimum.onnx_file.rewriter import Edit, node_bytes, rewrite
from modelexport_optimum.onnx_file.skeleton import walk_graphs, walk_nodes
from modelexport_optimum.onnx_file.wire import length_delimited
from modelexport_optimum.system.atomic_write import replacing
from modelexport_optimum.tagging import attribution, carriers, tree_choice
from modelexport_optimum.tagging.module_tree import (
    UNKNOWN_CLASS,
    Module,
    ModuleTree,
    candidates,
    model_trees,
    source_trees,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from modelexport_optimum.onnx_file.skeleton import Model, Node
    from modelexport_optimum.tagging.carriers import Carried
    from modelexport_optimum.tagging.module_tree import Candidate
    from modelexport_optimum.tagging.recorded_calls import Calls

# Keys of the model's own metadata_props that are ours.
_METADATA = "modelexport_optimum."
_VERSION = f"{_METADATA}version"
_SOURCE = f"{_METADATA}source"
_CLASSES = f"{_METADATA}classes"
_RECORDED_PACKAGES = ("torch", "transformers", "optimum")

_CONFIG_KEY = "htp_metadata"
# What a model's config.json has one of, in transformers and diffusers.
_MODEL_KEYS = {"model_type", "architectures", "_class_name"}


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


@dataclass(frozen=True, slots=True)
class FileReport:
    """What the pass found in one file.

    Attributes:
        path: The file.
        nodes: Number of nodes, nested graphs included.
        modules: Module path to class name, of the modules that own at least one node.
        evidence: Number of nodes placed by each evidence.
        attribute: Number of nodes that carry the attribute.
        on_root: Number of nodes on the root.
        root_class: Class of the root.
        classes_known: False if the tags were made of paths alone.
        changed: The file was written.
    """

    path: Path
    nodes: int
    modules: dict[str, str]
    evidence: dict[str, int]
    attribute: int
    on_root: int
    root_class: str
    classes_known: bool
    changed: bool


@dataclass(frozen=True, slots=True)
class TagReport:
    """What the pass found in all files."""

    files: tuple[FileReport, ...]

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return sum(file.nodes for file in self.files)

    @property
    def modules(self) -> int:
        """Number of modules that own at least one node of any file."""
        owners = {(file.path.parent, path) for file in self.files for path in file.modules}
        return len(owners)

    @property
    def evidence(self) -> dict[str, int]:
        """Number of nodes placed by each evidence."""
        counts = Counter[str]()
        for file in self.files:
            counts.update(file.evidence)
        return {kind: counts[kind] for kind in attribution.EVIDENCE_KINDS if counts[kind]}

    @property
    def classes_known(self) -> bool:
        """False if any file's tags were made of paths alone."""
        return all(file.classes_known for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can carry it."""
        return {
            "nodes": self.nodes,
            "modules": self.modules,
            "evidence": self.evidence,
            "classes_known": self.classes_known,
            "files": [{**asdict(file), "path": str(file.path)} for file in self.files],
        }


@dataclass(slots=True)
class _File:
    """An open file of the pass."""

    path: Path
    fd: int
    model: Model
    marked: bool
    carried: dict[int, Carried] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return self.marked and all(carried.complete for carried in self.carried.values())


def find_onnx_files(directory: Path) -> list[Path]:
    """Every `.onnx` file below a directory, sorted."""
    return sorted(path for path in directory.rglob("*.onnx") if not path.name.startswith("."))


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
    given = _given_trees(model, trust_remote_code)
    if source is None and isinstance(model, str | os.PathLike):
        source = os.fspath(model)
    with contextlib.ExitStack() as stack:
        files = [_open(file, stack) for file in _checked_files(Path(path))]
        groups = _by_directory(files)
        for directory in groups:
            _read_config(directory)  # before anything is written
        reports = []
        for directory, group in groups.items():
            if given is None and all(file.complete for file in group):
                reports += [_report_carried(file) for file in group]
            else:
                trees = _trees(directory, group, given, trust_remote_code)
                for file in group:
                    placed = _attribute(file, *trees[file.path], given is not None, recorded)
                    reports.append(_tag_file(file, placed, source))
            _write_config(directory, reports)
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
        files = [_open(file, stack) for file in _checked_files(Path(path))]
        for directory in _by_directory(files):
            _read_config(directory)  # before anything is written
        for file in files:
            edits = {
                node.start: removed
                for node in walk_nodes(file.model.graph)
                if (removed := _removal(file, node))
            }
            metadata = [
                Edit(start, end, b"")
                for key, _, start, end in file.model.metadata
                if key.startswith(_METADATA)
            ]
            if edits or metadata:
                rewrite(file.fd, file.model, edits, metadata)
                changed.append(file.path)
        for directory in _by_directory(files):
            if _replace_config(directory, None):
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
    for file in _files(Path(path)):
        model = read_model(file)
        marked = _is_marked(model)
        for graph_path, graph in walk_graphs(model.graph):
            for node in graph.nodes:
                carried = carriers.read(node, marked=marked)
                modules = carriers.modules_of(node, carried)
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


def explain(
    path: str | os.PathLike[str],
    node_name: str,
    *,
    model: Any = None,  # noqa: ANN401
    trust_remote_code: bool = False,
) -> list[str]:
    """Says how a node is placed, changing nothing.

    Args:
        path: A `.onnx` file, or a directory with any number of them.
        node_name: Name of the node.
        model: As for `tag`.
        trust_remote_code: As for `tag`.

    Returns:
        A paragraph for each node of that name.

    Raises:
        UsageError: No node has the name.
    """
    given = _given_trees(model, trust_remote_code)
    found = []
    with contextlib.ExitStack() as stack:
        files = [_open(file, stack) for file in _checked_files(Path(path))]
        for directory, group in _by_directory(files).items():
            wanted = [
                (file, node)
                for file in group
                for node in walk_nodes(file.model.graph)
                if node.name == node_name
            ]
            if not wanted:
                continue
            trees = _trees(directory, group, given, trust_remote_code, afresh=True)
            placed = {
                file.path: _attribute(file, *trees[file.path], True, ()) for file, _ in wanted
            }
            for file, node in wanted:
                placement = placed[file.path].placements[node.start]
                chain = placed[file.path].chain(node)
                found.append(
                    f"{file.path.name}: {node.op_type} {node.name}\n"
                    f"  tag       {carriers.format_tag(chain)}\n"
                    f"  module    {chain[-1].path or '(root)'}: {chain[-1].qualified}\n"
                    f"  evidence  {placement.evidence}: {placement.reason}"
                )
    if not found:
        raise UsageError(f"{path} has no node named {node_name}")
    return found


# Files


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise UsageError(f"{path} does not exist: give a .onnx file or an exported directory")
    if not path.is_dir():
        return [path]
    files = find_onnx_files(path)
    if not files:
        raise UsageError(f"{path} has no .onnx file: give the directory of an export")
    return files


def _checked_files(path: Path) -> list[Path]:
    """The files to write, after everything that can be known to forbid it."""
    files = _files(path)
    for file in [path, *files]:
        if file.is_symlink():
            raise ModelExportError(
                f"{file} is a symbolic link to {file.readlink()}, which others may share: "
                "copy it (cp -rL) and give the copy, or give the real path"
            )
        if not os.access(file, os.W_OK):
            raise ModelExportError(f"{file} is read-only: make it writable or copy it")
    return files


def _open(path: Path, stack: contextlib.ExitStack) -> _File:
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ModelExportError(f"cannot read {path}: {error.strerror}") from error
    stack.callback(os.close, fd)
    model = read_model(path, fd=fd)
    for _, graph in walk_graphs(model.graph):
        for tensor in graph.initializers:
            if tensor.location and not (path.parent / tensor.location).exists():
                raise InvalidModelError(
                    f"{path} keeps weights in {tensor.location}, which is not beside it: "
                    "copy that file too"
                )
    marked = _is_marked(model)
    carried = {node.start: carriers.read(node, marked=marked) for node in walk_nodes(model.graph)}
    return _File(path, fd, model, marked, carried)


def _is_marked(model: Model) -> bool:
    return any(key == _VERSION for key, *_ in model.metadata)


def _by_directory(files: Iterable[_File]) -> dict[Path, list[_File]]:
    groups: dict[Path, list[_File]] = {}
    for file in files:
        groups.setdefault(file.path.parent, []).append(file)
    return groups


# Trees


def _given_trees(model: object, trust_remote_code: bool) -> list[ModuleTree] | None:
    if model is None:
        return None
    if isinstance(model, ModuleTree):
        return [model]
    if isinstance(model, list | tuple):
        return list(model)
    if isinstance(model, str | os.PathLike):
        return source_trees(os.fspath(model), trust_remote_code=trust_remote_code)
    return model_trees(model)


def _trees(
    directory: Path,
    group: Sequence[_File],
    given: list[ModuleTree] | None,
    trust_remote_code: bool,
    *,
    afresh: bool = False,
) -> dict[Path, tuple[ModuleTree, str]]:
    """For each file of a directory the tree that it was traced from, and the traced module.

    What the nodes themselves say comes before the config, but for what is placed afresh.
    """
    if given is not None:
        return _best(group, given)
    known = None if afresh else _carried_tree(group) or _tracer_tree(group)
    if known is not None:
        return _best(group, [known])
    return _described_trees(directory, group, trust_remote_code)


def _best(
    group: Sequence[_File], trees: Sequence[ModuleTree]
) -> dict[Path, tuple[ModuleTree, str]]:
    """The one tree that explains all files of a directory best."""
    fits = [[tree_choice.fit(file.model, tree) for file in group] for tree in trees]
    best = max(range(len(trees)), key=lambda index: (tree_choice.total(fits[index]), -index))
    return {
        file.path: (trees[best], found.base) for file, found in zip(group, fits[best], strict=True)
    }


def _described_trees(
    directory: Path, group: Sequence[_File], trust_remote_code: bool
) -> dict[Path, tuple[ModuleTree, str]]:
    """The trees of the classes that config.json may mean, or of the names alone."""
    tried: list[tuple[Any, int, list[tree_choice.Fit], ModuleTree]] = []
    for index, candidate in enumerate(candidates(directory, trust_remote_code=trust_remote_code)):
        tree = candidate.tree()
        fits = [tree_choice.fit(file.model, tree) for file in group]
        agreeing = sum(_outputs_agree(file.model, candidate) for file in group)
        if not all(found.plausible for found in fits):
            continue
        tried.append((tree_choice.total(fits, agreeing), -index, fits, tree))
        if index == 0 and agreeing == len(group) and all(found.whole for found in fits):
            break
    if not tried:
        known = _tracer_tree(group) or _carried_tree(group)
        if known is not None:
            return _best(group, [known])
    if tried:
        _, _, fits, tree = max(tried, key=lambda entry: entry[:2])
        return {file.path: (tree, f.base) for file, f in zip(group, fits, strict=True)}
    return {
        file.path: (
            ModuleTree.from_names(
                attribution.called_scopes(file.model), attribution.tensors_of(file.model)
            ),
            "",
        )
        for file in group
    }


def _outputs_agree(model: Model, candidate: Candidate) -> bool:
    """Whether the graph's outputs are those that Optimum gives the candidate's task."""
    if candidate.outputs is None:
        return False
    named = {
        value.name: {
            axis: dim for axis, dim in enumerate(value.shape or ()) if isinstance(dim, str)
        }
        for value in model.graph.outputs
    }
    return named == {name: dict(axes) for name, axes in candidate.outputs.items()}


def _carried_tree(group: Sequence[_File]) -> ModuleTree | None:
    """The tree that the nodes' own tags describe, if the files were tagged before."""
    tree = ModuleTree()
    qualified: dict[str, str] = {}
    for file in group:
        for key, value, *_ in file.model.metadata:
            if key == _CLASSES:
                qualified.update(json.loads(value))
        for carried in file.carried.values():
            for path, name in carriers.parse_tag(carried.tag) or ():
                tree.modules[path] = Module(path, qualified.get(name, name), path)
    return _closed(tree)


def _tracer_tree(group: Sequence[_File]) -> ModuleTree | None:
    """The tree that PyTorch's dynamo exporter recorded on the nodes."""
    tree = ModuleTree()
    for file in group:
        for node in walk_nodes(file.model.graph):
            for path, name in attribution.tracer_modules(node):
                tree.modules[path] = Module(path, name, path)
    return _closed(tree)


def _closed(tree: ModuleTree) -> ModuleTree | None:
    """The tree with the containers that are never called, or None if it has no root."""
    if "" not in tree.modules:
        return None
    for path in list(tree.modules):
        outer = path.rpartition(".")[0]
        while outer and outer not in tree.modules:
            tree.modules[outer] = Module(outer, UNKNOWN_CLASS, outer, has_forward=False)
            outer = outer.rpartition(".")[0]
    tree.classes_known = tree.modules[""].module_class != UNKNOWN_CLASS.rpartition(".")[2]
    return tree


# One file


def _attribute(
    file: _File, tree: ModuleTree, base: str, afresh: bool, recorded: Sequence[Calls]
) -> attribution.Attribution:
    prior: dict[int, tuple[attribution.Paths, str]] = {}
    for node in walk_nodes(file.model.graph):
        carried = file.carried[node.start]
        modules = carriers.modules_of(node, carried)
        if modules is not None and not afresh:
            paths = tuple(path for path, _ in modules)
            if all(path in tree.modules for path in paths):
                prior[node.start] = (paths, carried.evidence or attribution.CARRIER)
    return attribution.attribute(file.model, tree, base, prior=prior, recorded=recorded)


def _tag_file(file: _File, placed: attribution.Attribution, source: str | None) -> FileReport:
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
    metadata = _metadata_edits(file, chains, source)
    changed = _would_change(file, nodes, edits) or bool(metadata)
    if changed:
        rewrite(file.fd, file.model, edits, metadata)
    owners = {chain[-1].path: chain[-1].module_class for chain in chains}
    return FileReport(
        path=file.path,
        nodes=len(nodes),
        modules=owners,
        evidence=_counts(placement.evidence for placement in placed.placements.values()),
        attribute=len(free),
        on_root=sum(len(placed.chain(node)) == 1 for node in nodes),
        root_class=placed.tree.root_class,
        classes_known=placed.tree.classes_known,
        changed=changed,
    )


def _removal(file: _File, node: Node) -> list[Edit]:
    carried = file.carried[node.start]
    if not carried.tag and not carried.evidence:
        return []
    return carriers.removal(node, node_bytes(file.fd, node), carried)


def _would_change(file: _File, nodes: Sequence[Node], edits: dict[int, list[Edit]]) -> bool:
    """Whether any edit of a node puts other bytes where it takes bytes away."""
    for node in nodes:
        removed = b"".join(
            node_bytes(file.fd, node)[edit.start - node.start : edit.end - node.start]
            for edit in edits[node.start]
        )
        if removed != b"".join(edit.data for edit in edits[node.start]):
            return True
    return False


def _metadata_edits(
    file: _File, chains: Iterable[carriers.Chain], source: str | None
) -> list[Edit]:
    """The model's own record: who tagged it, from what, with what."""
    from modelexport_optimum.system.version import __version__

    old = {key: value for key, value, *_ in file.model.metadata if key.startswith(_METADATA)}
    classes: dict[str, str | None] = {}
    for chain in chains:
        for segment in chain:
            name = segment.module_class
            same = classes.get(name, segment.qualified) == segment.qualified
            classes[name] = segment.qualified if same else None
    unambiguous = {name: qualified for name, qualified in sorted(classes.items()) if qualified}
    new = {_VERSION: __version__, _CLASSES: json.dumps(unambiguous)}
    recorded = source or old.get(_SOURCE)
    if recorded:
        new[_SOURCE] = recorded
    for package in _RECORDED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            new[_METADATA + package] = importlib.metadata.version(package)
    if new == old:
        return []
    removed = [
        Edit(start, end, b"")
        for key, _, start, end in file.model.metadata
        if key.startswith(_METADATA)
    ]
    added = b"".join(
        length_delimited(14, length_delimited(1, k.encode()) + length_delimited(2, v.encode()))
        for k, v in sorted(new.items())
    )
    return [*removed, Edit(file.model.size, file.model.size, added)]


def _report_carried(file: _File) -> FileReport:
    modules: dict[str, str] = {}
    evidence = []
    attribute = on_root = 0
    root_class = ""
    for node in walk_nodes(file.model.graph):
        carried = file.carried[node.start]
        chain = carriers.modules_of(node, carried) or [("", "")]
        root_class = chain[0][1]
        modules[chain[-1][0]] = chain[-1][1]
        evidence.append(carried.evidence)
        attribute += carried.attribute
        on_root += len(chain) == 1
    return FileReport(
        path=file.path,
        nodes=len(evidence),
        modules=modules,
        evidence=_counts(evidence),
        attribute=attribute,
        on_root=on_root,
        root_class=root_class,
        classes_known=root_class != "Module",
        changed=False,
    )


def _counts(evidence: Iterable[str]) -> dict[str, int]:
    counts = Counter(evidence)
    return {kind: counts[kind] for kind in attribution.EVIDENCE_KINDS if counts[kind]}


# config.json


def _write_config(directory: Path, reports: Sequence[FileReport]) -> None:
    from modelexport_optimum.system.version import __version__

    modules: dict[str, str] = {}
    for report in reports:
        if report.path.parent == directory:
            modules.update(report.modules)
    _replace_config(
        directory,
        {
            "hierarchy_modules": len(modules),
            "module_types": sorted(set(modules.values())),
            "export_strategy": "htp",
            "version": __version__,
        },
    )


def _read_config(directory: Path) -> str:
    """The text of config.json, "" if there is none."""
    path = directory / "config.json"
    try:
        text = path.read_text(encoding="utf-8")
        described = json.loads(text)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise ModelExportError(f"cannot read {path}: {error}: mend it or take it away") from error
    if not isinstance(described, dict):
        raise ModelExportError(f"{path} is not a JSON object: mend it or take it away")
    return text


def _replace_config(directory: Path, metadata: dict[str, Any] | None) -> bool:
    """Puts `htp_metadata` into config.json as its last key, or takes it out, as text.

    All else in the file stays as it is, to the byte.
    """
    path = directory / "config.json"
    before = _read_config(directory)
    if not _MODEL_KEYS & json.loads(before or "{}").keys():
        return False  # there is none, or it is not a model's
    text = before
    found = re.search(rf',?\n  "{_CONFIG_KEY}": ', text)
    if found:
        _, end = json.JSONDecoder().raw_decode(text, found.end())
        text = text[: found.start()] + text[end:]
    if metadata is not None:
        end = len(text[: text.rindex("}")].rstrip())
        comma = "" if text[:end].endswith("{") else ","
        value = json.dumps(metadata, indent=2).replace("\n", "\n  ")
        text = f'{text[:end]}{comma}\n  "{_CONFIG_KEY}": {value}{text[end:]}'
    if text == before:
        return False
    with path.open("rb") as like, replacing(path, like=like.fileno()) as target:
        os.write(target, text.encode())
    return True
