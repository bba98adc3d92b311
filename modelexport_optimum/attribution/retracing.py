"""A second export of a model, without its weights, for nodes whose names fit several modules.

Each parameter without memory is replaced by one zero that is expanded to the parameter's shape.
Then Optimum's exporter runs, or PyTorch's own for a class that Optimum does not know, until the
nodes have their names (`traced_graphs`). No file is written. The traced graph is used only for a
file if it names every node of that file.
"""

from __future__ import annotations

import contextlib
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelexport_optimum.attribution.traced_graphs import traced_graphs
from modelexport_optimum.onnx_file.skeleton import walk_graphs, wanted_inputs
from modelexport_optimum.system.private_names import DUMMY_SHAPES, PARTS_OF_MODEL
from modelexport_optimum.system.standard_streams import libraries_silenced
from modelexport_optimum.tags.node_names import node_scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

    from modelexport_optimum.attribution.traced_graphs import TracedGraph
    from modelexport_optimum.onnx_file.skeleton import Graph, Model

_OPEN_DIMENSION = 2
"""Size of an input's open dimensions, if the sizes that the model takes are not known."""


class _NamedError(Exception):
    """Ends an export whose nodes have their names."""


def retrace(model: torch.nn.Module, files: Sequence[Model]) -> list[TracedGraph]:
    """Export a model again until it is known which module made each node of its files."""

    def stop() -> None:
        raise _NamedError

    wanted = [names for file in files for _, g in walk_graphs(file.graph) if (names := _names(g))]
    found: list[TracedGraph] = []
    _give_zeros(model)
    for export in _exports(model, files):
        with (
            contextlib.suppress(Exception),  # whatever it is, this way to export is not the one
            libraries_silenced(),
            traced_graphs(model, stop) as graphs,
        ):
            export()
        known = [graph for graph in graphs if any(names <= graph.chains.keys() for names in wanted)]
        found += known
        wanted = [n for n in wanted if not any(n <= graph.chains.keys() for graph in known)]
        if not wanted:
            break
    return found


def _names(graph: Graph) -> set[str]:
    return {node.name for node in graph.nodes if node_scope(node) is not None}


def _give_zeros(model: torch.nn.Module) -> None:
    """Replace each parameter and buffer on the meta device by one zero, expanded to its shape."""
    import torch

    zeros: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for kept in (module._parameters, module._buffers):
            for name, tensor in kept.items():
                if tensor is None or tensor.device.type != "meta":
                    continue
                if id(tensor) not in zeros:
                    zero = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
                    parameter = isinstance(tensor, torch.nn.Parameter)
                    zeros[id(tensor)] = torch.nn.Parameter(zero, False) if parameter else zero
                kept[name] = zeros[id(tensor)]  # type: ignore[assignment]


def _exports(model: torch.nn.Module, files: Sequence[Model]) -> Iterator[Callable[[], Any]]:
    """Yield the ways to export a model, each a function that does it for one graph."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        for file in files:
            yield partial(_export_plainly, model, file)
        return
    from optimum.exporters.onnx.convert import export_pytorch

    outputs = {file.path.stem: [value.name for value in file.graph.outputs] for file in files}
    opset = files[0].opsets.get("", 0)
    for name, (part, config), kwargs in _optimum_parts(model):
        # Optimum merges the decoders without and with past into one file.
        merged = name.startswith("decoder") and "decoder_model_merged" in outputs
        if merged or outputs.get(name) == list(config.outputs):
            yield partial(
                export_pytorch,
                part,
                config,
                opset,
                Path(os.devnull),
                input_shapes=dict(DUMMY_SHAPES.get()),
                model_kwargs=kwargs,
            )


def _optimum_parts(model: Any) -> Iterator[tuple[str, tuple[Any, Any], dict[str, Any]]]:  # noqa: ANN401
    """Yield the parts that Optimum exports: a file's stem, module, config and arguments."""
    import torch
    from optimum.exporters.tasks import TasksManager

    from modelexport_optimum.module_trees.model_classes import exportable_classes

    parts_of = PARTS_OF_MODEL.get()
    candidates = exportable_classes(model.config)
    # A class with code of its own is exported as any of the model type.
    own = [c.task for c in candidates if c.model_class is type(model)]
    tasks = dict.fromkeys(own or [candidate.task for candidate in candidates])
    supported = TasksManager.get_supported_tasks_for_model_type(
        model.config.model_type, "onnx", library_name="transformers"
    )
    variants = [variant for task in tasks for variant in (f"{task}-with-past", task)]
    for task in (variant for variant in variants if variant in supported):
        for monolith in (False, True):
            kwargs: dict[str, Any] = {}
            try:
                _, parts = parts_of(
                    model=model,
                    task=task,
                    monolith=monolith,
                    custom_onnx_configs={},
                    custom_architecture=False,
                    _variant="default",
                    library_name="transformers",
                )
            except ValueError:  # it asks for SpeechT5's vocoder, which is a model of its own
                parts = _parts_by_behavior(model, supported[task](model.config))
                kwargs = {"vocoder_model": torch.nn.Module()}
            yield from ((name, part, kwargs) for name, part in parts.items())


def _parts_by_behavior(model: Any, config: Any) -> dict[str, tuple[Any, Any]]:  # noqa: ANN401
    """Return the encoder and the decoders of a model that Optimum patches into each of them."""
    if not hasattr(config, "with_behavior"):
        return {}
    decoder = partial(config.with_behavior, "decoder", use_past=True)
    return {
        "encoder_model": (model, config.with_behavior("encoder")),
        "decoder_model": (model, decoder(use_past_in_inputs=False)),
        "decoder_with_past_model": (model, decoder(use_past_in_inputs=True)),
    }


def _export_plainly(model: torch.nn.Module, file: Model) -> None:
    """Export a module with inputs of the shapes and types in the file."""
    import onnx
    import torch

    inputs = wanted_inputs(file.graph)
    device = next((parameter.device for parameter in model.parameters()), None)
    arguments = []
    for value in inputs:
        numpy_type = onnx.helper.tensor_dtype_to_np_dtype(value.elem_type)
        dtype = torch.from_numpy(numpy_type.type(0)[None]).dtype
        shape = [d if isinstance(d, int) and d else _OPEN_DIMENSION for d in value.shape or ()]
        arguments.append(torch.ones(shape, dtype=dtype, device=device))
    torch.onnx.export(
        model,
        tuple(arguments),
        os.devnull,
        dynamo=False,
        opset_version=file.opsets.get(""),
        input_names=[value.name for value in inputs],
        dynamic_axes={
            value.name: [axis for axis, d in enumerate(value.shape or ()) if not isinstance(d, int)]
            for value in inputs
        },
    )
