"""One run of an export on one execution provider, in this process.

Every provider runs the same `RunPlan` with the same inputs. `providers.py` checks the result, a
`Run`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelexport_optimum.own_code.guard import own_code_refused
from modelexport_optimum.providers.choice import CPU, Provider
from modelexport_optimum.providers.session import (
    add_plugin,
    assigned_nodes,
    nodes_that_ran,
    open_session,
    quiet_options,
    record_assignment,
)
from modelexport_optimum.verifying.axis_names import refuse_evaluated_axes
from modelexport_optimum.verifying.inference import infer
from modelexport_optimum.verifying.run_plan import LOADING, RUNNING, Run, RunPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import onnxruntime

    At = Callable[[str, str | None], None]
    Loaded = Callable[[Mapping[Path, onnxruntime.InferenceSession]], None]
    """Called with the sessions of a run, by their files, before they are released."""

_LONGEST_MESSAGE = 20_000
"""Maximum characters of an error: OpenVINO repeats its message for each layer of its code."""

_OTHER_SEED = 1000
"""Two seeds, not near 0 or 1: the index of the node is added to each, and the generator treats 0 as
1."""

_SPINNING = "session.intra_op.allow_spinning"
"""ONNX Runtime's setting for the spinning of waiting threads. Spinning helps if a graph runs many
times, and costs a third of the check's CPU time if it runs once."""

_SESSION_CREATION = threading.Lock()


def run_reference(plan: RunPlan, loaded: Loaded | None = None) -> Run:
    """Run on the CPU; the other providers' outputs are compared with these outputs.

    A graph with random numbers runs with two seeds, which shows the random outputs: providers never
    agree on these.
    """
    result = run(plan, Provider(CPU), loaded=loaded)
    if plan.draws and result.complete:
        other = run(plan, Provider(CPU), seed=_OTHER_SEED)
        result.drawn = {
            name
            for name, value in result.outputs.items()
            if name in other.outputs
            and not np.array_equal(value, other.outputs[name], equal_nan=value.dtype.kind == "f")
        }
    return result


def run(
    plan: RunPlan,
    provider: Provider,
    *,
    seed: int = 0,
    at: At | None = None,
    loaded: Loaded | None = None,
) -> Run:
    """Load the export on a provider, run it once, release it. An error is in the result.

    Args:
        plan: The plan.
        provider: The provider.
        seed: Seed of ONNX Runtime's random numbers.
        at: Called with each stage and its file, None if it has several files.
        loaded: Called with the sessions, if they ran.
    """
    import onnxruntime

    result = Run()
    started = time.perf_counter()
    note = at or (lambda stage, file: None)
    onnxruntime.set_seed(seed)
    # The log of another provider says more than its errors.
    options = quiet_options() if provider.name == CPU else onnxruntime.SessionOptions()
    options.add_session_config_entry(_SPINNING, "0")
    options.enable_profiling = True  # its events tell where each node ran
    if plan.by_module:
        record_assignment(options)
    model: Any = None
    sessions: list[onnxruntime.InferenceSession] = []
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
        result.seconds = time.perf_counter() - started
        if loaded is not None and result.complete:
            loaded({plan.directory / plan.file_of(session): session for session in sessions})
        sessions = []
        model = None
        if plan.library == "diffusers":  # its pipelines are in reference cycles
            gc.collect()
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
    """Give each session with these options its own profile, and record the session.

    Optimum makes all sessions of a model with one object of options, and ONNX Runtime names a
    profile by its prefix and the second (`InferenceSession::StartProfiling`; 1.20 and 1.24 as
    seen): two sessions of one second write to one file. A plugin is part of the options, and
    Optimum's list of providers, which does not know plugins, would replace it.
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
    """Record the nodes that ran in a session, by provider, and the provider of each node."""
    profile = Path(session.end_profiling())
    ran = nodes_that_ran(json.loads(profile.read_text(encoding="utf-8")))
    result.nodes.update(node.provider for node in ran)
    if plan.by_module:
        taken = assigned_nodes(session)
        result.recorded = bool(taken)
        result.assigned[plan.file_of(session)] = taken or ran
