"""The outputs of a file as deployed, with all optimizations, compared with a reference's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from modelexport_optimum.comparing.comparison import OutputComparison, difference
from modelexport_optimum.errors import onnxruntime_errors
from modelexport_optimum.graph_runs.tapped_run import whole_feeds
from modelexport_optimum.providers.session import assigned_nodes, open_session, quiet_options

if TYPE_CHECKING:
    from pathlib import Path

    import onnxruntime

    from modelexport_optimum.graph_runs.recorded_run import RecordedRun
    from modelexport_optimum.graph_runs.tapped_run import Arrays, TappedRun
    from modelexport_optimum.providers.choice import Provider


def took_nothing(session: onnxruntime.InferenceSession, provider: Provider) -> bool:
    """Return whether a provider took no node of a session's graph, which then runs on the CPU."""
    assigned = assigned_nodes(session)
    return bool(assigned) and all(node.provider != provider.name for node in assigned)


def deployed_session(path: Path, provider: Provider) -> onnxruntime.InferenceSession:
    """Load a file as deployed, with all optimizations."""
    with onnxruntime_errors(f"load {path}"):
        return open_session(str(path), provider, quiet_options(recorded=True))


def deployed_outputs(
    run: TappedRun,
    recorded: RecordedRun,
    ours: RecordedRun,
    feeds: Arrays,
    label: str,
    session: onnxruntime.InferenceSession | None = None,
) -> list[OutputComparison]:
    """Compare the outputs of a file as deployed, with all optimizations."""
    path = run.graph.file.path
    session = session or deployed_session(path, run.provider)
    with onnxruntime_errors(f"run {path}"):
        given = whole_feeds(session, feeds, run.graph.branch)
        names = [value.name for value in session.get_outputs() if value.name in recorded.outputs]
        values = session.run(names, given) if names else []
    assigned = assigned_nodes(session)
    taken = sum(node.provider == run.provider.name for node in assigned)
    rows = []
    for name, value in zip(names, values, strict=True):
        theirs = recorded.outputs[name]
        unfused = ours.outputs.get(name)
        if unfused is not None and unfused.shape != theirs.shape:
            unfused = None
        same_shape = value.shape == theirs.shape
        if not same_shape and unfused is None:
            continue
        rows.append(
            OutputComparison(
                label,
                name,
                difference(theirs, value).relative if same_shape else math.inf,
                None if unfused is None else difference(theirs, unfused).relative,
                taken if assigned else None,
                len(assigned) or None,
            )
        )
    return rows
