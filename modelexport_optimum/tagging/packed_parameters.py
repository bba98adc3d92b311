"""What was made of parameters and kept none of their names: packed, transposed, quantized.

Such a matrix tells no module. What does is that a module's parameter is read by no node, while a
matrix that is no one parameter comes to an operation of this module through nodes without record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelexport_optimum.tagging import export_record
from modelexport_optimum.tagging.tag_grammar import is_inside

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelexport_optimum.onnx_file.skeleton import Model
    from modelexport_optimum.tagging.data_flow import DataFlow
    from modelexport_optimum.tagging.export_record import Frames


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
        self._unread = export_record.unread_parameters(model)
        # The matrices that come to the operations of each module.
        self._come: dict[str, set[str]] = {}
        # The matrices that come to an operation which, as recorded, reads the parameter itself.
        self._made_into: dict[str, set[str]] = {}
        names = export_record.placeholders(model)
        for index, record in enumerate(records):
            if record and (coming := self._coming(index) | matrices[index]):
                module = export_record.module_path(record[-1])
                self._come.setdefault(module, set()).update(coming)
                for name in export_record.recorded_arguments(flow.nodes[index]):
                    self._made_into.setdefault(names.get(name, ""), set()).update(coming)

    def comes_to(self, index: int, reader: str) -> bool:
        """Tell whether a node is part of reading parameters of the module that reads its values.

        It is after all matrices that come to that module's operations. If one of them was made
        of the module's parameters, the node ran after that was read and before the module was
        left. None was if each parameter is known to be another matrix, or if the matrices that
        come to the module are more than its parameters.
        """
        own = self._read[index]
        if not own or own != self._arriving[index]:
            return False
        inside = [name for name in self._unread if is_inside(name.rpartition(".")[0], reader)]
        others = [self._made_into[name] for name in inside if name in self._made_into]
        explained = set().union(*(made for made in others if made.isdisjoint(own)))
        left = [name for name in inside if not self._made_into.get(name, own).isdisjoint(own)]
        come = set().union(*(one for at, one in self._come.items() if is_inside(at, reader)))
        return len(come - explained) <= len(left)

    def _coming(self, index: int) -> set[str]:
        """Return the matrices that come to a node through nodes without a record."""
        return set().union(*(self._read[one] for one in self._flow.producers[index]))

    def _read_so_far(self, matrices: list[set[str]]) -> list[set[str]]:
        """Return for each node without a record the matrices read by it and those that feed it."""
        pairs = zip(matrices, self._records, strict=True)
        read = [set() if record else set(names) for names, record in pairs]
        for index, producers in enumerate(self._flow.producers):
            if not self._records[index]:
                read[index].update(*(read[one] for one in producers if one < index))
        return read

    def _arriving_later(self) -> list[set[str]]:
        """Return for each node without a record what comes to the recorded ones that it feeds."""
        arriving: list[set[str]] = [set() for _ in self._records]
        for index in reversed(range(len(self._records))):
            if not self._records[index]:
                for consumer in self._flow.consumers[index]:
                    recorded = self._records[consumer]
                    arriving[index] |= self._coming(consumer) if recorded else arriving[consumer]
        return arriving
