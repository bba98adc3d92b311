"""Sizes, limits and the numbers of tokens that the JSON files of an export declare.

The files come from an unknown author. A number in them is used only if it is a possible size.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.system.files import read_file
from modelexport_optimum.system.json_files import parse_json_object

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FILES = (
    *("config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer_config.json", "sentence_bert_config.json", "generation_config.json"),
)
"""The model's own settings come first, then those of its tokenizer and processors."""

_MAX_SIZE = 2**24
"""A larger number is not a size: the longest context of a model is ten million tokens."""

_MAX_DEPTH = 3
"""Levels of settings: the parts of a model have text_config, vision_config, backbone_config."""

_LIMIT = re.compile(
    r"(max|n)_(\w+_)?(positions?|position_embeddings|ctx|seq(uence)?_len(gth)?)|model_max_length"
)
"""The names of the largest number of tokens: max_position_embeddings, n_positions, n_ctx,
max_target_positions, max_seq_len, model_max_length (the tokenizer's)."""

_OTHER_LIMIT = re.compile(r"source|relative|rel_|2d|image|frame|vision|audio")
"""Names of other limits: of sound before its convolutions, and of relative or 2D positions."""


@dataclass(frozen=True, slots=True, order=True)
class Size:
    """The size of a dimension.

    Attributes:
        size: The number.
        source: Its origin: a setting, an option, a part of the graph, or "default".
    """

    size: int
    source: str


class Declared:
    """The settings of the export that a graph belongs to."""

    def __init__(self, directory: Path, export: Path | None = None) -> None:
        """Read the existing files.

        A damaged file declares nothing; `verify` reports it. If the directory of the `.onnx` file
        has no config.json, the directories above it are searched, up to the export's.
        """
        above = [one for one in directory.parents if export in (one, *one.parents)]
        described = (one for one in (directory, *above) if (one / _FILES[0]).is_file())
        directory = next(described, directory)
        self._documents: dict[str, dict[str, Any]] = {}
        for name in _FILES:
            path = directory / name
            with contextlib.suppress(OSError, ModelExportError):
                self._documents[name] = parse_json_object(read_file(path), path)

    def number(self, *names: str) -> Size | None:
        """Return the first number declared under one of the names."""
        for key, value in self._entries():
            if key in names and _is_size(value):
                return Size(value, key)
        return None

    def token(self, name: str) -> int | None:
        """Return the number of a token, such as `pad_token_id`."""
        for key, value in self._entries():
            if key == name and isinstance(value, int) and 0 <= value <= _MAX_SIZE:
                return value
        return None

    def longest(self) -> Size | None:
        """Return the maximum number of tokens: the smallest maximum of all parts."""
        found = [
            Size(value, key)
            for key, value in self._entries()
            if _LIMIT.fullmatch(key) and not _OTHER_LIMIT.search(key) and _is_size(value)
        ]
        return min(found, default=None)

    def picture(self) -> tuple[int, int, str] | None:
        """Return height and width of the images, and the name of the setting."""
        for key in ("image_size", "input_size"):
            for name, value in self._entries():
                sides = _sides(value) if name == key else None
                if sides:
                    return *sides, key
        for key in ("crop_size", "size", "pad_size"):
            for document, settings in self._documents.items():
                if key in settings and "processor" in document:
                    sides = _sides(settings[key])
                    if sides:
                        return *sides, f"{key} of {document}"
        return None

    def count(self, name: str) -> int | None:
        """Return the number of entries in a list of the settings."""
        for key, value in self._entries():
            if key == name and isinstance(value, list):
                return len(value)
        return None

    def _entries(self) -> Iterator[tuple[str, Any]]:
        """Yield the settings of all files, those of a part after those of the whole."""
        level: list[dict[str, Any]] = list(self._documents.values())
        for _ in range(_MAX_DEPTH):
            for settings in level:
                yield from settings.items()
            level = [value for part in level for value in part.values() if isinstance(value, dict)]


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MAX_SIZE


def _sides(value: object) -> tuple[int, int] | None:
    """Return height and width, in any spelling that configurations use."""
    if isinstance(value, dict):
        edge = value.get("shortest_edge")
        value = [value.get("height", edge), value.get("width", edge)]
    if isinstance(value, int):
        value = [value, value]
    if isinstance(value, list) and len(value) == 2 and all(map(_is_size, value)):
        return value[0], value[1]
    return None
