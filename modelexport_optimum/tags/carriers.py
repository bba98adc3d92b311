"""The three carriers of a tag on one node: read, written and removed.

A tag is written by appending fields to the node's bytes, and removed by removing them. In protobuf,
appended bytes merge into the message, so the bytes that were there before do not change. This
module handles one node at a time; the room `attribution` finds the tags.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.onnx_file.rewriter import BLOCK_BYTES, Edit
from modelexport_optimum.onnx_file.wire import LEN, bytes_fields, length_delimited, varint
from modelexport_optimum.tags.tag_grammar import (
    MAX_MODULES,
    MAX_SCOPES_CHARACTERS,
    MAX_TAG_CHARACTERS,
    QUALIFIED_CLASS,
    Chain,
    Modules,
    format_tag,
    is_tag_of,
    parse_scopes,
    parse_tag,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from modelexport_optimum.onnx_file.skeleton import Node

ATTRIBUTE = "__hierarchy_tag"
"""An attribute name that is not in an operator's schema must begin with two underscores for
onnx.checker and ONNX Runtime to accept it (ONNX Runtime, graph/graph.cc: "Unrecognized attribute"
is not raised for them)."""

NAME_SCOPES = "pkg.torch.onnx.name_scopes"
CLASS_HIERARCHY = "pkg.torch.onnx.class_hierarchy"
NAMESPACE = "namespace"
EVIDENCE = "modelexport_optimum.evidence"
"""Written only by this tool, before its other entries, to distinguish these from equal entries of
PyTorch."""

PADDING = "modelexport_optimum.padding"
"""Written only by this tool, on one node: blanks that move the weights by whole blocks of a file
system."""

ASIDE = "modelexport_optimum.aside."
"""Prefix of the key of a node's own entry that names another module than the tag. The tool's entry
takes its place, so that readers of that key find the tag's module, because keys should be distinct
(onnx.proto, `NodeProto.metadata_props`)."""

CARRIER = "carrier"
"""The evidence of a tag without a record of it: ONNX Runtime drops the nodes' metadata_props."""

_OUR_KEYS = (EVIDENCE, NAME_SCOPES, CLASS_HIERARCHY, NAMESPACE, PADDING)
"""Keys of metadata_props that `encode` and `padding` write; the first identifies this tool."""

_PLACES = (NAME_SCOPES, CLASS_HIERARCHY, NAMESPACE)
"""Keys of metadata_props that name the module of a node."""

_EVIDENCE_TEXT = re.compile(r"[a-z][a-z ]{0,31}")

_FIELD_ATTRIBUTE, _FIELD_DOC_STRING, _FIELD_METADATA = 5, 6, 9
_ATTRIBUTE_STRING = 4  # AttributeProto.s


@dataclass(slots=True)
class Carried:
    """The tag of a node, with the state of its carriers.

    Attributes:
        tag: The tag, or "" if no carrier has one.
        modules: (module path, class name) of the tag's modules, root first, or None if the node has
            no tag.
        evidence: The evidence for the module, or "" if it is no longer recorded.
        complete: All carriers exist and agree; the attribute may be missing.
        attribute: The node has the attribute.
        own_scopes: The scopes or their classes in its metadata are its own, written by PyTorch.
        doc_string: The doc_string without the tag.
    """

    tag: str
    modules: Modules | None
    evidence: str
    complete: bool
    attribute: bool
    own_scopes: bool
    doc_string: str

    @property
    def placed_by(self) -> str:
        """The evidence of its tag, "carrier" if it is no longer recorded; "" without a tag."""
        return (self.evidence or CARRIER) if self.tag else ""


