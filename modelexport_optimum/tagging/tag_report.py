"""The result of the pass, for one file and for all files."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelexport_optimum.attribution import placements
from modelexport_optimum.onnx_file.skeleton import walk_all_nodes
from modelexport_optimum.system.display import Displayed

if TYPE_CHECKING:
    from pathlib import Path

    from modelexport_optimum.tagging.open_files import OpenFile


@dataclass(frozen=True, slots=True, repr=False)
class FileReport(Displayed):
    """The result of the pass for one file.

    Attributes:
        file: The file.
        node_count: Number of nodes, including nested graphs and bodies of functions.
        modules: Module path to class name, of the modules that are in any tag.
        evidence_counts: Number of nodes for each kind of evidence.
        with_attribute: Number of nodes that carry the attribute.
        on_root: Number of nodes on the root.
        module_class: Class of the root.
        classes_known: False if the tags contain only paths.
        changed: The file was written.
    """

    file: Path
    node_count: int
    modules: dict[str, str]
    evidence_counts: dict[str, int]
    with_attribute: int
    on_root: int
    module_class: str
    classes_known: bool
    changed: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the report as data for JSON."""
        return {
            "file": str(self.file),
            "class": self.module_class,
            "node_count": self.node_count,
            "module_count": len(self.modules),
            "evidence_counts": self.evidence_counts,
            "with_attribute": self.with_attribute,
            "on_root": self.on_root,
            "classes_known": self.classes_known,
            "changed": self.changed,
            "modules": [{"module": path, "class": name} for path, name in self.modules.items()],
        }


@dataclass(frozen=True, slots=True, repr=False)
class TagReport(Displayed):
    """The result of the pass for all files."""

    files: tuple[FileReport, ...]

    @property
    def node_count(self) -> int:
        """Number of nodes."""
        return sum(file.node_count for file in self.files)

    @property
    def module_count(self) -> int:
        """Number of modules in any tag of any file."""
        named = {(file.file.parent, path) for file in self.files for path in file.modules}
        return len(named)

    @property
    def evidence_counts(self) -> dict[str, int]:
        """Number of nodes for each kind of evidence."""
        counts = Counter[str]()
        for file in self.files:
            counts.update(file.evidence_counts)
        return counted(counts)

    @property
    def classes_known(self) -> bool:
        """False if any file's tags contain only paths."""
        return all(file.classes_known for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as data for JSON."""
        return {
            "node_count": self.node_count,
            "module_count": self.module_count,
            "evidence_counts": self.evidence_counts,
            "classes_known": self.classes_known,
            "files": [file.to_dict() for file in self.files],
        }


def report_of_carried(file: OpenFile) -> FileReport:
    """Return the report on a file whose nodes all have their tags."""
    modules: dict[str, str] = {}
    evidence = []
    attribute = on_root = 0
    root_class = ""
    for node in walk_all_nodes(file.model):
        carried = file.carried[node.start]
        chain = carried.modules or [("", "")]
        root_class = chain[0][1]
        modules.update(chain)
        evidence.append(carried.evidence)
        attribute += carried.attribute
        on_root += len(chain) == 1
    return FileReport(
        file=file.path,
        node_count=len(evidence),
        modules=modules,
        evidence_counts=counted(Counter(evidence)),
        with_attribute=attribute,
        on_root=on_root,
        module_class=root_class,
        classes_known=root_class != "Module",
        changed=False,
    )


def counted(counts: Counter[str]) -> dict[str, int]:
    """Return the number of each kind of evidence, strongest first."""
    return {kind: counts[kind] for kind in placements.EVIDENCE_KINDS if counts[kind]}
