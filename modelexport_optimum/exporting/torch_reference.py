"""PyTorch's own run of what Optimum exports, with what leaves each call of each module.

Optimum chooses the parts of the model, the inputs of each and the patches, exactly as for an
export; in the place where it would trace a part, the part is kept and run. Nothing is
exported, and no ONNX file is read.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from modelexport_optimum.exporting import optimum_export
from modelexport_optimum.exporting.source import find_source
from modelexport_optimum.system.private_names import CONVERSION_OF_MODEL, EXPORT_OF_PARTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch
    from torch.utils.hooks import RemovableHandle

    Arrays: TypeAlias = dict[str, np.ndarray]
    Keep: TypeAlias = Callable[[str, np.ndarray], None]


@dataclass(frozen=True, slots=True)
class TorchCall:
    """One call of one module.

    Attributes:
        path: Module path in the whole model.
        module_class: Class name.
        number: Which of the module's calls this is, from 0.
        outputs: Names of the tensors that left it.
        reads: Names of the tensors that it was given and that had left another call.
        hands_on: What left it is the first tensor that it was given.
    """

    path: str
    module_class: str
    number: int
    outputs: tuple[str, ...]
    reads: tuple[str, ...]
    hands_on: bool = False


@dataclass(frozen=True, slots=True)
class TorchPart:
    """What Optimum exports into one file.

    Attributes:
        file: The file, relative to the output directory.
        whole: The whole model, or the component of a pipeline.
        model: The part of it that is traced.
        config: Optimum's configuration of the part's export.
        shapes: Sizes of the example inputs.
        model_kwargs: Further arguments of the model.
    """

    file: str
    whole: torch.nn.Module
    model: torch.nn.Module
    config: Any
    shapes: Mapping[str, int]
    model_kwargs: Mapping[str, Any]

    def inputs(self, seed: int = 0) -> Arrays:
        """Makes example inputs, the same ones every time.

        Args:
            seed: What the numbers are made from.

        Returns:
            The arrays by the name of the graph's input. Nothing is masked.
        """
        with self._prepared():
            return {name: leaf.numpy() for name, leaf in self._named(self._example(seed)).items()}

    def run(self, feeds: Arrays, keep: Keep) -> tuple[list[TorchCall], Arrays]:
        """Runs the part.

        Args:
            feeds: Its inputs, by the name of the graph's input.
            keep: Called with the name and value of each tensor that leaves a call.

        Returns:
            The calls in the order in which they began, and the outputs by name.
        """
        import torch

        with self._prepared():
            example = self._example(0)
            replaced = {
                id(leaf): torch.from_numpy(feeds[name]).to(leaf.dtype)
                for name, leaf in self._named(example).items()
                if name in feeds
            }
            inputs = _with_tensors(example, replaced)
            with torch.no_grad(), _recorded(self.whole, self.model, keep) as calls:
                outputs = self.model(**inputs)
        found = dict(self._flat_outputs(outputs))
        names = list(self.config.outputs)
        if not found.keys() & set(names) and len(found) == len(names):
            # The tracer names outputs by their order, whatever the model calls them.
            found = dict(zip(names, found.values(), strict=True))
        return calls, found

    @contextlib.contextmanager
    def _prepared(self) -> Iterator[None]:
        """The model as `optimum.exporters.onnx.convert.export_pytorch` prepares it."""
        self.model.eval()
        with self.config.patch_model_for_export(
            self.model, model_kwargs=dict(self.model_kwargs) or None
        ):
            yield

    def _example(self, seed: int) -> dict[str, Any]:
        import torch

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            inputs = self.config.generate_dummy_inputs(framework="pt", **self.shapes)
        inputs = self.config.rename_ambiguous_inputs(inputs)
        return {
            name: torch.ones_like(value)
            if "mask" in name and isinstance(value, torch.Tensor) and not value.is_floating_point()
            else value
            for name, value in inputs.items()
        }

    def _named(self, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The tensors in the arguments, by the name of the graph's input that each becomes."""
        names = list(self.config.ordered_inputs(self.model))
        # The tracer takes the arguments in the order of the signature; so are the names.
        ordered = [key for key in _signature(self.model) if key in inputs]
        ordered += [key for key in inputs if key not in ordered]
        leaves = [leaf for key in ordered for leaf in _tensors(inputs[key])]
        return dict(zip(names, leaves, strict=True))

    def _flat_outputs(self, outputs: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
        """The outputs by name, as Optimum's validation flattens them."""
        import torch

        for key, value in outputs.items():
            name = "present" if key == "past_key_values" else key
            name = self.config.torch_to_onnx_output_map.get(name, name)
            if isinstance(value, list | tuple):
                flat = self.config.flatten_output_collection_property(name, value)
            else:
                flat = {name: value}
            for flat_name, tensor in flat.items():
                if isinstance(tensor, torch.Tensor):
                    yield flat_name, _array(tensor)


def torch_parts(
    model: Any,  # noqa: ANN401
    task: str,
    *,
    library: str | None = None,
    monolith: bool = False,
    trust_remote_code: bool = False,
) -> list[TorchPart]:
    """Loads a model, and takes it into the parts that Optimum exports.

    Args:
        model: A name on the Hub, a directory, or a model in memory.
        task: Optimum's name of the task, or "auto".
        library: Optimum's name of the library, or None to find it out.
        monolith: Export an encoder and decoder as one.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        ModelExportError: The model cannot be loaded, or Optimum cannot export it.
    """
    parts: list[TorchPart] = []
    wholes: list[Any] = []
    convert = CONVERSION_OF_MODEL.get()

    def keep_whole(*, model: Any, **arguments: Any) -> None:  # noqa: ANN401
        wholes.append(model)
        convert(model=model, **arguments)

    def keep_parts(
        *,
        models_and_onnx_configs: Mapping[str, tuple[Any, Any]],
        output_names: list[str],
        input_shapes: Mapping[str, int],
        model_kwargs: Mapping[str, Any] | None = None,
        **_options: Any,  # noqa: ANN401
    ) -> tuple[list[Any], list[Any]]:
        for file, (part, config) in zip(
            output_names, models_and_onnx_configs.values(), strict=True
        ):
            whole = _whole_of(part, wholes[0])
            parts.append(TorchPart(file, whole, part, config, input_shapes, model_kwargs or {}))
        return [], []

    options: dict[str, Any] = {"do_validation": False, "no_post_process": True}
    if monolith:
        options["monolith"] = True
    with (
        tempfile.TemporaryDirectory(prefix="modelexport-optimum-") as scratch,
        CONVERSION_OF_MODEL.replaced(keep_whole),
        EXPORT_OF_PARTS.replaced(keep_parts),
        optimum_export.optimum_imported(_ignore_stage),
    ):
        directory = Path(scratch)
        if isinstance(model, str | Path):
            if library is not None:
                options["library_name"] = library
            options["trust_remote_code"] = trust_remote_code
            source = find_source(model, library=library, trust_remote_code=trust_remote_code)
            optimum_export.export_source(source, directory, task, options, _ignore_stage)
        else:
            optimum_export.export_model(model, None, directory, task, options, _ignore_stage)
    return parts


def _ignore_stage(name: str) -> None:
    """Shows no progress."""


def _whole_of(part: torch.nn.Module, model: Any) -> torch.nn.Module:  # noqa: ANN401
    """The module tree in which a part stands: the model, or a component of a pipeline."""
    import torch

    if isinstance(model, torch.nn.Module):
        wholes = [model]
    else:
        components = getattr(model, "components", {}).values()
        wholes = [component for component in components if isinstance(component, torch.nn.Module)]
    for whole in wholes:
        if any(module is part for module in whole.modules()):
            return whole
    return part  # Optimum has copied it


def _signature(model: torch.nn.Module) -> list[str]:
    import inspect

    # Patched, `forward` takes anything; the class says what the model takes.
    return list(inspect.signature(type(model).forward).parameters)


def _array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if tensor.dtype.is_floating_point and str(tensor.dtype) == "torch.bfloat16":
        tensor = tensor.float()  # NumPy has no bfloat16
    array: np.ndarray = tensor.numpy()
    return array


@contextlib.contextmanager
def _recorded(
    whole: torch.nn.Module, traced: torch.nn.Module, keep: Keep
) -> Iterator[list[TorchCall]]:
    """Records what leaves the calls of modules in the block."""
    recorder = _Recorder(whole, traced, keep)
    modules = {id(module): module for part in (whole, traced) for module in part.modules()}
    hooks: list[RemovableHandle] = []
    for module in modules.values():
        hooks.append(module.register_forward_pre_hook(recorder.enter, with_kwargs=True))
        hooks.append(module.register_forward_hook(recorder.leave))
    try:
        yield recorder.calls
    finally:
        for hook in hooks:
            hook.remove()


class _Recorder:
    """Forward hooks that write down calls."""

    def __init__(self, whole: torch.nn.Module, traced: torch.nn.Module, keep: Keep) -> None:
        from torch.utils.weak import WeakTensorKeyDictionary

        self.calls: list[TorchCall] = []
        self._keep = keep
        self._paths: dict[int, list[str]] = {}
        for path, module in whole.named_modules(remove_duplicate=False):
            self._paths.setdefault(id(module), []).append(path)
        # Optimum traces a copy of some components: it has the same paths.
        if id(traced) not in self._paths:
            for path, module in traced.named_modules(remove_duplicate=False):
                self._paths.setdefault(id(module), []).append(path)
        self._stack: list[int] = []
        self._counts: dict[str, int] = {}
        # The name and version of tensors that have left a call, as long as they live.
        self._named = WeakTensorKeyDictionary()

    def enter(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:  # noqa: ANN401
        """Begins a call."""
        paths = self._paths[id(module)]
        around = self.calls[self._stack[-1]].path if self._stack else ""
        path = next((p for p in paths if not around or p.startswith(f"{around}.")), paths[0])
        number = self._counts.get(path, 0)
        self._counts[path] = number + 1
        read = [self._name_of(tensor) for tensor in _tensors((args, kwargs))]
        reads = tuple(dict.fromkeys(name for name in read if name))
        self._stack.append(len(self.calls))
        self.calls.append(TorchCall(path, type(module).__name__, number, (), reads))

    def leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:  # noqa: ANN401
        """Ends a call."""
        import torch

        index = self._stack.pop()
        call = self.calls[index]
        names: list[str] = []
        for tensor in _tensors(output):
            name = self._name_of(tensor)
            if name is None:
                name = f"{call.path or 'root'}#{call.number}.{len(names)}"
                self._named[tensor] = (name, tensor._version)
                self._keep(name, _array(tensor))
            names.append(name)
        given = next(_tensors(args), None)
        hands_on = (
            isinstance(output, torch.Tensor)
            and given is not None
            and not any(True for _ in module.parameters())
            and given.shape == output.shape
            and torch.equal(given, output)
        )
        self.calls[index] = replace(call, outputs=tuple(dict.fromkeys(names)), hands_on=hands_on)

    def _name_of(self, tensor: torch.Tensor) -> str | None:
        """The name of a tensor that has left a call and was not written to since."""
        if tensor not in self._named:
            return None
        name, version = self._named[tensor]
        return str(name) if version == tensor._version else None


def _with_tensors(value: Any, replaced: Mapping[int, torch.Tensor]) -> Any:  # noqa: ANN401
    """A model's arguments with some tensors, by their identity, replaced by others."""
    if isinstance(value, dict):
        return {key: _with_tensors(item, replaced) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with_tensors(item, replaced) for item in value)
    return replaced.get(id(value), value)


def _tensors(value: Any) -> Iterator[torch.Tensor]:  # noqa: ANN401
    """Yields the tensors in what a module is given or gives, in order."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
