"""The tag's grammar, and its three carriers on one node.

    tag = "/" RootClass *( "/" Class "." relpath )

A tag is written by appending fields to the node's bytes and taken out by removing them:
in protobuf, appended bytes merge into the message, so that nothing that stood before is
touched. This module knows one node at a time; where tags come from is `attribution.py`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections import ChainMap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.onnx_file.rewriter import Edit
from modelexport_optimum.onnx_file.wire import LEN, bytes_fields, length_delimited, varint

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping, Sequence

    from modelexport_optimum.onnx_file.skeleton import Graph, Model, Node

# Names that begin with two underscores are the one escape from an operator's schema that
# onnx.checker and ONNX Runtime leave open (ONNX Runtime, graph/graph.cc: "Unrecognized
# attribute" is not raised for them).
ATTRIBUTE = "__hierarchy_tag"

NAME_SCOPES = "pkg.torch.onnx.name_scopes"
CLASS_HIERARCHY = "pkg.torch.onnx.class_hierarchy"
NAMESPACE = "namespace"
# Ours alone. It stands before the entries that we add, so that these are told from equal
# ones that PyTorch wrote.
EVIDENCE = "modelexport_optimum.evidence"

# ONNX Runtime's Gemm + activation fusion copies the attributes of these operators to the
# fused node as `activation_<name>`, which its schema then refuses
# (onnxruntime/core/optimizer/gemm_activation_fusion.cc).
COPIED_BY_FUSION = frozenset(
    {
        "Elu", "HardSigmoid", "LeakyRelu", "ParametricSoftplus", "Relu", "ScaledTanh", "Selu",
        "Sigmoid", "Softplus", "Softsign", "Tanh", "ThresholdedRelu",
    }
)  # fmt: skip

# ONNX Runtime drops these operators or moves them elsewhere (identity_elimination.cc,
# dropout_elimination.cc, cast_elimination.cc, transpose_optimizer.cc), so that what reads
# their output may come to compute the same as what reads their input.
PASSED_THROUGH = frozenset({"Cast", "Dropout", "Identity", "Transpose"})

# Python ends a forward at some 300 modules that call one another: 1,000 frames, three for each
# call (torch/nn/modules/module.py). The bound keeps what a hostile tag costs near its length,
# since each of its modules has a path of its own.
MAX_MODULES = 128
MAX_TAG_CHARACTERS = 16 * 1024
MAX_SCOPES_CHARACTERS = 128 * 1024

_CLASS = re.compile(r"[^\s./:]+")
_QUALIFIED_CLASS = re.compile(r"(?:[^\s/:]*\.)?[^\s./:]+")
_EVIDENCE_TEXT = re.compile(r"[a-z][a-z ]{0,31}")

_FIELD_ATTRIBUTE, _FIELD_DOC_STRING, _FIELD_METADATA = 5, 6, 9
_ATTRIBUTE_STRING = 4  # AttributeProto.s


@dataclass(frozen=True, slots=True)
class Segment:
    """One module on the way from the root to an operation.

    Attributes:
        path: Module path from the root, as `named_modules()` spells it; "" for the root.
        module_class: Class name.
        qualified: Class name with its Python module.
    """

    path: str
    module_class: str
    qualified: str


Chain = tuple[Segment, ...]


# (module path, class name) of each module, root first.
Modules = tuple[tuple[str, str], ...]


def format_tag(chain: Chain) -> str:
    """Spells the tag of a chain of modules, root first, each inside the one before it."""
    return _tag_of([(segment.path, segment.module_class) for segment in chain])


def _tag_of(modules: Sequence[tuple[str, str]]) -> str:
    parts = ["/", modules[0][1]]
    for (outer, _), (path, name) in itertools.pairwise(modules):
        parts += ["/", name, ".", path[len(outer) + 1 :] if outer else path]
    return "".join(parts)


@functools.lru_cache(maxsize=1024)
def parse_tag(tag: str) -> Modules | None:
    """Reads a tag.

    Args:
        tag: Any string.

    Returns:
        (module path, class name) of each module, root first, or None if it is no tag.
    """
    if not tag.startswith("/") or len(tag) > MAX_TAG_CHARACTERS or "\n" in tag:
        return None
    # A slash inside a module's name: what follows it has no class before a dot.
    parts: list[str] = []
    for part in tag[1:].split("/"):
        head, dot, relative = part.partition(".")
        if len(parts) > 0 and not (dot and relative and _is_class(head)):
            if len(parts) == 1:
                return None
            parts[-1] += "/" + part
        else:
            parts.append(part)
    if not _is_class(parts[0]) or len(parts) > MAX_MODULES:
        return None
    modules = [("", parts[0])]
    for part in parts[1:]:
        name, _, relative = part.partition(".")
        outer = modules[-1][0]
        modules.append((f"{outer}.{relative}" if outer else relative, name))
    return tuple(modules)


def _is_class(text: str) -> bool:
    return _CLASS.fullmatch(text) is not None


def parse_texts(text: str) -> list[str] | None:
    r"""Reads a list of strings as PyTorch's exporter and `encode` write it.

        list   = "[" [ string *( ", " string ) ] "]"
        string = "'" *character "'" / DQUOTE *character DQUOTE
        character: any but the quote, a backslash and ASCII's controls, or one of the escapes
            that Python's `repr` writes: \\ \' \" \n \r \t \xHH \uHHHH \UHHHHHHHH

    Args:
        text: Any string.

    Returns:
        The strings, or None if it is no such list, or longer than a tag's.
    """
    if len(text) > MAX_SCOPES_CHARACTERS or text[:1] != "[" or text[-1:] != "]":
        return None
    inner = text[1:-1]
    if not inner:
        return []
    if inner[0] == inner[-1] == "'" and len(inner) > 1 and not _UNUSUAL.search(inner):
        plain = inner[1:-1].split("', '", MAX_MODULES + 1)
        if not any("'" in one for one in plain):
            return plain if len(plain) <= MAX_MODULES + 1 else None
    found: list[str] = []
    position = 0
    while (string := _STRING.match(inner, position)) and len(found) <= MAX_MODULES:
        read = _unescaped(string[1] or string[2] or "")
        if read is None:
            return None
        found.append(read)
        position = string.end()
        if position == len(inner):
            return found
        if not inner.startswith(", ", position):
            return None
        position += 2
    return None


_UNUSUAL = re.compile(r"[\\\x00-\x1f\x7f]")
_STRING = re.compile(r"""'((?:[^'\\\x00-\x1f\x7f]|\\.)*)'|"((?:[^"\\\x00-\x1f\x7f]|\\.)*)\"""")
_ESCAPE = re.compile(r"""\\(?:([\\'"nrt])|x([\da-f]{2})|u([\da-f]{4})|U([\da-f]{8})|(.))""")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t"}


