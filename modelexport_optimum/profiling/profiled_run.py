"""A run of one file under ONNX Runtime's profiler, with its kernels added up by module."""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import ModelExportError, onnxruntime_errors, onnxruntime_line
from modelexport_optimum.hierarchy.inspect import amounts
from modelexport_optimum.hierarchy.tagged_model import nbytes
from modelexport_optimum.onnx_file.reader import read_model
from modelexport_optimum.profiling.node_placement import Places
from modelexport_optimum.profiling.placement import place_nodes
from modelexport_optimum.profiling.profile_log import WARM_UP, kernels_of, runs_of
from modelexport_optimum.profiling.profile_result import FileProfile, ModuleTime
from modelexport_optimum.providers.choice import CPU
from modelexport_optimum.providers.messages import Log, kept_log, log_reason
from modelexport_optimum.providers.session import (
    Assignment,
    assigned_nodes,
    nodes_that_ran,
    open_session,
    quiet_options,
    save_built,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    import onnxruntime

    from modelexport_optimum.hierarchy.tagged_model import TaggedFile, TaggedModule
    from modelexport_optimum.onnx_file.skeleton import Model
    from modelexport_optimum.profiling.profile_log import Kernel
    from modelexport_optimum.providers.choice import Provider


def profile_file(
    file: TaggedFile, provider: Provider, iterations: int, arrays: Mapping[str, np.ndarray]
) -> tuple[FileProfile, dict[str, Any]]:
    """Run a file under ONNX Runtime's profiler; return its profile and its last outputs by name."""
    with tempfile.TemporaryDirectory(prefix="modelexport-optimum-") as scratch:
        session, optimized, reason = _session(file.path, provider, Path(scratch))
        if session.get_providers()[0] != provider.name:
            raise ModelExportError(
                f"ONNX Runtime uses {', '.join(session.get_providers())}, not {provider.name}, for "
                f"{file.path}: check that provider's libraries"
            )
        try:
            for _ in range(WARM_UP + iterations):
                outputs = session.run(None, arrays)
        except Exception as error:
            # A plugin may print when its session ends, which is here, not after the error's line.
            del session
            error.with_traceback(None)
            raise _failed(file.path, provider, arrays, error) from error
        log = json.loads(Path(session.end_profiling()).read_bytes())
    runs = runs_of(log)
    if len(runs) != WARM_UP + iterations:
        raise ModelExportError(
            f"ONNX Runtime's profiler recorded only {len(runs)} of {WARM_UP + iterations} runs of "
            f"{file.path}, because its log is full: give fewer --iterations"
        )
    placement = None
    if provider.name != CPU:
        taken = assigned_nodes(session)
        nodes = taken or nodes_that_ran(log)
        assignment = Assignment(provider.name, nodes, bool(taken), reason)
        placement = place_nodes(file, assignment, arrays)
    shapes = {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}
    found = _add_up(file, Places(file, optimized), log, runs, shapes)
    names = [value.name for value in session.get_outputs()]
    return replace(found, placement=placement), dict(zip(names, outputs, strict=True))


def _session(
    path: Path, provider: Provider, scratch: Path
) -> tuple[onnxruntime.InferenceSession, Model | None, str]:
    """Return a session with the profiler on, the graph that it runs, and its log.

    The graph is None if a provider compiled parts of it: ONNX Runtime cannot save such a graph.
    """

    def start(save: bool) -> onnxruntime.InferenceSession:
        options = quiet_options(recorded=True)  # ONNX Runtime warns of a graph that it saves
        options.enable_profiling = True
        options.profile_file_prefix = str(scratch / "profile")
        if save:
            save_built(options, scratch / "optimized.onnx")
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


def _failed(
    path: Path, provider: Provider, arrays: Mapping[str, np.ndarray], error: Exception
) -> ModelExportError:
    shapes = ", ".join(f"{name}{list(array.shape)}" for name, array in arrays.items())
    on = "" if provider.name == CPU else f" on {provider.name}"
    other = "" if provider.name == CPU else ", or --provider cpu"
    return ModelExportError(
        f"ONNX Runtime cannot run {path}{on} with {shapes} ({onnxruntime_line(error)}): give "
        "sizes that the model takes (--batch-size, --sequence-length, --size NAME=N) or real "
        f"inputs (--inputs FILE.npz){other}"
    )


def _add_up(
    file: TaggedFile,
    places: Places,
    log: Sequence[dict[str, Any]],
    runs: Sequence[dict[str, Any]],
    inputs: dict[str, str],
) -> FileProfile:
    """Add up the times of the measured runs' kernels, and the memory of the first run."""
    sums = _Sums()
    for kernel in kernels_of(log, runs[WARM_UP:]):
        sums.add(kernel, places.module(kernel.name, kernel.op_type))
    for kernel in kernels_of(log, runs[:1]):
        sums.use(kernel, places.module(kernel.name, kernel.op_type))
    iterations = len(runs) - WARM_UP
    weights = amounts(file)

    def rows(module: TaggedModule) -> Iterator[ModuleTime]:
        path = module.path
        if path not in sums.total:
            return
        own, total = weights[path]
        yield ModuleTime(
            module=path,
            name=module.name,
            module_class=module.module_class,
            depth=module.depth,
            own=sums.own[path],
            total=sums.total[path],
            kernel_count=sums.counts[path] // iterations,
            activations=sums.given[path] // iterations,
            own_activations=sums.own_given[path] // iterations,
            parameters=total.bytes,
            own_parameters=own.bytes,
            peak=sums.peaks.get(path),
        )
        for child in sorted(module.children, key=lambda child: -sums.total[child.path]):
            yield from rows(child)

    slowest = sorted(sums.unplaced.items(), key=lambda item: -sum(item[1]))
    return FileProfile(
        file=file.path,
        iterations=iterations,
        inputs=inputs,
        runs=sum(run["dur"] for run in runs[WARM_UP:]),
        kernels=sums.providers.total(),
        providers=dict(sums.providers.most_common()),
        modules=tuple(rows(file.root)),
        unplaced={kind: (sum(times), len(times) // iterations) for kind, times in slowest},
        activations=sums.all_given // iterations,
        parameters=sum(map(nbytes, file.initializers)),
        peak=sums.peak,
    )


class _Sums:
    """Times and outputs of kernels by module path, of the module alone and with its submodules."""

    def __init__(self) -> None:
        self.own = Counter[str]()
        self.total = Counter[str]()
        self.counts = Counter[str]()
        self.own_given = Counter[str]()
        self.given = Counter[str]()
        self.all_given = 0
        self.peaks: dict[str, int] = {}
        self.peak: int | None = None
        self.providers = Counter[str]()
        self.unplaced: dict[str, list[int]] = defaultdict(list)

    def add(self, kernel: Kernel, module: TaggedModule | None) -> None:
        """Add a kernel's time and its output bytes."""
        self.providers[kernel.provider] += kernel.time
        self.all_given += kernel.given
        if module is None:
            self.unplaced[kernel.op_type].append(kernel.time)
            return
        self.own[module.path] += kernel.time
        self.own_given[module.path] += kernel.given
        self.counts[module.path] += 1
        for one in (module, *module.around()):
            self.total[one.path] += kernel.time
            self.given[one.path] += kernel.given

    def use(self, kernel: Kernel, module: TaggedModule | None) -> None:
        """Record the bytes in use while a kernel ran."""
        if kernel.in_use is None:
            return
        self.peak = max(kernel.in_use, self.peak or 0)
        for one in () if module is None else (module, *module.around()):
            self.peaks[one.path] = max(kernel.in_use, self.peaks.get(one.path, 0))