def read(node: Node, *, marked: bool) -> Carried:
    """Read the carriers of a node. A damaged carrier counts as missing.

    Args:
        node: The node.
        marked: Whether the model's own metadata say that its nodes were tagged. If not, a
            doc_string that looks like a tag is other text.
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
    own_scopes = any(key in (NAME_SCOPES, CLASS_HIERARCHY) for key, _ in _kept(node.metadata))
    complete = (
        in_doc and bool(evidence) and attribute in (None, tag) and metadata.keys() >= set(_PLACES)
    )
    if complete and not own_scopes:
        # The metadata contain each path separately, with any characters in a module's name.
        scopes = parse_scopes(metadata[NAME_SCOPES], metadata[CLASS_HIERARCHY])
        chain = tuple((path, name.rpartition(".")[2]) for path, name in scopes or ())
        complete = is_tag_of(chain, tag)
        modules = chain if complete else modules
    if modules is None:
        tag = ""
    return Carried(tag, modules, evidence, complete, attribute is not None, own_scopes, doc_string)


def modules_in_tags(carried: Iterable[Carried]) -> dict[str, str]:
    """Return the modules in the tags of nodes, path to class name."""
    modules: dict[str, str] = {}
    for each in carried:
        modules.update(each.modules or ())
    return modules


def carries(node: Node, tag: str | None) -> bool:
    """Return whether a node has a tag that was just written; for None, whether it has none."""
    ours = any(key == EVIDENCE for key, _ in node.metadata)
    if tag is None:
        return not ours and ATTRIBUTE not in node.attributes
    return ours and node.doc_string.startswith(tag) and _attribute_text(node) in (None, tag)


def _attribute_text(node: Node) -> str | None:
    """Return the attribute's text, "" if it has none or is damaged; None without an attribute."""
    if ATTRIBUTE not in node.attributes:
        return None
    try:
        return _field(node.attributes[ATTRIBUTE], _ATTRIBUTE_STRING).decode()
    except UnicodeDecodeError:
        return ""


@dataclass(frozen=True, slots=True)
class Spelled:
    """The fields that all nodes of one chain of modules share.

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
    """Return the fields of the carriers for a chain of modules.

    Raises:
        ModelExportError: The chain has no form that `read` can read: a name has a line end,
            begins with a slash or is not a class name, or there are too many.
    """
    tag = format_tag(chain)
    paths, classes = repr([s.path for s in chain]), repr([s.qualified for s in chain])
    if (
        parse_tag(tag) is None
        or len(chain) > MAX_MODULES
        or max(len(paths), len(classes)) > MAX_SCOPES_CHARACTERS // 2  # the node's own follows
        or not all(QUALIFIED_CLASS.fullmatch(segment.qualified) for segment in chain)
    ):
        raise ModelExportError(
            f"the module {chain[-1].path[:200]!r} of the class {chain[-1].qualified[:200]!r} "
            f"cannot have a tag: a tag has one line, at most {MAX_MODULES} modules and "
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
    node: Node, spelled: Spelled, evidence: str, *, attribute: bool, doc_string: str, aside: bool
) -> bytes:
    """Encode the fields that tag a node when they are appended to its bytes.

    Args:
        node: The node.
        spelled: Its chain of modules.
        evidence: The evidence for its module.
        attribute: Whether the attribute is written.
        doc_string: The former text, which follows the tag.
        aside: Whether `removal` renames the node's own entries.
    """
    doc = spelled.tag.encode()
    if doc_string:
        doc += b"\n" + doc_string.encode()
    parts = [length_delimited(_FIELD_DOC_STRING, doc)]
    if attribute:
        parts.append(spelled.attribute)
    own = node.name.rpartition("/")[2] or node.op_type
    there = {key for key, _ in _kept(node.metadata)} if node.metadata and not aside else ()
    parts.append(_entry(EVIDENCE, evidence.encode()))
    if NAME_SCOPES not in there:
        parts.append(_entry(NAME_SCOPES, spelled.scopes + f"{own!r}]".encode()))
    if CLASS_HIERARCHY not in there:
        parts.append(_entry(CLASS_HIERARCHY, spelled.classes + f"{node.op_type!r}]".encode()))
    if NAMESPACE not in there:
        parts.append(spelled.namespace)
    return b"".join(parts)


def padding(length: int) -> bytes:
    """Encode a field of this many bytes to append after `encode`'s, or of `BLOCK_BYTES` more.

    With a value of 128 bytes or more, all lengths in it take two bytes.
    """
    around = len(_entry(PADDING, b" " * 128)) - 128
    blanks = length - around
    return _entry(PADDING, b" " * (blanks if blanks >= 128 else blanks + BLOCK_BYTES))


def _entry(key: str, value: bytes) -> bytes:
    """Return a field of metadata_props: StringStringEntryProto has key = 1, value = 2."""
    payload = length_delimited(1, key.encode()) + length_delimited(2, value)
    return length_delimited(_FIELD_METADATA, payload)


def own_metadata(metadata: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the node's own entries, with renamed ones under their original keys."""
    return [(key.removeprefix(ASIDE), value) for key, value in _kept(metadata)]