def _unescaped(text: str) -> str | None:
    """A string without its escapes, None if one is none or is no character of Unicode."""
    if "\\" not in text:
        return text
    codes = []
    for letter, *numbers, other in _ESCAPE.findall(text):
        code = int("".join(numbers) or "0", 16)
        if other or code > 0x10FFFF or 0xD800 <= code < 0xE000:
            return None
        codes.append(_ESCAPED.get(letter, letter) or chr(code))
    replaced = iter(codes)
    return _ESCAPE.sub(lambda _: next(replaced), text)


def parse_scopes(scopes: str, classes: str) -> list[tuple[str, str]] | None:
    """Reads name_scopes and class_hierarchy.

    Args:
        scopes: Value of name_scopes.
        classes: Value of class_hierarchy.

    Returns:
        (module path, qualified class) of each module, root first, without the node itself;
        None if the two are not such lists, of one length and with a root.
    """
    paths = parse_texts(scopes)
    names = parse_texts(classes)
    if not paths or not names or len(paths) != len(names):
        return None
    found = list(zip(paths[:-1], names[:-1], strict=True))
    if any("\n" in path or not _QUALIFIED_CLASS.fullmatch(name) for path, name in found):
        return None
    return found


@dataclass(slots=True)
class Carried:
    """What a node carries of a tag.

    Attributes:
        tag: The tag, or "" if no carrier has one.
        modules: (module path, class name) of the tag's modules, root first, or None if the
            node has no tag.
        evidence: How the node was placed, or "" if the record of it is gone.
        complete: All carriers are there and agree; the attribute may be left out.
        attribute: The node carries the attribute.
        own_scopes: The scopes in its metadata or their classes are its own, as PyTorch writes
            them.
        doc_string: The doc_string without the tag.
    """

    tag: str
    modules: Modules | None
    evidence: str
    complete: bool
    attribute: bool
    own_scopes: bool
    doc_string: str


