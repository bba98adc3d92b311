"""`profile()`: the time and the memory of each module in a run.

ONNX Runtime runs the model under its profiler, and the time of each kernel is added to the module
of its tag. This file only measures and adds up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from modelexport_optimum.errors import UsageError
from modelexport_optimum.example_inputs.archive import load
from modelexport_optimum.example_inputs.dimensions import InputOptions
from modelexport_optimum.example_inputs.generate import ExampleInputs, check_sizes, generate
from modelexport_optimum.graph_runs.flat_graph import branches
from modelexport_optimum.hierarchy.tagged_model import read_tagged_files
from modelexport_optimum.profiling.chained_files import in_order, keep_outputs
from modelexport_optimum.profiling.isolated import isolate
from modelexport_optimum.profiling.profile_report import ProfileReport
from modelexport_optimum.profiling.profiled_run import profile_file
from modelexport_optimum.providers.choice import Settings, choose_provider

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from modelexport_optimum.example_inputs.generate import Arrays
    from modelexport_optimum.hierarchy.tagged_model import TaggedFile
    from modelexport_optimum.profiling.profile_result import FileProfile
    from modelexport_optimum.providers.choice import Provider


def profile(
    path: str | os.PathLike[str],
    *,
    provider: str = "cpu",
    provider_options: Settings = None,
    provider_libraries: Settings = None,
    iterations: int = 20,
    batch_size: int | Sequence[int] | None = None,
    sequence_length: int | Sequence[int] | None = None,
    sizes: Mapping[str, int] | None = None,
    inputs: str | os.PathLike[str] | None = None,
    isolated: bool = False,
    depth: int | None = None,
) -> ProfileReport:
    """Run tagged files under ONNX Runtime's profiler and add the times up by module.

    Args:
        path: A tagged `.onnx` file, or a directory with any number of them.
        provider: Execution provider: "cpu", "cuda", or any other that ONNX Runtime or an installed
            package has. Nodes that it does not take run on the CPU.
        provider_options: Its options, by name.
        provider_libraries: Path of its library by its name, if no installed package has it.
        iterations: Number of measured runs.
        batch_size: Batch size of the generated inputs, by default 1; or several. Each of them is
            run with each number of tokens.
        sequence_length: Their number of tokens, also of cached tokens and of the encoder's; by
            default 128, or fewer if the model takes fewer; or several.
        sizes: Sizes of their other dimensions, by name.
        inputs: A `.npz` file with real inputs, instead of generated ones.
        isolated: Also extract each module and measure it alone. This shows the modules on a
            provider that runs a graph as one kernel.
        depth: Depth in the module tree to which `isolated` divides the file; by default the first
            level that has several modules.

    Returns:
        The times of each file, in the order of the sizes.

    Raises:
        UsageError: There is no such file or provider, or the inputs cannot be generated.
        ModelExportError: A file is not tagged, or ONNX Runtime cannot run it.
    """
    if iterations < 1:
        raise UsageError(f"--iterations {iterations}: give 1 or more")
    input_options = _input_options(batch_size, sequence_length, sizes)
    if inputs is not None and (len(input_options) > 1 or input_options[0] != InputOptions()):
        raise UsageError(
            "--inputs has sizes of its own: leave out --batch-size, --sequence-length and --size"
        )
    chosen = choose_provider(provider, options=provider_options, libraries=provider_libraries)
    files = in_order(read_tagged_files(path))
    check_sizes(Path(path), [(file.path, file.model.graph) for file in files], sizes or {})
    run = _Run(chosen, iterations, isolated, depth)
    profiles = [
        one for each in input_options for one in _profiles(files, run, each, Path(path), inputs)
    ]
    shapes = {(one.name, *one.inputs.items()) for one in profiles}
    if len(input_options) > 1 and len(shapes) * len(input_options) == len(profiles):
        raise UsageError(
            f"--batch-size and --sequence-length change no input of {path}: give one size of each"
        )
    return ProfileReport(tuple(profiles))


@dataclass(frozen=True, slots=True)
class _Run:
    """The settings of the measurement, the same for all files."""

    provider: Provider
    iterations: int
    isolated: bool
    depth: int | None


def _input_options(
    batch_size: int | Sequence[int] | None,
    sequence_length: int | Sequence[int] | None,
    sizes: Mapping[str, int] | None,
) -> list[InputOptions]:
    """Return the requests for the inputs, for each batch size with each number of tokens."""
    several = [
        list(dict.fromkeys(asked)) if isinstance(asked, Sequence) else [asked]
        for asked in (batch_size, sequence_length)
    ]
    for name, asked in zip(("batch_size", "sequence_length"), several, strict=True):
        if not asked or any(size is not None and size < 1 for size in asked):
            raise UsageError(f"{name} {asked}: give 1 or more")
    return [InputOptions(batch, length, sizes or {}) for batch, length in product(*several)]


def _profiles(
    files: Sequence[TaggedFile],
    run: _Run,
    input_options: InputOptions,
    export: Path,
    inputs: str | os.PathLike[str] | None,
) -> Iterator[FileProfile]:
    """Yield the profile of each file, run on the outputs of the files before it."""
    given: Arrays = {}
    for file in files:
        graph = file.model.graph
        for branch in branches(file) if inputs is None else [{}]:
            if inputs is None:
                example = generate(
                    file.path, graph, input_options, given=given, branch=branch, export=export
                )
            else:
                example = ExampleInputs(load(Path(inputs), file.path, graph), {})
            found, outputs = profile_file(file, run.provider, run.iterations, example.arrays)
            keep_outputs(given, outputs)
            alone = None
            if run.isolated:
                alone = isolate(
                    file,
                    run.provider,
                    example.arrays,
                    iterations=run.iterations,
                    depth=run.depth,
                )
            yield replace(
                found,
                branch=branch,
                sizes=example.sizes,
                isolated=alone,
                batch_size=input_options.batch_size,
                sequence_length=input_options.sequence_length,
            )
