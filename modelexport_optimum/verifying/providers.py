"""The check of each execution provider: it is available, it runs the export, its outputs are right.

The CPU runs first, in this process. Every other provider runs in a separate process, and its
outputs are compared with the CPU's. Every result is one line.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from modelexport_optimum.errors import ModelExportError, onnxruntime_line
from modelexport_optimum.example_inputs.dimensions import InputOptions
from modelexport_optimum.example_inputs.generate import generate
from modelexport_optimum.onnx_file.skeleton import RANDOM_OPERATORS, walk_nodes
from modelexport_optimum.providers.choice import CPU
from modelexport_optimum.providers.messages import LOG_ENTRY, log_reason
from modelexport_optimum.providers.needs import INSTALL, needs
from modelexport_optimum.providers.session import Assignment
from modelexport_optimum.system.display import Displayed
from modelexport_optimum.system.text import listed
from modelexport_optimum.verifying.exported_files import precision
from modelexport_optimum.verifying.ort_messages import named_node, tag_of
from modelexport_optimum.verifying.provider_process import run_in_child, start_importing
from modelexport_optimum.verifying.provider_run import run_reference
from modelexport_optimum.verifying.run_plan import COMPARING, Run, RunPlan
from modelexport_optimum.verifying.tolerances import Agreement, compare_outputs, computed_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from modelexport_optimum.onnx_file.skeleton import Node
    from modelexport_optimum.providers.choice import Provider
    from modelexport_optimum.providers.placement import Placement
    from modelexport_optimum.verifying.exported_files import Exported
    from modelexport_optimum.verifying.ort_classes import Loader
    from modelexport_optimum.verifying.provider_run import Loaded

    Place = Callable[[Path, Assignment, Mapping[str, np.ndarray]], Placement]
    """Says which module's nodes each provider took, of a graph run on some inputs."""

LEAST_SECONDS = 900
"""Time for any run, in seconds: TensorRT builds engines for minutes before the first run."""

TIMES_THE_CPU = 100
"""Additional time for a run, as a multiple of the CPU's time."""

_LACKING = re.compile(
    r"\S+: cannot open shared object file|which is missing|Please install \w+ librar\w+"
    r"|no CUDA-capable device|[Nn]o CUDA GPUs|driver version is insufficient"
    r"|not compiled with CUDA|NVIDIA driver|has no device on this machine"
)
"""Matches messages of ONNX Runtime and PyTorch about a missing device or library."""

_INPUT_OPTIONS = InputOptions(default_length=16, default_size=16)
"""Sizes of the inputs: those with which Optimum's exporter validates a graph, and a batch of one.
"""

_QUANTIZING_OPERATORS = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})
"""The operators that round factors to integers, where a rounding may change the result."""


@dataclass(frozen=True, repr=False)
class ProviderResult(Displayed):
    """The result of one execution provider for the export.

    Attributes:
        provider: ONNX Runtime's name of it.
        status: "ok" only if every session was created on it and it ran nodes; "failed";
            "unavailable" if this build of ONNX Runtime or this machine lacks it.
        message: One line.
        ort_class: The `ORTModel` class that loaded the export, None for plain sessions.
        ran: What was run: "forward", "generate", "pipeline" or "session".
        node_count: Number of nodes of the optimized graph that ran on this provider; a compiled
            part counts as one.
        max_difference: The largest difference from the CPU's outputs, None for the CPU itself and
            where nothing was compared.
        seconds: Time to load and run.
        asked: Whether the provider was asked for by name.
        precision: What it computed in, None for the CPU itself and where it did not run.
        stage: "loading", "running" or "comparing" if it failed there, else None.
        file: The graph that it failed with, None if that is not known.
        node: The node that ONNX Runtime's message names, or that makes the wrong output.
        tag: The tag of that node.
        install: The command that installs what is lacking, to paste; None if it is not known.
    """

    provider: str
    status: str
    message: str
    ort_class: str | None = None
    ran: str | None = None
    node_count: int = 0
    max_difference: float | None = None
    seconds: float = 0.0
    asked: bool = False
    precision: str | None = None
    stage: str | None = None
    file: str | None = None
    node: str | None = None
    tag: str | None = None
    install: str | None = None


