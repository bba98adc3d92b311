"""export.json, which transformers' own exporter writes next to its graphs.

The author of the file is unknown: an entry with an unexpected form is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelexport_optimum.system.json_files import read_json

if TYPE_CHECKING:
    from pathlib import Path

NAME = "export.json"


@dataclass(frozen=True, slots=True)
class Component:
    """The description of one graph in export.json (transformers/exporters/metadata.py).

    Attributes:
        file: Its file, relative to the directory.
        architecture: Class of the exported module.
        tensors: The type and rank of each argument that is one tensor, by its name.
    """

    file: str
    architecture: str
    tensors: dict[str, tuple[str, int]] = field(default_factory=dict)


def read_components(directory: Path) -> list[Component] | None:
    """Return the components of an export, None if there is no export.json."""
    if not (directory / NAME).is_file():
        return None
    components = _mapping(_mapping(read_json(directory / NAME)).get("components"))
    found = []
    for described in map(_mapping, components.values()):
        metadata = _mapping(described.get("metadata"))
        tensors = {
            name: (str(of["dtype"]), int(of["rank"]))
            for name, of in _mapping(metadata.get("kwargs")).items()
            if isinstance(of, dict)
            and isinstance(of.get("dtype"), str)
            and isinstance(of.get("rank"), int)
        }
        file, architecture = described.get("file"), metadata.get("architecture")
        if isinstance(file, str):
            named = architecture if isinstance(architecture, str) else ""
            found.append(Component(file, named, tensors))
    return found


def exported_architectures(directory: Path) -> list[str]:
    """Return the classes that export.json names, each once."""
    components = read_components(directory) or ()
    return list(dict.fromkeys(one.architecture for one in components if one.architecture))


def _mapping(value: Any) -> dict[str, Any]:  # noqa: ANN401 (what JSON may be)
    return value if isinstance(value, dict) else {}