def read(node: Node, *, marked: bool) -> Carried:
    """Reads the carriers of a node. What is damaged among them counts as not there.

    Args:
        node: The node.
        marked: The model's own metadata say that its nodes were tagged. Without that, a
            doc_string that looks like a tag is somebody's text.
    """
    if not (marked or node.metadata or ATTRIBUTE in node.attributes):
        return Carried("", None, "", False, False, False, node.doc_string)
    metadata = dict(node.metadata)
    evidence = metadata.get(EVIDENCE, "")
    recorded = bool(evidence)
    if not _EVIDENCE_TEXT.fullmatch(evidence):
        evidence = ""
    first, _, rest = node.doc_string.partition("\n")
    attribute = _attribute_text(node)
    tag = attribute or ""
    doc_string = node.doc_string
    in_doc = (marked or recorded) and parse_tag(first) is not None
    if in_doc:
        tag = first
        doc_string = rest
    modules = parse_tag(tag)
    own_scopes = any(
        key in (NAME_SCOPES, CLASS_HIERARCHY) for key, _ in own_metadata(node.metadata)
    )
    complete = (
        in_doc
        and bool(evidence)
        and attribute in (None, tag)
        and {NAME_SCOPES, CLASS_HIERARCHY, NAMESPACE} <= metadata.keys()
    )
    if complete and not own_scopes:
        # The metadata spell each path on its own, whatever stands in a module's name.
        scopes = parse_scopes(metadata[NAME_SCOPES], metadata[CLASS_HIERARCHY])
        chain = tuple((path, name.rpartition(".")[2]) for path, name in scopes or ())
        complete = _spells(chain, tag)
        modules = chain if complete else modules
    if modules is None:
        tag = ""
    return Carried(tag, modules, evidence, complete, attribute is not None, own_scopes, doc_string)


def _spells(modules: Modules, tag: str) -> bool:
    """Whether a tag is that of a chain of modules, each inside the one before it."""
    if not modules or modules[0][0]:
        return False
    outer = ""
    for path, _ in modules[1:]:
        if not path.startswith(f"{outer}." if outer else "") or path == outer:
            return False
        outer = path
    return _tag_of(modules) == tag


def carries(node: Node, tag: str | None) -> bool:
    """Whether a node carries a tag that was just written; of None, whether it carries nothing."""
    ours = any(key == EVIDENCE for key, _ in node.metadata)
    if tag is None:
        return not ours and ATTRIBUTE not in node.attributes
    return ours and node.doc_string.startswith(tag) and _attribute_text(node) in (None, tag)


def _attribute_text(node: Node) -> str | None:
    """The attribute's text, "" if it has none or is damaged; None without an attribute."""
    data = node.attributes.get(ATTRIBUTE)
    if data is None:
        return None
    try:
        for number, key, start, end in bytes_fields(data):
            if number == _ATTRIBUTE_STRING and data[key] & 7 == LEN:
                return data[start:end].decode()
    except (DecodeError, UnicodeDecodeError):
        return ""
    return ""


@dataclass(frozen=True, slots=True)
class Spelled:
    """What all nodes of one chain of modules have in common.

    Attributes:
        tag: The tag.
        attribute: The attribute's field.
        scopes: The value of name_scopes, up to the node's own entry.
        classes: The value of class_hierarchy, up to the node's own entry.
        namespace: The namespace's field.
    """

    tag: str
    attribute: bytes
    scopes: bytes
    classes: bytes
    namespace: bytes