def check_providers(
    exported: Exported,
    loader: Loader,
    providers: Sequence[Provider],
    *,
    place: Place | None = None,
    loaded: Loaded | None = None,
) -> tuple[list[ProviderResult], Run | None, list[Placement]]:
    """Run the providers that this build of ONNX Runtime has, one after the other.

    Returns:
        The result of each provider, the CPU's run if there was one, and the nodes of each module
        that the others took.
    """
    import onnxruntime

    check: _Check | None = None
    problem = "not run: a file cannot be read (see the checks)"
    present = {one.name for one in providers if one.available}
    if present and not exported.unreadable:
        if present - {CPU}:
            start_importing()
        try:
            plan = make_plan(exported, loader, by_module=place is not None)
        except ModelExportError as error:
            problem = f"not run: {error}"
        else:
            check = _Check(exported, loader, place, plan, run_reference(plan, loaded))
    results = []
    for one in providers:
        name, version = one.name, onnxruntime.__version__
        if not one.available:
            message = f"this build of ONNX Runtime ({version}) does not have it: {needs(name)}"
            result = ProviderResult(name, "unavailable", message, install=INSTALL.get(name))
        elif check is None:
            result = ProviderResult(name, "failed", problem)
        else:
            result = check.result(one)
        results.append(replace(result, asked=one.asked))
    if check is None:
        return results, None, []
    return results, check.cpu, check.placements


def make_plan(exported: Exported, loader: Loader, *, by_module: bool = False) -> RunPlan:
    """Return the plan for all providers, with the inputs of each graph.

    Raises:
        ModelExportError: The inputs of a graph cannot be generated.
    """
    inputs = {}
    # A pipeline is given a text or a picture, and makes the inputs of its graphs itself.
    for file in exported.graphs if exported.library != "diffusers" or not loader.name else ():
        path = exported.directory / file
        try:
            graph = exported.graphs[file]
            made = generate(path, graph, _INPUT_OPTIONS, export=exported.directory)
            inputs[file] = made.arrays
        except ModelExportError as error:
            what = str(error).partition(": give ")[0]  # `verify` takes no inputs
            raise ModelExportError(f"no inputs can be generated: {what}") from error
    nodes = (node for graph in exported.graphs.values() for node in walk_nodes(graph))
    return RunPlan(
        directory=exported.directory.absolute(),
        files=tuple(exported.graphs),
        library=exported.library,
        ort_class=loader.ort_class,
        use_cache=exported.uses_cache,
        trust_remote_code=exported.trust_remote_code,
        inputs=inputs,
        draws=any(node.op_type in RANDOM_OPERATORS for node in nodes),
        by_module=by_module,
    )


