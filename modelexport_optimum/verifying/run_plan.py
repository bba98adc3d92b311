"""The plan of the runs on execution providers, and the result of one run, as plain data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnxruntime
    from numpy.typing import NDArray

    from modelexport_optimum.providers.session import AssignedNode

    Outputs = dict[str, NDArray[Any]]

LOADING, RUNNING, COMPARING = "loading", "running", "comparing"
"""The stages of a check, in their order."""


@dataclass(frozen=True)
class RunPlan:
    """The plan of a run, the same for every provider.

    Attributes:
        directory: The export.
        files: Its graphs, by path below the directory.
        library: Optimum's name of the model's library.
        ort_class: The class to load it with; None for plain sessions.
        use_cache: Whether a decoder takes cached keys and values.
        trust_remote_code: Whether code in the directory may run.
        inputs: The inputs of each graph, made once.
        draws: Whether a graph draws random numbers.
        by_module: Whether to record the provider of each node.
    """

    directory: Path
    files: tuple[str, ...]
    library: str
    ort_class: Any
    use_cache: bool
    trust_remote_code: bool
    inputs: Mapping[str, Outputs]
    draws: bool
    by_module: bool = False

    def file_of(self, session: onnxruntime.InferenceSession) -> str:
        """Return the graph of a session."""
        return self.below(session._model_path)

    def below(self, path: str | Path) -> str:
        """Return a path relative to the directory."""
        return Path(path).relative_to(self.directory).as_posix()


@dataclass
class Run:
    """The result of one provider's run.

    Attributes:
        stage: The stage at its end.
        error: The complete error that ended it, "" if there was none.
        file: The graph that was being loaded or run when an error was raised, if one was.
        ran: The kind of run: "forward", "generate", "pipeline" or "session".
        nodes: Number of nodes that ran, by provider.
        outputs: The outputs, by name.
        drawn: The outputs that depend on the seed of ONNX Runtime's random numbers.
        files: The graphs that were loaded.
        fell_back: The providers of sessions that fell back.
        options: The options of the provider's sessions.
        assigned: The nodes that each provider took, by graph, if that was asked for.
        recorded: Whether these are ONNX Runtime's own record; else they are what ran.
        seconds: Time to load and run.
        log: The output of its process, including its C++ libraries; "" for a run in this process.
    """

    stage: str = LOADING
    error: str = ""
    file: str | None = None
    ran: str | None = None
    nodes: Counter[str] = field(default_factory=Counter)
    outputs: Outputs = field(default_factory=dict)
    drawn: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    fell_back: set[str] = field(default_factory=set)
    options: dict[str, str] = field(default_factory=dict)
    assigned: dict[str, tuple[AssignedNode, ...]] = field(default_factory=dict)
    recorded: bool = False
    seconds: float = 0.0
    log: str = ""

    @property
    def complete(self) -> bool:
        """Whether it ran without an error, on the requested provider."""
        return not self.error and not self.fell_back
