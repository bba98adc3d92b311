"""A run of the exported model in PyTorch, with the outputs of each call of each module.

Optimum chooses the parts of the model, the inputs of each part and the patches, exactly as for an
export. Instead of tracing a part, this module keeps it and runs it. Nothing is exported, and no
ONNX file is read.
"""

from __future__ import annotations

import contextlib
import inspect
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
    from collections.abc import Iterator, Mapping, Sequence

    import torch

    from modelexport_optimum.exporting.torch_calls import Keep
    from modelexport_optimum.tags.recorded_call import RecordedCall

    Arrays: TypeAlias = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class TorchPart:
    """A part of the model that Optimum exports into one file.

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
        """Make example inputs, by the graph's names, the same in every run. Nothing is masked."""
        with self._prepared():
            return {name: leaf.numpy() for name, leaf in self._named(self._example(seed)).items()}

    def fitted(
        self, wanted: Mapping[str, Sequence[int | str | None]], sizes: Mapping[str, int]
    ) -> TorchPart:
        """Return the part with example inputs of sizes that its graph and its model take.

        The effect of a size is found by changing it, because Optimum does not describe it.

        Args:
            wanted: The shapes of the graph's inputs; a size that is not fixed is not a number.
            sizes: Sizes of example inputs by name, with the highest priority.
        """
        shapes = {**self.shapes, **{k: n for k, n in sizes.items() if k in self.shapes}}
        # Tensors are distinguished by their shapes, so no two axes have the same length.
        if shapes["sequence_length"] == getattr(self._config, "hidden_size", None):
            shapes["sequence_length"] -= 3
        made = replace(self, shapes=shapes).inputs()
        # The model takes at most as many frames of sound as it has positions.
        frames, config = "audio_sequence_length", self._config
        has_frames = any(a.ndim > 2 and shapes.get(frames) in a.shape for a in made.values())
        positions = getattr(config, "max_source_positions", None) or getattr(
            config, "max_position_embeddings", None
        )
        if has_frames and isinstance(positions, int) and frames not in sizes:
            shapes[frames] = min(shapes[frames], positions)
        other = {
            (name, axis): size
            for name, shape in wanted.items()
            for axis, size in enumerate(shape)
            if isinstance(size, int) and name in made
            if axis < made[name].ndim and made[name].shape[axis] != size
        }
        for key in shapes if other else ():
            changed = replace(self, shapes={**shapes, key: shapes[key] + 1}).inputs()
            for (name, axis), size in other.items():
                if changed[name].shape[axis] != made[name].shape[axis]:
                    shapes[key] = size  # the graph takes no other
        return replace(self, shapes=shapes)

    @property
    def _config(self) -> Any:  # noqa: ANN401 (transformers', or a dictionary)
        return getattr(self.whole, "config", None)

    def run(self, feeds: Arrays, keep: Keep) -> tuple[list[RecordedCall], Arrays]:
        """Run the part; return its calls in order of their beginning, and the outputs by name."""
        import torch

        from modelexport_optimum.exporting.torch_calls import TorchCalls, tensors

        with self._prepared():
            example = self._example(0)
            replaced = {
                id(leaf): torch.from_numpy(feeds[name]).to(leaf.dtype)
                for name, leaf in self._named(example).items()
                if name in feeds
            }
            inputs = _with_tensors(example, replaced)
            record = TorchCalls(self.whole, self.model, keep)
            with torch.no_grad(), torch.random.fork_rng(), record.recorded(tensors(inputs)):
                torch.manual_seed(0)  # what the model draws is the same every time
                outputs = self.model(**inputs)
            record.end(tensors(outputs))
        found = dict(self._flat_outputs(outputs))
        names = list(self.config.outputs)
        if not found.keys() & set(names) and len(found) == len(names):
            # The tracer names outputs by their order, whatever the model calls them.
            found = dict(zip(names, found.values(), strict=True))
        return record.calls, found

    @contextlib.contextmanager
    def _prepared(self) -> Iterator[None]:
        """Prepare the model as `optimum.exporters.onnx.convert.export_pytorch` does."""
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
        """Return the tensors in the arguments, by the names of the graph's inputs."""
        from modelexport_optimum.exporting.torch_calls import tensors

        names = list(self.config.ordered_inputs(self.model))
        # The tracer names the arguments in the order of the signature: the instance's, as in
        # Optimum's `ordered_inputs`, since a patch may give it another than its class has.
        ordered = [key for key in inspect.signature(self.model.forward).parameters if key in inputs]
        ordered += [key for key in inputs if key not in ordered]
        leaves = [leaf for key in ordered for leaf in tensors(inputs[key])]
        return dict(zip(names, leaves, strict=True))

    def _flat_outputs(self, outputs: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the outputs by name, as Optimum's validation flattens them."""
        import torch

        from modelexport_optimum.exporting.torch_calls import as_array

        for key, value in outputs.items():
            name = "present" if key == "past_key_values" else key
            name = self.config.torch_to_onnx_output_map.get(name, name)
            if isinstance(value, list | tuple):
                flat = self.config.flatten_output_collection_property(name, value)
            else:
                flat = {name: value}
            for flat_name, tensor in flat.items():
                if isinstance(tensor, torch.Tensor):
                    yield flat_name, as_array(tensor)


def torch_parts(
    model: Any,  # noqa: ANN401
    task: str,
    *,
    library: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    **options: Any,  # noqa: ANN401
) -> list[TorchPart]:
    """Load a model, and divide it into the parts that Optimum exports.

    Args:
        model: A name on the Hub, a directory, or a model in memory.
        task: Optimum's name of the task.
        library: Optimum's name of the library that loads it, if it is known.
        model_kwargs: Further arguments of the model, as of `main_export`.
        trust_remote_code: Whether code that comes with the model may run.
        **options: Further arguments of `main_export`.

    Raises:
        ModelExportError: The model cannot be loaded, or Optimum cannot export it.
    """
    options |= {"do_validation": False, "no_post_process": True}
    if model_kwargs:
        options["model_kwargs"] = dict(model_kwargs)
    with (
        tempfile.TemporaryDirectory(prefix="modelexport-optimum-") as scratch,
        # First: a module that is imported while a name is replaced keeps the replacement.
        optimum_export.optimum_imported(_ignore_stage),
        _parts_kept() as parts,
    ):
        directory = Path(scratch)
        if isinstance(model, str | Path):
            source = find_source(model, library=library, trust_remote_code=trust_remote_code)
            options |= {"library_name": library, "trust_remote_code": trust_remote_code}
            optimum_export.export_source(source, directory, task, options, _ignore_stage)
        else:
            with optimum_export.unchanged(model):
                optimum_export.export_model(model, None, directory, task, options, _ignore_stage)
    return parts


@contextlib.contextmanager
def _parts_kept() -> Iterator[list[TorchPart]]:
    """Keep the parts into which Optimum divides a model, and export none of them."""
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

    with CONVERSION_OF_MODEL.replaced(keep_whole), EXPORT_OF_PARTS.replaced(keep_parts):
        yield parts


def _ignore_stage(name: str) -> None:
    """Show no progress."""


def _whole_of(part: torch.nn.Module, model: Any) -> torch.nn.Module:  # noqa: ANN401
    """Return the module that contains a part: the model, or a component of a pipeline."""
    from modelexport_optimum.module_trees.module_tree import modules_of

    for whole in modules_of(model):
        if any(module is part for module in whole.modules()):
            return whole
    return part  # Optimum has copied it


def _with_tensors(value: Any, replaced: Mapping[int, torch.Tensor]) -> Any:  # noqa: ANN401
    """Return a model's arguments with some tensors, by their identity, replaced by others."""
    if isinstance(value, dict):
        return {key: _with_tensors(item, replaced) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with_tensors(item, replaced) for item in value)
    return replaced.get(id(value), value)