@dataclass
class _Check:
    """The check of one export, provider by provider.

    Attributes:
        exported: The export.
        loader: How it is loaded.
        place: Finds the nodes of each module that a provider took, if requested.
        plan: The plan of all runs.
        cpu: The CPU's run.
        placements: The nodes of each module that the other providers took.
    """

    exported: Exported
    loader: Loader
    place: Place | None
    plan: RunPlan
    cpu: Run
    placements: list[Placement] = field(default_factory=list)

    def result(self, provider: Provider) -> ProviderResult:
        """Run on a provider, and check the result."""
        name = provider.name
        found = self.cpu
        if name != CPU:
            seconds = LEAST_SECONDS + TIMES_THE_CPU * self.cpu.seconds
            found = run_in_child(self.plan, provider, seconds)
            _pass_on(found.log)
            self._note_placements(name, found)
        result = ProviderResult(
            provider=name,
            status="ok",
            message=self._what_ran(found, name),
            ort_class=self.loader.name,
            ran=found.ran,
            node_count=found.nodes[name],
            seconds=round(found.seconds, 3),
        )
        if not found.complete:
            return self._incomplete(result, found)
        if not result.node_count:
            elsewhere = ", ".join(f"{count} on {other}" for other, count in found.nodes.items())
            reason = log_reason(found.log)
            message = f"no node ran on it ({elsewhere}){f': {reason}' if reason else ''}"
            return replace(result, status="failed", message=message)
        return result if name == CPU else self._compared(result, found)

    def _note_placements(self, provider: str, found: Run) -> None:
        """Record the nodes of each module that a provider took, in each graph."""
        if self.place is None:
            return
        for file, assigned in sorted(found.assigned.items()):
            why = "" if any(one.provider == provider for one in assigned) else log_reason(found.log)
            record = Assignment(provider, assigned, found.recorded, why)
            feeds = self.plan.inputs.get(file, {})
            self.placements.append(self.place(self.plan.directory / file, record, feeds))

    def _incomplete(self, result: ProviderResult, found: Run) -> ProviderResult:
        if found.error:
            node = None
            if found.file is not None:
                node = named_node(found.error, self.exported.graphs[found.file])
            what = onnxruntime_line(found.error)
            words = f"{found.stage} {found.file or 'the export'} failed: {what}{_named(node)}"
        else:
            others = ", ".join(sorted(found.fell_back))
            reason = log_reason(found.log) or "it gave no reason"
            words = f"ONNX Runtime fell back to {others}: {reason}"
            node = None
        status = "failed"
        if result.provider != CPU and _LACKING.search(words):
            status = "unavailable"
            words += f": {needs(result.provider)}"
            result = replace(result, install=INSTALL.get(result.provider))
        return replace(
            result,
            status=status,
            message=words,
            stage=found.stage,
            file=found.file,
            node=node.name if node else None,
            tag=tag_of(node) if node else None,
        )

    def _compared(self, result: ProviderResult, found: Run) -> ProviderResult:
        computed = computed_in(result.provider, found.options, _stored(self.exported))
        result = replace(result, precision=computed)
        if not self.cpu.complete:
            message = "it ran, but the CPU gave nothing to compare it with"
            return replace(result, status="failed", message=message, stage=COMPARING)
        compared = compare_outputs(found.outputs, self.cpu.outputs, computed, self.cpu.drawn)
        result = replace(result, max_difference=compared.difference)
        if not compared.problem:
            words = result.message + _agreement(compared, computed, self.cpu)
            return replace(result, message=words)
        file, node = self._maker(found, compared.output or "")
        words = f"comparing {file or 'the export'} failed: {compared.problem} ({computed})"
        return replace(
            result,
            status="failed",
            message=words + _named(node),
            stage=COMPARING,
            file=file,
            node=node.name if node else None,
            tag=tag_of(node) if node else None,
        )

    def _maker(self, found: Run, output: str) -> tuple[str | None, Node | None]:
        """Return the file of an output, and the node that computes it."""
        file, _, name = output.rpartition(": ")
        name = re.sub(r"^(logits)\.\d+$", r"\1", name)  # of a step of generation
        for each in [file] if file else sorted(found.files):
            graph = self.exported.graphs[each]
            if any(value.name == name for value in graph.outputs):
                return each, next((node for node in graph.nodes if name in node.outputs), None)
        return file or None, None

    def _what_ran(self, found: Run, provider: str) -> str:
        loader = self.loader
        what = f"{loader.name}: {found.ran}" if loader.name else "plain sessions"
        graphs = (self.exported.graphs[file] for file in found.files)
        before = sum(1 for graph in graphs for _ in walk_nodes(graph))
        text = f"{what}, {found.nodes[provider]:,} nodes, {before:,} before optimization"
        elsewhere = found.nodes.total() - found.nodes[provider]
        if elsewhere:
            text += f", {elsewhere} more on the CPU"
        if loader.reason:
            text += f" ({loader.reason})"
        unused = sorted(self.exported.graphs.keys() - found.files)
        if unused:
            text += f"; not loaded: {', '.join(unused)}"
        return text


def _stored(exported: Exported) -> str:
    """Return the precision of the graphs themselves."""
    nodes = (node for graph in exported.graphs.values() for node in walk_nodes(graph))
    if any(node.op_type in _QUANTIZING_OPERATORS for node in nodes):
        return "int8"
    return precision(exported)


def _named(node: Node | None) -> str:
    if node is None:
        return ""
    tag = tag_of(node)
    return f" [node {node.name or node.op_type}{f' of {tag}' if tag else ''}]"


def _agreement(compared: Agreement, computed: str, cpu: Run) -> str:
    words = ""
    if compared.difference is not None:
        words = f"; at most {compared.difference:.1e} from the CPU's ({computed})"
    if cpu.drawn:
        words += f"; random, so not compared: {listed(sorted(cpu.drawn), 1)}"
    return words


def _pass_on(log: str) -> None:
    """Print the output of a run, without ONNX Runtime's log."""
    text = LOG_ENTRY.sub("", log).strip()
    if text:
        print(text, file=sys.stderr)