def _kept(metadata: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the entries before the evidence; the evidence and those after it are the tool's."""
    kept = []
    ours = False
    for key, value in metadata:
        ours = ours or key == EVIDENCE
        if not (ours and key in _OUR_KEYS):
            kept.append((key, value))
    return kept


def removal(node: Node, data: bytes, carried: Carried, *, aside: bool = False) -> list[Edit]:
    """Return the edits, at offsets of the file, that remove the tag from a node's bytes.

    Args:
        node: The node.
        data: Its bytes.
        carried: Its tag and carriers.
        aside: Whether its own entries that name its module are renamed, for a new tag.

    Raises:
        DecodeError: A field is damaged.
    """
    edits = []
    ours = False
    docs = []
    for number, key, start, end in bytes_fields(data):
        if data[key] & 7 != LEN:  # a field of no node's, whose number is one of a node's
            continue
        payload = data[start:end]
        if number == _FIELD_ATTRIBUTE and _entry_key(payload) == ATTRIBUTE:
            edits.append(Edit(key, end, b""))
        elif number == _FIELD_METADATA:
            name = _entry_key(payload)
            ours = ours or name == EVIDENCE
            if ours and name in _OUR_KEYS:
                edits.append(Edit(key, end, b""))
            elif moved := _moved(data[key:end], payload, name, aside=aside):
                edits.append(Edit(key, end, moved))
        elif number == _FIELD_DOC_STRING:
            docs.append((key, end, payload))
    own = carried.doc_string.encode()
    if docs and own != docs[-1][2]:
        key, end, _ = docs.pop()
        stood = docs[-1][2] if docs else b""
        restored = b"" if stood == own else length_delimited(_FIELD_DOC_STRING, own)
        edits.append(Edit(key, end, restored))
    return [Edit(node.start + edit.start, node.start + edit.end, edit.data) for edit in edits]


def _moved(entry: bytes, payload: bytes, name: str, *, aside: bool) -> bytes | None:
    """Return an own entry's field with its new key; None if it does not change."""
    own = name.removeprefix(ASIDE)
    wanted = ASIDE + own if aside else own
    if own not in _PLACES or wanted == name:
        return None
    value = _field(payload, 2)
    # One that is spelled in another way than protobuf's would not be the same when it is back.
    return _entry(wanted, value) if entry == _entry(name, value) else None


def _entry_key(payload: bytes) -> str:
    """Return field 1 of an AttributeProto or a StringStringEntryProto: its name or key."""
    return _field(payload, 1).decode(errors="replace")


def _field(message: bytes, wanted: int) -> bytes:
    """Return the bytes of a message's field, b"" if it has none.

    A field that cannot be parsed was not written by `encode`, and has none.
    """
    found = b""
    with contextlib.suppress(DecodeError):
        for number, key, start, end in bytes_fields(message):
            if number == wanted and message[key] & 7 == LEN:
                found = message[start:end]  # of several, protobuf takes the last
    return found
