"""`profile()`: where the time of a run goes, by module.

ONNX Runtime runs the model under its profiler, and each kernel's time is given to the module
that the tags name. It measures and adds up; it optimizes nothing and judges nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import (
    ModelExportError,
    UsageError,
    onnxruntime_errors,
    onnxruntime_line,
)
from modelexport_optimum.example_inputs.archive import load
from modelexport_optimum.example_inputs.dimensions import Size, Wishes
from modelexport_optimum.example_inputs.generate import ExampleInputs, generate
from modelexport_optimum.hierarchy.chained_files import GivenOutputs, in_order
from modelexport_optimum.hierarchy.flat_graph import branch_in_words, branches
from modelexport_optimum.hierarchy.isolated import IsolatedRun, isolate
from modelexport_optimum.hierarchy.node_placement import Places
from modelexport_optimum.hierarchy.placement import place_nodes
from modelexport_optimum.hierarchy.tagged_model import read_tagged_files
from modelexport_optimum.onnx_file.reader import read_model
from modelexport_optimum.providers.choice import CPU, Provider, Settings, choose_provider
from modelexport_optimum.providers.messages import Log, kept_log, log_reason
from modelexport_optimum.providers.session import (
    KERNEL,
    Assignment,
    assigned_nodes,
    nodes_that_ran,
    open_session,
    record_assignment,
)
from modelexport_optimum.system.display import Displayed

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy as np
    import onnxruntime

    from modelexport_optimum.hierarchy.tagged_model import TaggedFile, TaggedModule
    from modelexport_optimum.onnx_file.skeleton import Model
    from modelexport_optimum.providers.placement import Placement

WARM_UP = 3
"""Runs before the measured ones: the first allocates memory, and some providers choose their
kernels in it."""


@dataclass(frozen=True, slots=True, repr=False)
class ModuleTime(Displayed):
    """The time of one module.

    Attributes:
        module: Module path; "" for the root.
        name: The path from the module around it on, or the root's class.
        module_class: Class name.
        depth: How many modules are around it.
        own: Microseconds of its own kernels, in all measured runs.
        total: The same with those of the modules inside it.
        kernel_count: Number of its own kernels, in one run.
    """

    module: str
    name: str
    module_class: str
    depth: int
    own: int
    total: int
    kernel_count: int


@dataclass(frozen=True, slots=True, repr=False)
class FileProfile(Displayed):
    """The time of one file.

    Attributes:
        file: The file.
        iterations: Number of measured runs.
        inputs: Type and shape of each input, by name.
        runs: Microseconds of the measured runs, what is between the kernels included.
        kernels: Microseconds of their kernels.
        providers: The same by the execution provider that ran them.
        modules: The modules in which kernels ran, each after the one around it, the slower
            of two before the other.
        unplaced: Kernels of no module, by operator: microseconds, and their number in one
            run. ONNX Runtime has added them, to change a layout or a type.
        placement: Which provider took the nodes of which module; None on the CPU alone.
        branch: What the inputs are that choose a branch, as of a merged decoder.
        sizes: The sizes of the inputs' dimensions, by name, with where each comes from.
        isolated: The modules measured alone, where that was asked for.
    """

    file: Path
    iterations: int
    inputs: dict[str, str]
    runs: int
    kernels: int
    providers: dict[str, int]
    modules: tuple[ModuleTime, ...]
    unplaced: dict[str, tuple[int, int]]
    placement: Placement | None = None
    branch: dict[str, bool] = field(default_factory=dict)
    sizes: dict[str, Size] = field(default_factory=dict)
    isolated: IsolatedRun | None = None

    @property
    def name(self) -> str:
        """The file, with the branch that ran if it has several."""
        return f"{self.file} ({branch_in_words(self.branch)})" if self.branch else str(self.file)

    def milliseconds(self, microseconds: int) -> float:
        """What a time is in one run."""
        return microseconds / 1000 / self.iterations

    def share(self, microseconds: int) -> float:
        """What part of the kernels' time a time is."""
        return microseconds / self.kernels if self.kernels else 0.0

    def repeated(self) -> list[tuple[str, str, int, int]]:
        """The modules by what they do themselves, repeated ones together, slowest first.

        Returns:
            Path with `*` for the numbers that differ, class, number of modules, microseconds.
        """
        kinds: dict[tuple[str, ...], list[ModuleTime]] = defaultdict(list)
        for module in self.modules:
            parts = ("*" if part.isdecimal() else part for part in module.module.split("."))
            kinds[(module.module_class, *parts)].append(module)
        rows = []
        for kind in kinds.values():
            columns = zip(*(module.module.split(".") for module in kind), strict=True)
            path = ".".join(part if {part} == {*rest} else "*" for part, *rest in columns)
            path = path if len(kind) > 1 else kind[0].module
            rows.append((path, kind[0].module_class, len(kind), sum(m.own for m in kind)))
        return sorted((row for row in rows if row[3]), key=lambda row: -row[3])

    def to_dict(self) -> dict[str, Any]:
        """The profile as JSON can carry it; times in milliseconds of one run."""

        def timed(microseconds: int) -> dict[str, float]:
            return {"ms": self.milliseconds(microseconds), "share": self.share(microseconds)}

        return {
            "file": str(self.file),
            "iterations": self.iterations,
            "warm_up": WARM_UP,
            "inputs": [{"name": name, "type": kind} for name, kind in self.inputs.items()],
            "run_ms": self.milliseconds(self.runs),
            "kernels_ms": self.milliseconds(self.kernels),
            "providers": [
                {"provider": name, **timed(time)} for name, time in self.providers.items()
            ],
            "modules": [
                {
                    "module": module.module,
                    "class": module.module_class,
                    "depth": module.depth,
                    "kernel_count": module.kernel_count,
                    "own_ms": self.milliseconds(module.own),
                    **timed(module.total),
                }
                for module in self.modules
            ],
            "repeated": [
                {"module": path, "class": name, "module_count": count, **timed(time)}
                for path, name, count, time in self.repeated()
            ],
            "unplaced": [
                {"op_type": op_type, "kernel_count": count, **timed(time)}
                for op_type, (time, count) in self.unplaced.items()
            ],
            "placement": None if self.placement is None else self.placement.to_dict(),
            "branch": self.branch,
            "sizes": [
                {"dimension": name, "size": size.size, "source": size.source}
                for name, size in self.sizes.items()
            ],
            "isolated": None if self.isolated is None else self.isolated.to_dict(),
        }


