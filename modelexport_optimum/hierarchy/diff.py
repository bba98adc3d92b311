"""The differences between two exports, or two versions of one export, by module.

Two exports are the same if their modules have the same operators, attributes and parameters (bit
for bit), the same connections, and the same inputs and outputs. The names of values and the order
of nodes do not matter.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError

from modelexport_optimum.errors import UsageError
from modelexport_optimum.hierarchy.difference import (
    Change,
    Diff,
    FileDiff,
    ModuleChange,
    NodeChange,
)
from modelexport_optimum.hierarchy.tagged_model import (
    TaggedNode,
    read_tagged,
    type_text,
    weights_of,
)
from modelexport_optimum.hierarchy.weights import Weights, fields, tensor_digest
from modelexport_optimum.onnx_file.find import onnx_files_by_name
from modelexport_optimum.onnx_file.reader import LEFT_IN_FILE, damage_named, parse_length
from modelexport_optimum.onnx_file.skeleton import Value, wanted_inputs
from modelexport_optimum.onnx_file.wire import bytes_fields
from modelexport_optimum.tags.carriers import ATTRIBUTE

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from modelexport_optimum.hierarchy.tagged_model import TaggedFile, TaggedModule
    from modelexport_optimum.onnx_file.skeleton import Node, Tensor

_ATTRIBUTE_NAME, _ATTRIBUTE_TENSOR, _ATTRIBUTE_DOC_STRING = 1, 5, 13


def diff(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> Diff:
    """Compare two tagged exports.

    Args:
        a: A tagged `.onnx` file, or a directory with any number of them.
        b: Another file, or another directory. Files of the same name in two directories are
            compared.

    Raises:
        UsageError: There is no such file, or only one of the two is a directory.
        ModelExportError: A file is not tagged, or cannot be read.
    """
    first, second = Path(a), Path(b)
    files_a, files_b = onnx_files_by_name(first), onnx_files_by_name(second)
    if first.is_dir() != second.is_dir():
        raise UsageError(f"one of {a} and {b} is a directory: give two of them, or two files")
    if not first.is_dir():
        files_b = dict(zip(files_a, files_b.values(), strict=True))
    found = []
    for name in sorted({*files_a, *files_b}):
        if name not in files_b or name not in files_a:
            found.append(FileDiff(name, only_in="a" if name in files_a else "b"))
        else:
            found.append(
                _diff_files(name, _Side(files_a[name], first), _Side(files_b[name], second))
            )
    return Diff(first, second, tuple(found))


class _Side:
    """One of two files."""

    def __init__(self, path: Path, given: Path) -> None:
        self.file = read_tagged(path, given=given)
        self.weights = Weights(self.file.model)
        self._digests: dict[int, bytes] = {}

    def digest(self, tensor: Tensor) -> bytes:
        """Return a fingerprint of an initializer's data."""
        key = id(tensor)
        if key not in self._digests:
            self._digests[key] = hashlib.sha256(self.weights.data(tensor)).digest()
        return self._digests[key]


def _diff_files(name: str, a: _Side, b: _Side) -> FileDiff:
    modules = tuple(_diff_modules(a, b))
    pairs = list(_pairs(a.file, b.file))
    moved = [
        NodeChange(one.name, _operator(one.node), _path(one), _path(other))
        for one, other in pairs
        if _path(one) != _path(other)
    ]
    changed = {module.module for module in modules if module.operator_changes or module.only_in}
    rewired = [
        NodeChange(one.name, _operator(one.node), ", ".join(reads), ", ".join(other_reads))
        for one, other in pairs
        if _path(one) == _path(other) and _path(one) not in changed
        if (reads := _sources(one)) != (other_reads := _sources(other))
    ]
    one, other = _interface(a.file), _interface(b.file)
    interface = tuple(
        Change(what, one.get(what, ""), other.get(what, ""))
        for what in {**one, **other}
        if one.get(what) != other.get(what)
    )
    return FileDiff(name, "", interface, modules, tuple(moved), tuple(rewired))


def _interface(file: TaggedFile) -> dict[str, str]:
    """Return the opsets of the operators that are used, the inputs and the outputs."""
    graph, opsets = file.model.graph, file.model.opsets
    used = {tagged.node.domain for tagged in file.nodes}
    described = {f"opset {domain or 'ai.onnx'}": str(opsets.get(domain)) for domain in used}
    for kind, values in (("input", wanted_inputs(graph)), ("output", graph.outputs)):
        described |= {f"{kind} {v.name}": type_text(v.elem_type, v.shape) for v in values}
    return described


# --- Modules --------------------------------------------------------------------------------------


def _diff_modules(a: _Side, b: _Side) -> Iterator[ModuleChange]:
    for path, one in a.file.modules.items():
        other = b.file.modules.get(path)
        if other is None:
            yield ModuleChange(path, one.module_class, only_in="a")
            continue
        same_class = one.module_class == other.module_class
        classes = () if same_class else (Change("class", one.module_class, other.module_class),)
        operators = tuple(_diff_operators(one, a, other, b))
        parameters = tuple(_diff_parameters(path, (one, a), (other, b)))
        if classes or operators or parameters:
            yield ModuleChange(path, other.module_class, "", classes, operators, parameters)
    for path, module in b.file.modules.items():
        if path not in a.file.modules:
            yield ModuleChange(path, module.module_class, only_in="b")


