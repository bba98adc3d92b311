"""How a profile shows itself in a notebook. It counts nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelexport_optimum.system.notebook import Part, line, shown, tree, treemap

if TYPE_CHECKING:
    from modelexport_optimum.profiling.profile_result import FileProfile


def show_times(profile: FileProfile) -> str:
    """Show where the time of a file's run goes."""
    parts = [
        Part(
            level=module.depth,
            name=module.name,
            path=module.module,
            kind=module.module_class,
            size=module.total,
            own=module.own,
            cells=(
                f"{profile.milliseconds(module.total):.3f}",
                f"{profile.milliseconds(module.own):.3f}",
                f"{profile.share(module.total):.1%}",
            ),
        )
        for module in profile.modules
    ]
    inputs = ", ".join(f"{name} {kind}" for name, kind in profile.inputs.items())
    return shown(
        profile.name,
        line(
            f"{profile.milliseconds(profile.runs):.3f} ms a run, of which "
            f"{profile.milliseconds(profile.kernels):.3f} ms in kernels on "
            f"{', '.join(profile.providers)}; mean of {profile.iterations} runs"
        ),
        line(f"of {inputs}"),
        treemap(parts, lambda size: f"{profile.milliseconds(int(size)):.3f} ms"),
        tree(("ms", "own ms", "share"), parts),
    )