@dataclass(frozen=True, slots=True, repr=False)
class ProfileReport(Displayed):
    """The time of all files."""

    files: tuple[FileProfile, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can carry it."""
        return {"files": [file.to_dict() for file in self.files]}


def profile(
    path: str | os.PathLike[str],
    *,
    provider: str = "cpu",
    provider_options: Settings = None,
    provider_libraries: Settings = None,
    iterations: int = 20,
    batch_size: int = 1,
    sequence_length: int | None = None,
    sizes: Mapping[str, int] | None = None,
    inputs: str | os.PathLike[str] | None = None,
    isolated: bool = False,
    depth: int | None = None,
) -> ProfileReport:
    """Run tagged files under ONNX Runtime's profiler and add the times up by module.

    Args:
        path: A tagged `.onnx` file, or a directory with any number of them.
        provider: Execution provider: "cpu", "cuda", or any other that ONNX Runtime or an
            installed package offers. What it does not take runs on the CPU.
        provider_options: Options of it, by name.
        provider_libraries: Path of its library by its name, if no installed package has it.
        iterations: Number of measured runs.
        batch_size: Batch size of the inputs that are made up.
        sequence_length: Their number of tokens, past ones and the encoder's alike; by default
            as many as the model takes, up to 128.
        sizes: Sizes of other dimensions of theirs, by name.
        inputs: A `.npz` file with real inputs, instead.
        isolated: Also cut each module out and measure it alone, as is needed to see modules on
            a provider that runs a graph as one kernel.
        depth: Levels of modules down to which the file is cut then; by default the first that
            has some modules.

    Returns:
        The times of each file.

    Raises:
        UsageError: There is no such file or provider, or the inputs cannot be made.
        ModelExportError: A file is not tagged, or ONNX Runtime cannot run it.
    """
    if iterations < 1:
        raise UsageError(f"--iterations {iterations}: give 1 or more")
    chosen = choose_provider(provider, options=provider_options, libraries=provider_libraries)
    wishes = Wishes(batch_size, sequence_length, sizes or {})
    given = GivenOutputs()
    profiles = []
    for file in in_order(list(read_tagged_files(path))):
        graph = file.model.graph
        for branch in branches(file) if inputs is None else [{}]:
            if inputs is None:
                example = generate(file.path, graph, wishes, given=given.arrays, branch=branch)
            else:
                example = ExampleInputs(load(Path(inputs), file.path, graph), {})
            found, outputs = _profile(file, chosen, iterations, example.arrays)
            given.add(outputs)
            if isolated:
                alone = isolate(file, chosen, example.arrays, iterations=iterations, depth=depth)
                found = replace(found, isolated=alone)
            profiles.append(replace(found, branch=branch, sizes=example.sizes))
    return ProfileReport(tuple(profiles))


def _profile(
    file: TaggedFile, provider: Provider, iterations: int, arrays: dict[str, np.ndarray]
) -> tuple[FileProfile, dict[str, Any]]:
    """The profile of one file, and the outputs of its last run by name."""
    with tempfile.TemporaryDirectory(prefix="modelexport-optimum-") as scratch:
        session, optimized, reason = _session(file.path, provider, Path(scratch))
        if session.get_providers()[0] != provider.name:
            raise ModelExportError(
                f"ONNX Runtime came up on {', '.join(session.get_providers())}, not on "
                f"{provider.name}, with {file.path}: check that provider's libraries"
            )
        try:
            for _ in range(WARM_UP + iterations):
                outputs = session.run(None, arrays)
        except Exception as error:
            raise _failed(file.path, arrays, error) from error
        log = json.loads(Path(session.end_profiling()).read_bytes())
    runs = [event for event in log if event["name"] == "model_run"]
    if len(runs) != WARM_UP + iterations:
        raise ModelExportError(
            f"ONNX Runtime's profiler kept {len(runs)} of {WARM_UP + iterations} runs of "
            f"{file.path}, its log is full: give fewer --iterations"
        )
    runs = runs[WARM_UP:]
    kernels = list(_own_times(log, runs))
    placement = None
    if provider.name != CPU:
        taken = assigned_nodes(session)
        nodes = taken or nodes_that_ran(log)
        assignment = Assignment(provider.name, nodes, bool(taken), reason)
        placement = place_nodes(file, assignment, arrays)
    shapes = {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}
    found = _add_up(file, Places(file, optimized), kernels, runs, shapes)
    names = [value.name for value in session.get_outputs()]
    return replace(found, placement=placement), dict(zip(names, outputs, strict=True))


def _session(
    path: Path, provider: Provider, scratch: Path
) -> tuple[onnxruntime.InferenceSession, Model | None, str]:
    """A session with the profiler on, the skeleton of the graph that it runs, and its log's words.

    That graph is None where a provider has compiled parts of it: ONNX Runtime cannot save it.
    """
    import onnxruntime as ort

    def start(save: bool) -> onnxruntime.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 4  # errors come as exceptions, and it warns of what it saves
        options.enable_profiling = True
        options.profile_file_prefix = str(scratch / "profile")
        if save:
            options.optimized_model_filepath = str(scratch / "optimized.onnx")
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", "weights"
            )
        record_assignment(options)
        return open_session(str(path), provider, options)

    with onnxruntime_errors(f"load {path}"):
        # A plugin prints what it does, and a library's function else redirects nothing.
        with kept_log() if provider.library is not None else nullcontext(Log()) as log:
            try:
                session, graph = start(save=True), read_model(scratch / "optimized.onnx")
            except Exception as error:
                if "compiled nodes" not in str(error):
                    raise
                session, graph = start(save=False), None
        return session, graph, log_reason(log.text)


def _failed(path: Path, arrays: Mapping[str, np.ndarray], error: Exception) -> ModelExportError:
    shapes = ", ".join(f"{name}{list(array.shape)}" for name, array in arrays.items())
    return ModelExportError(
        f"ONNX Runtime cannot run {path} on {shapes} ({onnxruntime_line(error)}): give "
        "sizes that the model takes (--batch-size, --sequence-length, --size NAME=N) or real "
        "inputs (--inputs FILE.npz)"
    )


def _own_times(
    log: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]]
) -> Iterator[tuple[str, str, str, int]]:
    """Yield name, operator, provider and microseconds of each kernel that ran in the runs.

    A node that runs nested graphs (If, Loop, Scan) is timed with their nodes: these are taken
    off, so that the times of all kernels add up to that of the outermost ones.
    """
    spans = [(run["ts"], run["ts"] + run["dur"]) for run in runs]
    events = [
        event
        for event in log
        if event["cat"] == "Node" and event["name"].endswith(KERNEL)
        if any(start <= event["ts"] <= end for start, end in spans)
    ]
    events.sort(key=lambda event: (event["tid"], event["ts"], -event["dur"]))
    own = [event["dur"] for event in events]
    around: list[int] = []
    for index, event in enumerate(events):
        while around and not _inside(event, events[around[-1]]):
            around.pop()
        if around:
            own[around[-1]] -= event["dur"]
        around.append(index)
    for event, time in zip(events, own, strict=True):
        arguments = event["args"]
        name = event["name"].removesuffix(KERNEL)
        if name == f"{arguments['op_name']}_{arguments['node_index']}":
            name = ""  # so ONNX Runtime's log calls a node that has no name
        yield name, arguments["op_name"], arguments["provider"], time


def _inside(event: dict[str, Any], outer: dict[str, Any]) -> bool:
    return bool(event["tid"] == outer["tid"] and event["ts"] < outer["ts"] + outer["dur"])


def _add_up(
    file: TaggedFile,
    places: Places,
    kernels: Iterable[tuple[str, str, str, int]],
    runs: Sequence[dict[str, Any]],
    inputs: dict[str, str],
) -> FileProfile:
    own = Counter[str]()
    total = Counter[str]()
    counts = Counter[str]()
    providers = Counter[str]()
    unplaced: dict[str, list[int]] = defaultdict(list)
    for name, op_type, provider, time in kernels:
        providers[provider] += time
        module = places.module(name, op_type)
        if module is None:
            unplaced[op_type].append(time)
            continue
        own[module.path] += time
        counts[module.path] += 1
        while module is not None:
            total[module.path] += time
            module = module.parent
    iterations = len(runs)

    def rows(module: TaggedModule) -> Iterator[ModuleTime]:
        path = module.path
        if path not in total:
            return
        yield ModuleTime(
            module=path,
            name=module.name,
            module_class=module.module_class,
            depth=module.depth,
            own=own[path],
            total=total[path],
            kernel_count=counts[path] // iterations,
        )
        for child in sorted(module.children, key=lambda child: -total[child.path]):
            yield from rows(child)

    slowest = sorted(unplaced.items(), key=lambda item: -sum(item[1]))
    return FileProfile(
        file=file.path,
        iterations=iterations,
        inputs=inputs,
        runs=sum(run["dur"] for run in runs),
        kernels=providers.total(),
        providers=dict(providers.most_common()),
        modules=tuple(rows(file.root)),
        unplaced={kind: (sum(times), len(times) // iterations) for kind, times in slowest},
    )