def _operator(node: Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _diff_operators(
    a: TaggedModule, side_a: _Side, b: TaggedModule, side_b: _Side
) -> Iterator[Change]:
    ours, theirs = _operators(a, side_a), _operators(b, side_b)
    for operator in sorted({*ours, *theirs}):
        one, other = ours[operator], theirs[operator]
        if one.total() != other.total():
            yield Change(operator, str(one.total()), str(other.total()))
        elif one != other:
            yield Change(operator, str(one.total()), f"{other.total()} with other attributes")


def _operators(
    module: TaggedModule, side: _Side
) -> dict[str, Counter[frozenset[tuple[str, bytes]]]]:
    """Return a module's operators, each with how often it has which attributes."""
    opsets = side.file.model.opsets
    found: dict[str, Counter[frozenset[tuple[str, bytes]]]] = defaultdict(Counter)
    with damage_named(side.file.path):
        for node in (tagged.node for tagged in module.nodes):
            attributes = frozenset(
                (name, _fingerprint(data, side.weights))
                for name, data in node.attributes.items()
                if name != ATTRIBUTE
            )
            defaults = _defaults(node.op_type, opsets.get(node.domain, 1), node.domain)
            found[_operator(node)][attributes - defaults] += 1
    return found


def _fingerprint(attribute: bytes, weights: Weights | None = None) -> bytes:
    """Return a fingerprint of an attribute's value, however it is stored."""
    parts = []
    for number, _, start, end in bytes_fields(attribute):
        payload = memoryview(attribute)[start:end]
        if number == LEFT_IN_FILE and weights is not None:
            rest = weights.file[parse_length(bytes(payload).decode()) :]
            if not rest:
                raise DecodeError("an attribute has a field of no operator's")
            number, _, start, end = next(fields(rest))  # the field that it represents
            payload = rest[start:end]
        if number == _ATTRIBUTE_TENSOR:
            parts.append((number, tensor_digest(payload)))
        elif number not in (_ATTRIBUTE_NAME, _ATTRIBUTE_DOC_STRING):
            parts.append((number, hashlib.sha256(payload).digest()))
    return b"".join(b"%d:" % number + digest for number, digest in sorted(parts))


@functools.cache
def _defaults(op_type: str, version: int, domain: str) -> frozenset[tuple[str, bytes]]:
    """Return the default attributes of an operator."""
    try:
        schema = onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:  # an operator of ONNX Runtime's own
        return frozenset()
    return frozenset(
        (name, _fingerprint(attribute.default_value.SerializeToString()))
        for name, attribute in schema.attributes.items()
    )


def _diff_parameters(
    path: str, a: tuple[TaggedModule, _Side], b: tuple[TaggedModule, _Side]
) -> Iterator[Change]:
    one, other = (list(weights_of(module.nodes).values()) for module, _ in (a, b))
    # What is the same may have another name: the exporter numbers weights that it transposes.
    for by_name in (True, False):
        for tensor in list(one):
            for candidate in other:
                named = tensor.name == candidate.name
                if named >= by_name and _same(tensor, a[1], candidate, b[1]):
                    one.remove(tensor)
                    other.remove(candidate)
                    break
    names = {tensor.name for tensor in other}
    one.sort(key=lambda tensor: tensor.name not in names)
    for tensor in one:
        match = next((t for t in other if t.name == tensor.name), None)
        if match is None:
            match = next((t for t in other if t.dims == tensor.dims), None)
        if match is not None:
            other.remove(match)
        yield _parameter_change(path, tensor, match)
    for tensor in other:
        yield _parameter_change(path, None, tensor)


def _same(one: Tensor, a: _Side, other: Tensor, b: _Side) -> bool:
    header = (one.dims, one.data_type) == (other.dims, other.data_type)
    return header and a.digest(one) == b.digest(other)


def _parameter_change(path: str, one: Tensor | None, other: Tensor | None) -> Change:
    name = (one or other).name  # type: ignore[union-attr]  # one of them is there
    described = ["" if t is None else type_text(t.data_type, t.dims) for t in (one, other)]
    if described[0] == described[1]:
        described[1] += " with other values"
    return Change(name.removeprefix(f"{path}."), *described)


# --- Nodes ----------------------------------------------------------------------------------------


def _path(tagged: TaggedNode) -> str:
    return "(no tag)" if tagged.module is None else tagged.module.path


def _sources(tagged: TaggedNode) -> list[str]:
    """Return the modules and model inputs that a node's inputs come from, in order."""
    sources = []
    for read in tagged.reads:
        if isinstance(read, Value):
            sources.append(f"the input {read.name}")
        elif isinstance(read, TaggedNode) and read.node.inputs:
            sources.append(_path(read))
    return sources


def _pairs(a: TaggedFile, b: TaggedFile) -> Iterator[tuple[TaggedNode, TaggedNode]]:
    """Yield the nodes that are in both files, by their names."""
    others = _by_key(b)
    for key, node in _by_key(a).items():
        if key in others:
            yield node, others[key]


def _by_key(file: TaggedFile) -> dict[tuple[object, ...], TaggedNode]:
    readers: dict[int, list[str]] = {}
    for node in file.nodes:
        for read in node.reads:
            if isinstance(read, TaggedNode):
                readers.setdefault(id(read), []).append(node.name)
    found: dict[tuple[object, ...], list[TaggedNode]] = {}
    for node in file.nodes:
        key: tuple[object, ...] = (node.graph, node.name, _operator(node.node))
        if node.name.removeprefix(f"{node.op_type}_").isdigit():
            # Such names count the nodes of the file: another file's may be another node.
            key += (*sorted(readers.get(id(node), ())),)
        if node.name:
            found.setdefault(key, []).append(node)
    return {key: nodes[0] for key, nodes in found.items() if len(nodes) == 1}
