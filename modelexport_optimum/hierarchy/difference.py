"""The result of `diff`: the differences between two exports, by file and module."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from modelexport_optimum.system.display import Displayed
from modelexport_optimum.system.notebook import shown, table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MOST_CHANGES = 4
"""Maximum number of changes of one module shown in a notebook."""


@dataclass(frozen=True, slots=True, repr=False)
class Change(Displayed):
    """One difference.

    Attributes:
        name: Its name: an operator, a parameter, an input or output, an opset.
        a: The value in the first export, "" if it does not have it.
        b: The value in the second export.
    """

    name: str
    a: str
    b: str


@dataclass(frozen=True, slots=True, repr=False)
class ModuleChange(Displayed):
    """A module that differs.

    Attributes:
        module: Module path.
        module_class: Its class; of the second export, if the two differ.
        only_in: "a" or "b" if the other export lacks it, else "".
        class_changes: Its class, if it differs.
        operator_changes: Its own operators, with their number, or with "other attributes".
        parameter_changes: Its own parameters, with type and shape, or with "other values".
    """

    module: str
    module_class: str
    only_in: str = ""
    class_changes: tuple[Change, ...] = ()
    operator_changes: tuple[Change, ...] = ()
    parameter_changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True, repr=False)
class NodeChange(Displayed):
    """A node that is in both exports, but in another place.

    Attributes:
        name: Node name.
        op_type: Operator.
        a: The module that it is in, or the modules that it reads from, in the first export.
        b: The same in the second one.
    """

    name: str
    op_type: str
    a: str
    b: str


@dataclass(frozen=True, slots=True, repr=False)
class FileDiff(Displayed):
    """What differs between two files.

    Attributes:
        file: The file, relative to the given directories.
        only_in: "a" or "b" if the other export lacks it, else "".
        interface: Opsets, inputs and outputs that differ.
        modules: Modules that differ.
        moved: Nodes whose module differs.
        rewired: Nodes that read values of other modules, in modules of the same operators.
    """

    file: str
    only_in: str = ""
    interface: tuple[Change, ...] = ()
    modules: tuple[ModuleChange, ...] = ()
    moved: tuple[NodeChange, ...] = ()
    rewired: tuple[NodeChange, ...] = ()

    @property
    def same(self) -> bool:
        """Nothing differs."""
        return not (self.only_in or self.interface or self.modules or self.moved or self.rewired)

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Yield each difference: the module, its class, and what differs."""
        if self.only_in:
            yield "", "", f"only in {self.only_in}"
        if self.interface:
            yield "the graph", "", _changes(self.interface)
        for module in self.modules:
            yield module.module, module.module_class, _of_module(module)
        for node in self.moved:
            yield node.a, node.op_type, f"{node.name} is in {node.b}"
        for node in self.rewired:
            yield "", node.op_type, f"{node.name} reads {node.b}, not {node.a}"


@dataclass(frozen=True, slots=True, repr=False)
class Diff(Displayed):
    """The differences between two exports, by file."""

    a: Path
    b: Path
    files: tuple[FileDiff, ...]

    @property
    def same(self) -> bool:
        """Nothing differs."""
        return all(file.same for file in self.files)

    def _repr_html_(self) -> str:
        """Return the HTML for a notebook."""
        if self.same:
            return shown(f"{self.a} and {self.b}", table(("", ""), [("modules", "same")]))
        rows = [(file.file, *row) for file in self.files for row in file.rows()]
        return shown(f"a {self.a}, b {self.b}", table(("file", "module", "class", "a → b"), rows))

    def to_dict(self) -> dict[str, Any]:
        """Return the difference as data for JSON."""
        files = [{"file": file.file, "same": file.same, **asdict(file)} for file in self.files]
        for module in (module for file in files for module in file["modules"]):
            module["class"] = module.pop("module_class")
        return {"same": self.same, "a": str(self.a), "b": str(self.b), "files": files}


def _of_module(change: ModuleChange) -> str:
    if change.only_in:
        return f"only in {change.only_in}"
    return _changes((*change.class_changes, *change.operator_changes, *change.parameter_changes))


def _changes(changes: tuple[Change, ...]) -> str:
    def written() -> Iterator[str]:
        for change in changes[:_MOST_CHANGES]:
            yield f"{change.name} {change.a or 'nothing'} → {change.b or 'nothing'}"
        if len(changes) > _MOST_CHANGES:
            yield f"{len(changes) - _MOST_CHANGES:,} more"

    return ", ".join(written())
