"""One run of an export on one execution provider, in this process.

What is run is the same for every provider, a `RunPlan` with its inputs. How the run went is
told as it was, a `Run`: it is judged in `providers.py`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import tempfile
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelexport_optimum.own_code.guard import own_code_refused
from modelexport_optimum.providers.choice import CPU, Provider
from modelexport_optimum.providers.session import (
    AssignedNode,
    add_plugin,
    assigned_nodes,
    nodes_that_ran,
    open_session,
    quiet_options,
    record_assignment,
)
from modelexport_optimum.verifying.axis_names import refuse_evaluated_axes
from modelexport_optimum.verifying.inference import infer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import onnxruntime
    from numpy.typing import NDArray

    Outputs = dict[str, NDArray[Any]]
    At = Callable[[str, str | None], None]

LOADING, RUNNING, COMPARING = "loading", "running", "comparing"
"""The stages of a check, in their order."""

_LONGEST_MESSAGE = 20_000
"""Characters of an error to keep: OpenVINO's repeat what they say for each layer of its code."""

_OTHER_SEED = 1000
"""Not 0 or 1, nor near: to each the index of its node is added, and 0 is 1 to the generator."""

_SESSION_CREATION = threading.Lock()


@dataclass(frozen=True)
class RunPlan:
    """What is run on every provider.

    Attributes:
        directory: The export.
        files: Its graphs, by path below the directory.
        library: Optimum's name of the library that the model is of.
        ort_class: The class to load it with; None for plain sessions.
        use_cache: Whether a decoder takes cached keys and values.
        trust_remote_code: Whether code in the directory may run.
        inputs: The inputs of each graph, made once.
        draws: Whether a graph draws random numbers.
        by_module: Whether it is kept which provider took which node.
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
        """Return the graph that a session was made of."""
        return self.below(session._model_path)

    def below(self, path: str | Path) -> str:
        """Return a path as one below the directory."""
        return Path(path).relative_to(self.directory).as_posix()


@dataclass
class Run:
    """How one provider's run went.

    Attributes:
        stage: What it was at when it ended.
        error: The whole of the error that ended it, "" if it ran to its end.
        file: The graph that was being loaded or run when an error was raised, if one was.
        ran: What was run: "forward", "generate", "pipeline" or "session".
        nodes: How many nodes ran, by provider.
        outputs: What came out, by name.
        drawn: The outputs that depend on the seed of ONNX Runtime's random numbers.
        files: The graphs that were loaded.
        fell_back: The providers that sessions came up on instead.
        options: The options that the provider's sessions came up with.
        assigned: The nodes that each provider took, by graph, if that was asked for.
        recorded: Whether these are ONNX Runtime's own record; else they are what ran.
        seconds: Time to load and run.
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

    @property
    def complete(self) -> bool:
        """Whether it ran to its end, on the provider that was asked for."""
        return not self.error and not self.fell_back


def run_reference(plan: RunPlan) -> Run:
    """Run on the CPU, whose outputs the other providers' are compared with.

    If a graph draws random numbers it is run with two seeds, which tells the outputs that are
    random: no two providers agree on these.
    """
    result = run(plan, Provider(CPU))
    if plan.draws and result.complete:
        other = run(plan, Provider(CPU), seed=_OTHER_SEED)
        result.drawn = {
            name
            for name, value in result.outputs.items()
            if name in other.outputs
            and not np.array_equal(value, other.outputs[name], equal_nan=value.dtype.kind == "f")
        }
    return result


def run(plan: RunPlan, provider: Provider, *, seed: int = 0, at: At | None = None) -> Run:
    """Load the export on a provider, run it once, release it. What is raised is told.

    Args:
        plan: What to run.
        provider: The provider.
        seed: Of ONNX Runtime's random numbers.
        at: Called with each stage and the file that it is at, None if it is at several.
    """
    import onnxruntime

    result = Run()
    started = time.perf_counter()
    note = at or (lambda stage, file: None)
    onnxruntime.set_seed(seed)
    # What another provider logs of its errors tells more than they do.
    options = quiet_options() if provider.name == CPU else onnxruntime.SessionOptions()
    options.enable_profiling = True  # its events tell where each node ran
    if plan.by_module:
        record_assignment(options)
    model: Any = None
    with tempfile.TemporaryDirectory() as folder:
        try:
            with _watched(plan, provider, options, Path(folder), note):
                model = _load(plan, provider, options)
            sessions = _sessions(model)
            result.files = {plan.file_of(session) for session in sessions}
            result.fell_back = {session.get_providers()[0] for session in sessions}
            result.fell_back -= {provider.name}
            came_up = sessions[0].get_provider_options().get(provider.name, {})
            result.options = {**provider.options, **came_up}
            if not result.fell_back:
                result.stage = RUNNING
                note(RUNNING, next(iter(result.files)) if len(result.files) == 1 else None)
                result.ran, result.outputs = infer(plan, model)
                for session in sessions:
                    _note_nodes(plan, result, session)
        except Exception as error:  # loading and running may raise whatever there is
            result.error = f"{type(error).__name__}: {error}"[:_LONGEST_MESSAGE]
            failed = _session_of(error)
            result.file = None if failed is None else plan.file_of(failed)
            traceback.clear_frames(error.__traceback__)  # they hold sessions
        sessions = []
        model = None
        if plan.library == "diffusers":  # its pipelines are in reference cycles
            gc.collect()
    result.seconds = time.perf_counter() - started
    return result