def spell(chain: Chain) -> Spelled:
    """Spells a chain of modules as the carriers need it.

    Raises:
        ModelExportError: It cannot be spelled so that `read` reads it: a name has a line's
            end or is no class's, or there are too many.
    """
    tag = format_tag(chain)
    paths, classes = repr([s.path for s in chain]), repr([s.qualified for s in chain])
    if (
        len(chain) > MAX_MODULES
        or len(tag) > MAX_TAG_CHARACTERS
        or max(len(paths), len(classes)) > MAX_SCOPES_CHARACTERS // 2  # the node's own follows
        or any("\n" in s.path or not _QUALIFIED_CLASS.fullmatch(s.qualified) for s in chain)
    ):
        raise ModelExportError(
            f"the module {chain[-1].path[:200]!r} of the class {chain[-1].qualified[:200]!r} "
            f"has no tag: a tag has one line, at most {MAX_MODULES} modules and "
            f"{MAX_TAG_CHARACTERS} characters: rename it or the nodes that name it"
        )
    # AttributeProto: name = 1, s = 4, type = 20 (STRING = 3)
    payload = (
        length_delimited(1, ATTRIBUTE.encode())
        + length_delimited(4, tag.encode())
        + varint(20 << 3)
        + varint(3)
    )
    namespace = "/".join(f"{s.path}: {s.qualified}" for s in chain)
    return Spelled(
        tag,
        length_delimited(_FIELD_ATTRIBUTE, payload),
        (paths[:-1] + ", ").encode(),
        (classes[:-1] + ", ").encode(),
        _entry(NAMESPACE, namespace.encode()),
    )


def encode(
    node: Node, spelled: Spelled, evidence: str, *, attribute: bool, doc_string: str
) -> bytes:
    """Encodes the fields that give a node its tag.

    Args:
        node: The node.
        spelled: The chain of modules from the root to the node's own.
        evidence: How the node was placed.
        attribute: Whether the attribute may stand on it.
        doc_string: The node's own doc_string.

    Returns:
        Bytes to append to the node's own.
    """
    doc = spelled.tag.encode()
    if doc_string:
        doc += b"\n" + doc_string.encode()
    parts = [length_delimited(_FIELD_DOC_STRING, doc)]
    if attribute:
        parts.append(spelled.attribute)
    own = node.name.rpartition("/")[2] or node.op_type
    there = {key for key, _ in own_metadata(node.metadata)} if node.metadata else ()
    parts.append(_entry(EVIDENCE, evidence.encode()))
    if NAME_SCOPES not in there:
        parts.append(_entry(NAME_SCOPES, spelled.scopes + f"{own!r}]".encode()))
    if CLASS_HIERARCHY not in there:
        parts.append(_entry(CLASS_HIERARCHY, spelled.classes + f"{node.op_type!r}]".encode()))
    if NAMESPACE not in there:
        parts.append(spelled.namespace)
    return b"".join(parts)


def _entry(key: str, value: bytes) -> bytes:
    """A field of metadata_props: StringStringEntryProto has key = 1, value = 2."""
    payload = length_delimited(1, key.encode()) + length_delimited(2, value)
    return length_delimited(_FIELD_METADATA, payload)


