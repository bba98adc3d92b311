"""Nodes of PyTorch's dynamo exporter that have no record, or only that of one of several.

Calls nest: a call is open from its first operation to its last. So what ran between two operations
of one call ran in that call, and of the calls that two operations have in common the innermost
says the most. This holds for what replaced nodes, too: it stands between what those read and what
reads their values.
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
    """The calls in which the nodes of a file ran, as far as the records of its nodes tell.

    Attributes:
        recorded: Whether any node has a record.
    """

    def __init__(self, model: Model, flow: DataFlow) -> None:
        self._flow = flow
        self._records = [export_record.recorded_frames(node) for node in flow.nodes]
        self._values = [
            export_record.recorded_value(node) if record else ""
            for node, record in zip(flow.nodes, self._records, strict=True)
        ]
        self.recorded = any(self._records)
        self._rewritten = [
            bool(record) and export_record.is_rewritten(node)
            for node, record in zip(flow.nodes, self._records, strict=True)
        ]
        self._made = {
            name: index for index, node in enumerate(flow.nodes) for name in node.outputs if name
        }
        self._folded = export_record.folded_parameters(model.graph)
        tensors = {tensor.name: tensor for tensor in model.graph.initializers}
        # The initializers that each node reads.
        self._read = [
            [tensors[name] for name in node.inputs if name in tensors] if self.recorded else []
            for node in flow.nodes
        ]
        matrices = [
            {tensor.name for tensor in read if len(tensor.dims) > 1 and not self._owners(tensor)}
            for read in self._read
        ]
        self._packed = PackedParameters(model, flow, self._records, matrices)

    def certain(self, index: int) -> bool:
        """Tell whether a node's record is that of all that it does."""
        return bool(self._records[index]) and not self._rewritten[index]

    def place(self) -> dict[int, tuple[Frames, str]]:
        """Return the innermost call that all the work of a node is known to have been in.

        Returns:
            By the node's number its open calls and the reason, for the nodes that are not
            certain and that stand between two that are.
        """
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
            if self.certain(index):
                continue
            for name in dict.fromkeys(node.inputs):
                producer = self._made.get(name)
                if producer is None or producer >= index:
                    continue
                record = self._record_of(name, producer)
                before[index].update([record] if record else before[producer])
        for index in reversed(range(count)):
            if not self.certain(index):
                for consumer in self._flow.consumers[index]:
                    # What a rewritten node recorded is what its other replaced nodes feed.
                    record = self._records[consumer]
                    after[index].update([record] if record else after[consumer])
        return before, after

    def _returned(self, before: list[set[Frames]], after: list[set[Frames]]) -> list[int]:
        """Return the nodes that no recorded one reads and that do, or serve, work of a module.

        A graph's output is returned by the root. A node on the way there that only changes the
        layout or the type of a value belongs to the module that made the value.
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
        """Return the calls in which a value was made, () if no record is that of this value."""
        if self.certain(producer) or self._values[producer] == name:
            return self._records[producer]
        return ()

    def _place_unrecorded(
        self, index: int, before: set[Frames], after: set[Frames]
    ) -> tuple[Frames, str]:
        """Place it between two operations of one call; what packs parameters, in their module."""
        frames = innermost_common(before, after)
        readers = common(after)
        module = export_record.module_path(readers[-1])
        if len(readers) > len(frames) and self._packed.comes_to(index, module):
            return readers, f"it reads values that were computed from parameters of {module}"
        module = export_record.module_path(frames[-1])
        return frames, f"it is between operations of one call of {module or 'the root'}"

    def _owners(self, tensor: Tensor) -> list[str]:
        """Return the modules of the parameters that an initializer is or is made of."""
        names = [tensor.name, *self._folded.get(tensor.name, ())]
        return [owner for name in names if (owner := name.rpartition(".")[0])]

    def _place_rewritten(
        self, index: int, found: dict[int, tuple[Frames, str]]
    ) -> tuple[Frames, str]:
        """Place it around its record, its parameters and, where it may do more, its input.

        What reads the very values of the recorded operation does that alone, and what is one
        formula with parameters does it and the work of their modules. Anything else may do what
        was done to its values before: after the last of them was made.
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
        """Tell whether a node reads a tensor of the graph that is no number and no shape."""
        return any(
            prod(tensor.dims) > 1 and tensor.data_type != onnx.TensorProto.INT64
            for tensor in self._read[index]
        )

    def _reads_other(self, index: int) -> bool:
        """Tell whether a node reads a constant of the graph that is no parameter and no number."""
        return any(prod(t.dims) > 1 and not self._owners(t) for t in self._read[index])


def innermost_common(before: Iterable[Frames], after: Iterable[Frames]) -> Frames:
    """Return the longest that one of some has in common with one of others."""
    opened = {frames[:end] for frames in before for end in range(1, len(frames) + 1)}
    best: Frames = ()
    for frames in after:
        end = len(frames)
        while end > len(best) and frames[:end] not in opened:
            end -= 1
        best = frames[:end] if end > len(best) else best
    return best