# --- Sessions -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _watched(
    plan: RunPlan,
    provider: Provider,
    options: onnxruntime.SessionOptions,
    folder: Path,
    note: At,
) -> Iterator[None]:
    """Give each session that is made with these options a profile of its own, and note it.

    Optimum makes all sessions of a model with one object of options, and ONNX Runtime names a
    profile by its prefix and the second (`InferenceSession::StartProfiling`; 1.20 and 1.24 as
    seen): two sessions of one second write to one file. A provider that is not built in stands
    in the options, and Optimum's list of providers, which knows none of these, would replace it.
    """
    from onnxruntime import InferenceSession

    with _SESSION_CREATION:
        create = InferenceSession.__init__
        count = 0

        def initialize(
            session: onnxruntime.InferenceSession,
            path_or_bytes: Any,  # noqa: ANN401
            sess_options: Any = None,  # noqa: ANN401
            *args: Any,  # noqa: ANN401
            **kwargs: Any,  # noqa: ANN401
        ) -> None:
            nonlocal count
            if sess_options is options:
                count += 1
                options.profile_file_prefix = str(folder / f"session-{count}")
                note(LOADING, plan.below(path_or_bytes))
                if provider.library is not None:
                    args = ()
                    kwargs = {k: kwargs[k] for k in kwargs if not k.startswith("provider")}
            create(session, path_or_bytes, sess_options, *args, **kwargs)

        InferenceSession.__init__ = initialize
        try:
            yield
        finally:
            InferenceSession.__init__ = create


def _load(plan: RunPlan, provider: Provider, options: onnxruntime.SessionOptions) -> Any:  # noqa: ANN401
    """Return an ORTModel, a pipeline, or sessions by file."""
    from transformers import GenerationMixin

    directory = plan.directory
    if plan.ort_class is None:
        return {file: open_session(str(directory / file), provider, options) for file in plan.files}
    arguments: dict[str, Any] = {"export": False, "local_files_only": True}
    if provider.library is not None:
        add_plugin(options, provider)
    elif provider.options:
        arguments["provider_options"] = dict(provider.options)
    if plan.library != "diffusers":
        arguments["trust_remote_code"] = plan.trust_remote_code
        if issubclass(plan.ort_class, GenerationMixin):
            arguments["use_cache"] = plan.use_cache
    with own_code_refused(directory, trusted=plan.trust_remote_code):
        model = plan.ort_class.from_pretrained(
            directory,
            provider=CPU if provider.library is not None else provider.name,
            session_options=options,
            **arguments,
        )
    for part in getattr(model, "parts", [model]):
        if part.use_io_binding:
            refuse_evaluated_axes(part.session)
    if plan.library == "diffusers":
        model.set_progress_bar_config(disable=True)
    return model


def _sessions(model: Any) -> list[onnxruntime.InferenceSession]:  # noqa: ANN401
    if isinstance(model, dict):
        return list(model.values())
    return [part.session for part in getattr(model, "parts", [model])]


def _session_of(error: BaseException) -> onnxruntime.InferenceSession | None:
    """Return the session in whose method an error was raised: ONNX Runtime does not name it."""
    from onnxruntime import InferenceSession

    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if isinstance(owner, InferenceSession):
            found = owner
    return found


def _note_nodes(plan: RunPlan, result: Run, session: onnxruntime.InferenceSession) -> None:
    """Note the nodes that ran in a session, by provider, and which provider took which."""
    profile = Path(session.end_profiling())
    ran = nodes_that_ran(json.loads(profile.read_text(encoding="utf-8")))
    result.nodes.update(node.provider for node in ran)
    if plan.by_module:
        taken = assigned_nodes(session)
        result.recorded = bool(taken)
        result.assigned[plan.file_of(session)] = taken or ran
