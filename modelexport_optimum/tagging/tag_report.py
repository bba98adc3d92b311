"""What the pass found, in one file and in all."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from modelexport_optimum.onnx_file.skeleton import walk_nodes
from modelexport_optimum.tagging import attribution

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from modelexport_optimum.tagging.open_files import OpenFile


@dataclass(frozen=True, slots=True)
class FileReport:
    """What the pass found in one file.

    Attributes:
        path: The file.
        nodes: Number of nodes, nested graphs included.
        modules: Module path to class name, of the modules that stand in any tag.
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
        """Number of modules that stand in any tag of any file."""
        named = {(file.path.parent, path) for file in self.files for path in file.modules}
        return len(named)

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


def report_of_carried(file: OpenFile) -> FileReport:
    """The report of a file whose nodes all carry their tags."""
    modules: dict[str, str] = {}
    evidence = []
    attribute = on_root = 0
    root_class = ""
    for node in walk_nodes(file.model.graph):
        carried = file.carried[node.start]
        chain = carried.modules or [("", "")]
        root_class = chain[0][1]
        modules.update(chain)
        evidence.append(carried.evidence)
        attribute += carried.attribute
        on_root += len(chain) == 1
    return FileReport(
        path=file.path,
        nodes=len(evidence),
        modules=modules,
        evidence=counted(evidence),
        attribute=attribute,
        on_root=on_root,
        root_class=root_class,
        classes_known=root_class != "Module",
        changed=False,
    )


def counted(evidence: Iterable[str]) -> dict[str, int]:
    """How often each kind of evidence stands there, strongest first."""
    counts = Counter(evidence)
    return {kind: counts[kind] for kind in attribution.EVIDENCE_KINDS if counts[kind]}
