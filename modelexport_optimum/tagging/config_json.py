"""The key `htp_metadata` of config.json: written and removed as text.

Only the bytes of this key change, whatever the formatting of the file. The values of the key are
counted here, too.
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.system.atomic_write import replacing, write_all
from modelexport_optimum.system.json_files import parse_json_object
from modelexport_optimum.system.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

NAME = "config.json"

_KEY = "htp_metadata"

_MODEL_KEYS = {"model_type", "architectures", "_class_name"}
"""Keys of which a model's config.json has one, in transformers and diffusers."""

_STRATEGY = "htp"

_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class _Member:
    """A member of the top object: its name, where its name begins, where its value is."""

    name: str
    start: int
    value: int
    end: int


@dataclass(frozen=True, slots=True)
class ConfigJson:
    """The text and the content of a config.json.

    Attributes:
        path: The file.
        text: Its text, with the byte order mark if there is one.
        members: The members of its object, in order.
        content: Its parsed content.
    """

    path: Path
    text: str
    members: tuple[_Member, ...]
    content: Mapping[str, Any]

    @classmethod
    def read(cls, directory: Path) -> ConfigJson | None:
        """Read a directory's config.json, if it has one.

        Raises:
            ModelExportError: It is not a JSON object, or cannot be replaced.
        """
        path = directory / NAME
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise ModelExportError(
                    f"{path} is a link or not a regular file: replace it with a copy"
                )
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ModelExportError(f"cannot read {path}: {error.strerror}") from error
        content = parse_json_object(data, path)
        text = data.decode()
        if not os.access(path, os.W_OK):
            raise ModelExportError(f"{path} is read-only: make it writable or copy it")
        return cls(path, text, tuple(_members(text)), content)

    @property
    def is_of_model(self) -> bool:
        """Whether it describes a model of transformers or diffusers."""
        return bool(_MODEL_KEYS & self.content.keys())

    @property
    def has_key(self) -> bool:
        """Whether it has the key."""
        return _KEY in self.content

    def check_key(self) -> None:
        """Raise ModelExportError if the key belongs to another tool."""
        if any(member.name == _KEY and not self._is_ours(member) for member in self.members):
            raise ModelExportError(
                f"{self.path} has a key {_KEY} of another tool, which would be lost: rename the key"
            )

    def write(self, metadata: Mapping[str, Any] | None) -> bool:
        """Write the key with this value, or remove it; return whether the file changed.

        An existing key keeps its place; a new key is the last one.

        Raises:
            ModelExportError: The file cannot be written; it is unchanged.
        """
        text = self._with(metadata)
        if text == self.text:
            return False
        with self.path.open("rb") as like, replacing(self.path, like=like.fileno()) as target:
            write_all(target, text.encode())
        return True

    def _with(self, metadata: Mapping[str, Any] | None) -> str:
        ours = [member for member in self.members if self._is_ours(member)]
        text = self.text
        if metadata is not None and not ours:
            end = self.members[-1].end
            key = f"{self._line}{json.dumps(_KEY)}{self._colon}"
            return f"{text[:end]},{key}{self._spelled(metadata)}{text[end:]}"
        if metadata is not None:
            member = ours.pop()  # of a repeated key the last one counts
            if self.content[_KEY] != metadata:
                text = text[: member.value] + self._spelled(metadata) + text[member.end :]
        for member in reversed(ours):
            index = self.members.index(member)
            following = _after_space(text, member.end)
            if index > 0:
                text = text[: self.members[index - 1].end] + text[member.end :]
            elif text[following] == ",":
                text = text[: member.start] + text[_after_space(text, following + 1) :]
            else:
                text = text[: member.start] + text[member.end :]
        return text

    def _is_ours(self, member: _Member) -> bool:
        if member.name != _KEY:
            return False
        value = json.loads(self.text[member.value : member.end])
        return isinstance(value, dict) and value.get("export_strategy") == _STRATEGY

    @property
    def _line(self) -> str:
        """The text before a member: a line end and the indentation, or a space, or nothing."""
        first = self.text.index("{") + 1
        before = self.text[first : self.members[0].start]
        found = re.search(r"(\r\n|\n|\r)[ \t]*\Z", before)
        if found:
            return found[0]
        return "" if self._colon == ":" else " "

    @property
    def _colon(self) -> str:
        member = self.members[0]
        _, end = json.JSONDecoder().raw_decode(self.text, member.start)
        return ":" if self.text[end : member.value] == ":" else ": "

    def _spelled(self, metadata: Mapping[str, Any]) -> str:
        """Return the value in the formatting of the file."""
        line = self._line
        indentation = line.lstrip("\r\n")
        if line == indentation:
            return json.dumps(
                metadata, separators=("," if self._colon == ":" else ", ", self._colon)
            )
        value = json.dumps(metadata, indent=indentation, separators=(",", self._colon))
        return value.replace("\n", line)


def metadata_of(modules: Mapping[str, str]) -> dict[str, Any]:
    """Return the key's value, given the modules in any tag of the directory's files."""
    return {
        "hierarchy_modules": len(modules),
        "module_types": sorted(set(modules.values())),
        "export_strategy": _STRATEGY,
        "version": __version__,
    }


def _members(text: str) -> Iterator[_Member]:
    """Yield the members of a JSON object, also repeated ones."""
    decoder = json.JSONDecoder()
    position = _after_space(text, text.index("{") + 1)
    while text[position] != "}":
        start = position
        name, position = decoder.raw_decode(text, start)
        value = _after_space(text, _after_space(text, position) + 1)
        _, end = decoder.raw_decode(text, value)
        yield _Member(name, start, value, end)
        position = _after_space(text, end)
        if text[position] == ",":
            position = _after_space(text, position + 1)


def _after_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return position if found is None else found.end()