def own_metadata(metadata: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The entries that are the node's own: ours are the evidence and those after it."""
    kept = []
    ours = False
    for key, value in metadata:
        ours = ours or key == EVIDENCE
        if not (ours and key in (EVIDENCE, NAME_SCOPES, CLASS_HIERARCHY, NAMESPACE)):
            kept.append((key, value))
    return kept


def removal(node: Node, data: bytes, carried: Carried) -> list[Edit]:
    """The edits that take the tag out of a node's bytes.

    Args:
        node: The node.
        data: Its message as it stands in the file.
        carried: What `read` found on it.

    Returns:
        Edits at offsets of the file; none if the node carries nothing of ours.

    Raises:
        DecodeError: A field is damaged.
    """
    if not (carried.tag or carried.attribute or EVIDENCE in dict(node.metadata)):
        return []
    edits = []
    ours = False
    docs = []
    for number, key, start, end in bytes_fields(data):
        if data[key] & 7 != LEN:  # a field of no node's, whose number is one of a node's
            continue
        payload = data[start:end]
        if number == _FIELD_ATTRIBUTE and _entry_key(payload) == ATTRIBUTE.encode():
            edits.append(Edit(key, end, b""))
        elif number == _FIELD_METADATA:
            name = _entry_key(payload)
            ours = ours or name == EVIDENCE.encode()
            if ours and name in _OUR_KEYS:
                edits.append(Edit(key, end, b""))
        elif number == _FIELD_DOC_STRING:
            docs.append((key, end, payload))
    own = carried.doc_string.encode()
    if docs and own != docs[-1][2]:
        key, end, _ = docs.pop()
        stood = docs[-1][2] if docs else b""
        restored = b"" if stood == own else length_delimited(_FIELD_DOC_STRING, own)
        edits.append(Edit(key, end, restored))
    return [Edit(node.start + edit.start, node.start + edit.end, edit.data) for edit in edits]


_OUR_KEYS = {key.encode() for key in (EVIDENCE, NAME_SCOPES, CLASS_HIERARCHY, NAMESPACE)}


def _entry_key(payload: bytes) -> bytes:
    """Field 1 of an AttributeProto or a StringStringEntryProto: its name or key.

    What cannot be walked was not written by `encode`, and has none.
    """
    name = b""
    with contextlib.suppress(DecodeError):
        for number, key, start, end in bytes_fields(payload):
            if number == 1 and payload[key] & 7 == LEN:
                name = payload[start:end]  # of several, protobuf takes the last
    return name


def attribute_places(model: Model, tags: Mapping[int, str]) -> set[int]:
    """Finds the nodes on which the attribute changes nothing in what ONNX Runtime builds.

    Its common-subexpression elimination merges nodes that compute the same, unless their
    attributes differ. So every node is numbered by what it computes, and the attribute is
    free where all nodes of one number share a tag.

    Args:
        model: The file's skeleton.
        tags: The tag of each node, by the node's start.

    Returns:
        The starts of these nodes.
    """
    numbers = _Numbers(model.functions)
    numbers.visit(model.graph, {})
    shared: dict[int, str | None] = {}
    for start, number in numbers.of_node.items():
        shared[number] = tags[start] if shared.get(number, tags[start]) == tags[start] else None
    return {
        start
        for start, number in numbers.of_node.items()
        if shared[number] is not None and start not in numbers.refused
    }


class _Numbers:
    """Numbers the nodes of a graph and its nested graphs by what they compute."""

    def __init__(self, functions: set[tuple[str, str]]) -> None:
        self.of_node: dict[int, int] = {}
        self.refused: set[int] = set()
        # A model-local function takes the attributes that it declares, and no others.
        self._functions = functions
        self._numbers: dict[object, int] = {}

    def _number(self, key: object) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def visit(self, graph: Graph, outer: MutableMapping[str, int]) -> None:
        values: MutableMapping[str, int] = ChainMap({}, outer) if outer else {}
        for value in graph.inputs:
            values[value.name] = self._number((id(graph), value.name))
        for tensor in graph.initializers:
            by_value = tensor.value if tensor.value is not None else (id(graph), tensor.name)
            values[tensor.name] = self._number(("constant", by_value))
        constants = {number for key, number in self._numbers.items() if _is_constant(key)}
        for node in graph.nodes:
            for _, nested in node.subgraphs:
                self.visit(nested, values)
            inputs = tuple(values.get(name, -1) if name else -2 for name in node.inputs)
            attributes = tuple(sorted(i for i in node.attributes.items() if i[0] != ATTRIBUTE))
            if node.subgraphs:
                key: object = node.start
            elif node.op_type == "Constant" and not node.domain:
                key = ("constant", constant_value(node))
            elif inputs and all(i in constants for i in inputs):
                # ONNX Runtime computes it once and for all: its value may equal any other.
                key = ("constant", "computed", node.op_type, len(inputs))
            else:
                key = (node.domain, node.op_type, inputs, attributes)
            number = self.of_node[node.start] = self._number(key)
            if _is_constant(key):
                constants.add(number)
            called = (node.domain, node.op_type) in self._functions
            if called or node.op_type in COPIED_BY_FUSION:
                self.refused.add(node.start)
            passes = node.op_type in PASSED_THROUGH and not node.domain
            for index, name in enumerate(node.outputs):
                if passes and index == 0:
                    values[name] = inputs[0]
                else:
                    values[name] = number if index == 0 else self._number((number, index))


def _is_constant(key: object) -> bool:
    return isinstance(key, tuple) and key[0] == "constant"


def constant_value(node: Node) -> bytes:
    """A Constant's tensor as an initializer of the same value would be serialized."""
    for name, data in node.attributes.items():
        if name == "value":
            for number, _, start, end in bytes_fields(data):
                if number == 5:
                    return data[start:end]
    return b"".join(data for name, data in sorted(node.attributes.items()) if name != ATTRIBUTE)
