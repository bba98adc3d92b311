"""The outputs of each call of each module while PyTorch runs, and where they are used.

Hooks on the modules record the calls. A dispatch mode records the operations between them: the
results that no output needs (an exporter leaves them out), the results that depend on no input (an
exporter may store them as constants), the choices of `topk`, and random numbers.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from modelexport_optimum.system.private_names import STORAGE_OF_TENSOR
from modelexport_optimum.tags.recorded_call import RecordedCall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np
    from torch.utils.hooks import RemovableHandle

    Keep: TypeAlias = Callable[[str, np.ndarray], None]


class TorchCalls:
    """Records the calls of a run."""

    def __init__(self, whole: torch.nn.Module, traced: torch.nn.Module, keep: Keep) -> None:
        """Prepare for one run.

        Args:
            whole: The model, or the component of a pipeline; the calls have its paths.
            traced: The part of it that is run.
            keep: Called with the name and value of each tensor.
        """
        self.calls: list[RecordedCall] = []
        self._keep = keep
        self._paths: dict[int, list[str]] = {}
        for path, module in whole.named_modules(remove_duplicate=False):
            self._paths.setdefault(id(module), []).append(path)
        # Optimum traces a copy of some components: it has the same paths.
        if id(traced) not in self._paths:
            for path, module in traced.named_modules(remove_duplicate=False):
                self._paths.setdefault(id(module), []).append(path)
        self._modules = {id(m): m for part in (whole, traced) for m in part.modules()}
        self._stack: list[int] = []
        self._counts: dict[str, int] = {}
        # The name and version of tensors that have left a call, as long as they live; and of
        # those that a call was given.
        self._left = WeakTensorKeyDictionary()
        self._given = WeakTensorKeyDictionary()
        self._operations = _Operations(self._choose, self._draw)
        self._made_by: list[set[int]] = []
        # The operation that drew a value, by the value's name.
        self._drawn_by: dict[str, int] = {}
        self._inputs: dict[int, torch.Tensor] = {}

    @contextlib.contextmanager
    def recorded(self, inputs: Iterable[torch.Tensor]) -> Iterator[None]:
        """Record the calls in the block, with the inputs of the whole model."""
        whole = list(inputs)
        self._inputs = {id(tensor): tensor for tensor in whole}
        self._operations.begin(whole)
        hooks: list[RemovableHandle] = []
        for module in self._modules.values():
            hooks.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            hooks.append(module.register_forward_hook(self._leave))
        try:
            with self._operations:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def end(self, outputs: Iterable[torch.Tensor]) -> None:
        """Record what the outputs of the whole model depend on."""
        needed = self._operations.before(outputs)
        for index, (call, made_by) in enumerate(zip(self.calls, self._made_by, strict=True)):
            self.calls[index] = replace(
                call,
                needed=not made_by or not made_by.isdisjoint(needed),
                varies=self._operations.vary(made_by),
                drawn=self._operations.are_drawn(made_by),
                # An exporter leaves out a draw that no output needs.
                draws=tuple(name for name in call.draws if self._drawn_by[name] in needed),
            )

    def _enter(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ANN401
        paths = self._paths[id(module)]
        around = self.calls[self._stack[-1]].path if self._stack else ""
        path = next((p for p in paths if not around or p.startswith(f"{around}.")), paths[0])
        number = self._counts.get(path, 0)
        self._counts[path] = number + 1
        reads: dict[str, None] = {}
        given: dict[str, None] = {}
        for tensor in tensors((args, kwargs)):
            if name := _name_of(tensor, self._left):
                reads[name] = None
            elif self._stack and id(tensor) not in self._inputs:
                name = _name_of(tensor, self._given)
                if name is None:
                    name = f"{path}#{number}<{len(given)}"
                    self._given[tensor] = (name, tensor._version)
                    self._keep(name, as_array(tensor))
                given[name] = None
        has_weights = any(True for _ in (*module.parameters(), *module.buffers()))
        self._stack.append(len(self.calls))
        self.calls.append(
            RecordedCall(
                path, type(module).__name__, number, around,
                reads=tuple(reads), given=tuple(given), has_weights=has_weights,
            )
        )  # fmt: skip
        self._made_by.append(set())

    def _leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401
        index = self._stack.pop()
        call = self.calls[index]
        names: list[str] = []
        for tensor in tensors(output):
            name = _name_of(tensor, self._left)
            if name is None:
                name = f"{call.path or 'root'}#{call.number}.{len(names)}"
                self._left[tensor] = (name, tensor._version)
                self._keep(name, as_array(tensor))
            names.append(name)
            self._made_by[index] |= self._operations.writers(tensor)
        first = next(tensors(args), None)
        passes_through = (
            isinstance(output, torch.Tensor)
            and first is not None
            and not any(True for _ in module.parameters())
            and first.shape == output.shape
            and torch.equal(first, output)
        )
        self.calls[index] = replace(
            call, outputs=tuple(dict.fromkeys(names)), passes_through=passes_through
        )

    def _choose(self, indices: torch.Tensor) -> None:
        self._note("choices", "?", indices)

    def _draw(self, value: torch.Tensor, number: int) -> None:
        if name := self._note("draws", "~", value):
            self._drawn_by[name] = number

    def _note(self, kind: str, sign: str, value: torch.Tensor) -> str:
        """Keep a value of the innermost call; return its name, "" outside of all calls."""
        if not self._stack:
            return ""
        call = self.calls[self._stack[-1]]
        known = getattr(call, kind)
        name = f"{call.path or 'root'}#{call.number}{sign}{len(known)}"
        self._keep(name, as_array(value))
        changed: dict[str, Any] = {kind: (*known, name)}
        self.calls[self._stack[-1]] = replace(call, **changed)
        return name


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records which operations depend on which others, by the memory that they write to.

    A view shares its memory with its base, so a write to one is also a write to the other.
    """

    def __init__(
        self,
        choose: Callable[[torch.Tensor], None],
        draw: Callable[[torch.Tensor, int], None],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._choose = choose
        self._draw = draw
        self._before: list[set[int]] = []
        self._vary: list[bool] = []
        self._drawn: list[bool] = []
        self._writers: dict[int, set[int]] = {}

    def begin(self, inputs: Iterable[torch.Tensor]) -> None:
        """Record the inputs as the result of one operation."""
        self._note((), inputs, writes=False)
        self._vary[0] = True

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        # The tag is on what may draw: an attention has it, which draws for its dropout alone.
        may_draw = torch.Tag.nondeterministic_seeded in func.tags
        state = torch.get_rng_state() if may_draw else None
        result = func(*args, **(kwargs or {}))
        draws = state is not None and not torch.equal(state, torch.get_rng_state())
        writes = func._schema.is_mutable
        self._note(tensors((args, kwargs)), tensors(result), writes=writes, draws=draws)
        if draws:
            self._draw(next(tensors(result)), len(self._before) - 1)
        if func is torch.ops.aten.topk.default:
            self._choose(result[1])
        return result

    def writers(self, tensor: torch.Tensor) -> set[int]:
        """Return the operations that have written to a tensor's memory."""
        return self._writers.get(_memory(tensor), set())

    def before(self, results: Iterable[torch.Tensor]) -> set[int]:
        """Return the operations that results depend on."""
        todo = [number for tensor in results for number in self.writers(tensor)]
        found: set[int] = set()
        while todo:
            number = todo.pop()
            if number not in found:
                found.add(number)
                todo += self._before[number]
        return found

    def vary(self, numbers: Iterable[int]) -> bool:
        """Return whether one of the operations depends on an input."""
        return any(self._vary[number] for number in numbers)

    def are_drawn(self, numbers: Iterable[int]) -> bool:
        """Return whether one of the operations depends on random numbers."""
        return any(self._drawn[number] for number in numbers)

    def _note(
        self,
        read: Iterable[torch.Tensor],
        made: Iterable[torch.Tensor],
        *,
        writes: bool,
        draws: bool = False,
    ) -> None:
        number = len(self._before)
        memories = {_memory(tensor) for tensor in read}
        before = {other for memory in memories for other in self._writers.get(memory, ())}
        self._before.append(before)
        self._vary.append(self.vary(before))
        self._drawn.append(draws or self.are_drawn(before))
        for tensor in made:
            memory = _memory(tensor)
            if memory not in memories:
                self._writers[memory] = {number}
            elif writes:  # and is no view
                self._writers.setdefault(memory, set()).add(number)


def tensors(value: Any) -> Iterator[torch.Tensor]:  # noqa: ANN401
    """Yield the tensors in the arguments or outputs of a module, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor as a NumPy array."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()  # NumPy has no bfloat16
    array: np.ndarray = tensor.numpy()
    return array


def _memory(tensor: torch.Tensor) -> int:
    return int(STORAGE_OF_TENSOR.of(tensor.untyped_storage()))


def _name_of(tensor: torch.Tensor, names: WeakTensorKeyDictionary) -> str | None:
    """Return the name of a recorded tensor that was not written to since."""
    if tensor not in names:
        return None
    name, version = names[tensor]
    return str(name) if version == tensor._version else None
