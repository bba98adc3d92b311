"""The inputs that both sides of a comparison are run on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelexport_optimum.errors import ModelExportError, UsageError
from modelexport_optimum.example_inputs.archive import load
from modelexport_optimum.example_inputs.dimensions import InputOptions
from modelexport_optimum.example_inputs.generate import generate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from modelexport_optimum.comparing.file_pairs import FilePair
    from modelexport_optimum.graph_runs.flat_graph import FlatGraph
    from modelexport_optimum.graph_runs.tapped_run import Arrays

LENGTH = 16
"""Number of tokens of generated inputs: few, because the values of every module are kept."""


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """The inputs of both sides.

    Attributes:
        batch_size: Size of dimensions that are a batch's.
        sequence_length: Number of tokens; None for 16, or fewer if the model takes fewer.
        sizes: Sizes of dimensions by name.
        file: A `.npz` file with inputs, instead.
        arrays: Inputs by name, which replace generated ones.
        samples: Number of samples.
    """

    batch_size: int = 2
    sequence_length: int | None = None
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    file: Path | None = None
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    samples: int = 1


def sample_inputs(pair: FilePair, graph: FlatGraph, samples: SampleOptions, seed: int) -> Arrays:
    """Return the inputs of a graph, from a file, from the reference, or generated.

    Raises:
        UsageError: The file of inputs lacks one, or the size of a dimension is not known.
        ModelExportError: The reference gives inputs, but not all that the graph reads.
    """
    if samples.file is not None:
        return load(samples.file, pair.file.path, pair.file.model.graph)
    feeds = None if samples.arrays else pair.reference.inputs(graph.branch, seed)
    if feeds is None:
        feeds = _generated(pair, graph.branch, samples, seed)
    wanted = {value.name for value in graph.inputs}
    read = {name for node in graph.nodes for name in node.reads}
    missing = (wanted & read) - feeds.keys()
    if missing:
        raise ModelExportError(
            f"{pair.file.path} reads {', '.join(sorted(missing))}, but Optimum does not give it to "
            "the model that PyTorch runs: give the --model and the --task of the export"
        )
    return {name: array for name, array in feeds.items() if name in wanted}


def _generated(
    pair: FilePair, branch: Mapping[str, bool], samples: SampleOptions, seed: int
) -> Arrays:
    """Return the given arrays, and generated ones of their length for the other inputs."""
    sizes = samples.batch_size, samples.sequence_length
    for array in samples.arrays.values():
        sizes = array.shape[0], array.shape[1]
    # Both branches of a merged decoder get as many new tokens. OpenVINO 1.24 keeps the branch
    # of the first run, as in generation, but only while the inputs have the same shapes.
    input_options = InputOptions(*sizes, samples.sizes, LENGTH, one_step=False)
    path = pair.file.path
    made = generate(
        path, pair.file.model.graph, input_options, branch=branch, export=pair.export, seed=seed
    ).arrays
    taken = {
        name: array.astype(made[name].dtype)
        for name, array in samples.arrays.items()
        if name in made and made[name].shape == array.shape
    }
    named = made.keys() & samples.arrays.keys()
    if named and not taken:
        name = min(named)
        raise UsageError(
            f"{path} takes {name} of the shape {list(made[name].shape)}, and the text has "
            f"{list(samples.arrays[name].shape)}: give a text with as many tokens, or --inputs"
        )
    return {**made, **taken}
