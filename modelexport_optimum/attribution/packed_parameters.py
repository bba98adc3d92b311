"""Parameters that were packed, transposed or quantized, and so lost their names.

The name of such a matrix tells no module. Two facts together do: no node reads a parameter of the
module, and a matrix that is no parameter reaches an operation of the module through nodes without
record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelexport_optimum.attribution import export_record
from modelexport_optimum.tags.tag_grammar import outer_paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from modelexport_optimum.attribution.data_flow import DataFlow
    from modelexport_optimum.attribution.export_record import Frames
    from modelexport_optimum.onnx_file.skeleton import Model

_MOST = 128
"""Matrices that are followed to one operation, and parameters of the module that reads them. More
are of no one module; to follow them all through a long chain would cost the square of its nodes."""

_MANY = {""}
"""More matrices than `_MOST`. No matrix has that name."""


class PackedParameters:
    """The matrices that nodes without a record read, and the operations to which they come.

    Args:
        model: The file's skeleton.
        flow: Its nodes.
        records: The recorded calls of each node, () without a record.
        matrices: For each node the matrices that it reads and that are no one parameter.
    """

    def __init__(
        self, model: Model, flow: DataFlow, records: Sequence[Frames], matrices: list[set[str]]
    ) -> None:
        self._flow = flow
        self._records = records
        self._read = self._read_so_far(matrices)
        self._arriving = self._arriving_later()
        # The parameters that no node reads, by each module that they are in.
        self._unread: dict[str, list[str]] = {}
        for name in export_record.unread_parameters(model):
            for module in (*outer_paths(name), ""):
                self._unread.setdefault(module, []).append(name)
        # The matrices that come to the operations in each module.
        self._come: dict[str, set[str]] = {}
        # The matrices that come to an operation which, as recorded, reads the parameter itself.
        self._made_into: dict[str, set[str]] = {}
        names = export_record.placeholders(model)
        for index, record in enumerate(records):
            if record and (coming := self._coming(index) | matrices[index]):
                path = export_record.module_path(record[-1])
                for module in {path, *outer_paths(path), ""}:
                    self._come[module] = _joined([self._come.get(module, set()), coming])
                for argument in export_record.recorded_arguments(flow.nodes[index]):
                    name = names.get(argument, "")
                    self._made_into[name] = _joined([self._made_into.get(name, set()), coming])

    def comes_to(self, index: int, reader: str) -> bool:
        """Tell whether a node is part of reading parameters of the module that reads its values.

        It is after all matrices that come to that module's operations. If one of them was made
        of the module's parameters, the node ran after that was read and before the module was
        left. None was if each parameter is known to be another matrix, or if the matrices that
        come to the module are more than its parameters.
        """
        own, come = self._read[index], self._come.get(reader, _MANY)
        inside = self._unread.get(reader, [])
        if not own or own != self._arriving[index] or len(inside) > _MOST:
            return False
        others = [self._made_into[name] for name in inside if name in self._made_into]
        if any("" in followed for followed in (own, come, *others)):
            return False
        explained = set().union(*(made for made in others if made.isdisjoint(own)))
        left = [name for name in inside if not self._made_into.get(name, own).isdisjoint(own)]
        return len(come - explained) <= len(left)

    def _coming(self, index: int) -> set[str]:
        """Return the matrices that come to a node through nodes without a record."""
        return _joined(self._read[one] for one in self._flow.producers[index])

    def _read_so_far(self, matrices: list[set[str]]) -> list[set[str]]:
        """Return for each node without a record the matrices read by it and those that feed it."""
        read: list[set[str]] = [set() for _ in matrices]
        for index, producers in enumerate(self._flow.producers):
            if not self._records[index]:
                before = (read[one] for one in producers if one < index)
                read[index] = _joined([matrices[index], *before])
        return read

    def _arriving_later(self) -> list[set[str]]:
        """Return for each node without a record what comes to the recorded ones that it feeds."""
        arriving: list[set[str]] = [set() for _ in self._records]
        for index in reversed(range(len(self._records))):
            if not self._records[index]:
                arriving[index] = _joined(
                    self._coming(consumer) if self._records[consumer] else arriving[consumer]
                    for consumer in self._flow.consumers[index]
                )
        return arriving


def _joined(sets: Iterable[set[str]]) -> set[str]:
    """Join sets of matrices, as far as they are followed."""
    found: set[str] = set()
    for one in sets:
        found |= one
        if "" in found or len(found) > _MOST:
            return _MANY
    return found
