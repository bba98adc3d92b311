"""Parameters that were packed, transposed or quantized, and so lost their names.

The name of such a matrix does not name a module. Two facts together do: no node reads a parameter
of the module, and a matrix that is not a parameter reaches an operation of the module through nodes
without a record.
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
"""Maximum number of matrices that are followed to one operation, and of parameters of the module
that reads them. More matrices belong to no single module, and to follow them all through a long
chain would cost the square of its nodes."""

_MANY = {""}
"""Stands for more matrices than `_MOST`. No matrix has this name."""


class PackedParameters:
    """The matrices that nodes without a record read, and the operations that they reach.

    Args:
        model: The file's skeleton.
        flow: Its nodes.
        records: The recorded calls of each node, () without a record.
        matrices: For each node the matrices that it reads and that are not a single parameter.
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
        """Return whether a node prepares parameters for the module that reads its values.

        The node comes after all matrices that reach the module's operations. If one of these was
        made from the module's parameters, the node ran after that parameter was read and before the
        call ended. None was made from them if each parameter is known to be another matrix, or if
        more matrices reach the module than it has parameters.
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
        """Return the matrices that reach a node through nodes without a record."""
        return _joined(self._read[one] for one in self._flow.producers[index])

    def _read_so_far(self, matrices: list[set[str]]) -> list[set[str]]:
        """Return for each unrecorded node the matrices that it and the nodes before it read."""
        read: list[set[str]] = [set() for _ in matrices]
        for index, producers in enumerate(self._flow.producers):
            if not self._records[index]:
                before = (read[one] for one in producers if one < index)
                read[index] = _joined([matrices[index], *before])
        return read

    def _arriving_later(self) -> list[set[str]]:
        """Return for each unrecorded node the matrices that reach the recorded nodes after it."""
        arriving: list[set[str]] = [set() for _ in self._records]
        for index in reversed(range(len(self._records))):
            if not self._records[index]:
                arriving[index] = _joined(
                    self._coming(consumer) if self._records[consumer] else arriving[consumer]
                    for consumer in self._flow.consumers[index]
                )
        return arriving


def _joined(sets: Iterable[set[str]]) -> set[str]:
    """Join sets of matrices, up to the maximum number."""
    found: set[str] = set()
    for one in sets:
        found |= one
        if "" in found or len(found) > _MOST:
            return _MANY
    return found
