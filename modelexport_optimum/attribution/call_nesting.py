"""Modules for nodes of PyTorch's dynamo exporter without a complete record of their own.

Such a node has no record, or stands for several nodes and has the record of one of them. Calls
nest: a call is open from its first operation to its last. So every operation between two operations
of one call ran in that call. If two operations have several calls in common, the innermost call is
the most exact answer. The same holds for a node that replaced others: it is between the inputs of
those and the readers of their outputs.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import onnx

from modelexport_optimum.attribution import export_record
from modelexport_optimum.attribution.packed_parameters import PackedParameters
from modelexport_optimum.attribution.scopes import common
from modelexport_optimum.tags.tag_grammar import is_inside

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelexport_optimum.attribution.data_flow import DataFlow
    from modelexport_optimum.attribution.export_record import Frames
    from modelexport_optimum.onnx_file.skeleton import Model, Tensor


class CallNesting:
    """The calls in which the nodes of a file ran, as far as the nodes' records show them."""

    def __init__(self, model: Model, flow: DataFlow) -> None:
        self._flow = flow
        self._records = [export_record.recorded_frames(node) for node in flow.nodes]
        self._values = [export_record.recorded_value(node) for node in flow.nodes]
        self._rewritten = [export_record.is_rewritten(node) for node in flow.nodes]
        self._recorded = any(self._records)
        self._made = {
            name: index for index, node in enumerate(flow.nodes) for name in node.outputs if name
        }
        self._folded = export_record.folded_parameters(model.graph)
        tensors = {tensor.name: tensor for tensor in model.graph.initializers}
        # The initializers that each node reads.
        self._read = [
            [tensors[name] for name in node.inputs if name in tensors] if self._recorded else []
            for node in flow.nodes
        ]
        matrices = [
            {tensor.name for tensor in read if len(tensor.dims) > 1 and not self._owners(tensor)}
            for read in self._read
        ]
        self._packed = PackedParameters(model, flow, self._records, matrices)

    def _certain(self, index: int) -> bool:
        """Return whether a node's record covers everything that the node computes."""
        return bool(self._records[index]) and not self._rewritten[index]

    def place(self) -> dict[int, tuple[Frames, str]]:
        """Return the innermost call that certainly contains everything that a node computes.

        Returns:
            By the node's number its open calls and the reason, for each uncertain node between two
            certain ones; empty if no node has a record.
        """
        if not self._recorded:
            return {}
        before, after = self._neighbours()
        for index in self._returned(before, after):
            after[index].add(("",))
        found: dict[int, tuple[Frames, str]] = {}
        for index, record in enumerate(self._records):
            if record and self._rewritten[index]:
                found[index] = self._place_rewritten(index, found)
            elif not record and before[index] and after[index]:
                found[index] = self._place_unrecorded(index, before[index], after[index])
        return found

    def _neighbours(self) -> tuple[list[set[Frames]], list[set[Frames]]]:
        """Return for each node the calls of the nearest recorded nodes that feed or read it."""
        count = len(self._records)
        before: list[set[Frames]] = [set() for _ in range(count)]
        after: list[set[Frames]] = [set() for _ in range(count)]
        for index, node in enumerate(self._flow.nodes):
            if self._certain(index):
                continue
            for name in dict.fromkeys(node.inputs):
                producer = self._made.get(name)
                if producer is None or producer >= index:
                    continue
                record = self._record_of(name, producer)
                before[index].update([record] if record else before[producer])
        for index in reversed(range(count)):
            if not self._certain(index):
                for consumer in self._flow.consumers[index]:
                    # What a rewritten node recorded is what its other replaced nodes feed.
                    record = self._records[consumer]
                    after[index].update([record] if record else after[consumer])
        return before, after

    def _returned(self, before: list[set[Frames]], after: list[set[Frames]]) -> list[int]:
        """Return the nodes that no recorded node reads, and that belong to a module's result.

        The root returns the outputs of the graph. A node before an output that only changes the
        layout or the type of a value belongs to the module that computed the value.
        """
        last = [i for i, record in enumerate(self._records) if not record and not after[i]]
        works = {index for index in last if self._reads_floats(index)}
        for index in reversed(last):
            if not works.isdisjoint(self._flow.consumers[index]):
                works.add(index)
        for index in last:
            if not works.isdisjoint(self._flow.producers[index]):
                works.add(index)
        return [index for index in works if before[index]]

    def _record_of(self, name: str, producer: int) -> Frames:
        """Return the calls in which a value was computed, () if no record names the value."""
        if self._certain(producer) or self._values[producer] == name:
            return self._records[producer]
        return ()

    def _place_unrecorded(
        self, index: int, before: set[Frames], after: set[Frames]
    ) -> tuple[Frames, str]:
        """Place a node between operations of one call, or with the parameters that it packs."""
        frames = innermost_common(before, after)
        readers = common(after)
        module = export_record.module_path(readers[-1])
        if len(readers) > len(frames) and self._packed.comes_to(index, module):
            return readers, f"it reads values that were computed from parameters of {module}"
        module = export_record.module_path(frames[-1])
        return frames, f"it is between operations of one call of {module or 'the root'}"

    def _owners(self, tensor: Tensor) -> list[str]:
        """Return the modules of the parameters that an initializer is, or was computed from."""
        names = [tensor.name, *self._folded.get(tensor.name, ())]
        return [owner for name in names if (owner := name.rpartition(".")[0])]

    def _place_rewritten(
        self, index: int, found: dict[int, tuple[Frames, str]]
    ) -> tuple[Frames, str]:
        """Place a node around its record, its parameters and, if it may do more, its input.

        A node with the same inputs as the recorded operation does only that operation. A node that
        is one formula with parameters does that operation and the work of the parameters' modules.
        Any other node may also include earlier operations on its inputs, after the last input was
        computed.
        """
        frames = self._records[index]
        node = self._flow.nodes[index]
        owners = [owner for tensor in self._read[index] for owner in self._owners(tensor)]
        made = {
            (self._made[name], name)
            for name in node.inputs
            if name in self._made and self._made[name] < index
        }
        stored = {tensor.name for tensor in self._read[index]}
        given = {n for n in node.inputs if n and n not in stored and n not in self._made}
        sources = len({producer for producer, _ in made}) + len(given)
        several = sources > 1 or self._reads_other(index)
        alone = export_record.is_whole_operation(node) or (
            bool(owners) and export_record.is_one_formula(node)
        )
        if made and (several or not alone):
            producer, name = max(made)
            last = self._record_of(name, producer) or found.get(producer, (frames, ""))[0]
            frames = common([frames, last])
        for owner in owners:
            while not is_inside(owner, export_record.module_path(frames[-1])):
                frames = frames[:-1]
        return frames, "PyTorch's record of one of the nodes that it replaces, and its inputs"

    def _reads_floats(self, index: int) -> bool:
        """Return whether a node reads a tensor that is neither a number nor a shape."""
        return any(
            prod(tensor.dims) > 1 and tensor.data_type != onnx.TensorProto.INT64
            for tensor in self._read[index]
        )

    def _reads_other(self, index: int) -> bool:
        """Return whether a node reads a constant that is neither a parameter nor a number."""
        return any(prod(t.dims) > 1 and not self._owners(t) for t in self._read[index])


def innermost_common(before: Iterable[Frames], after: Iterable[Frames]) -> Frames:
    """Return the longest common beginning of a sequence of each group."""
    opened = {frames[:end] for frames in before for end in range(1, len(frames) + 1)}
    best: Frames = ()
    for frames in after:
        end = len(frames)
        while end > len(best) and frames[:end] not in opened:
            end -= 1
        best = frames[:end] if end > len(best) else best
    return best
