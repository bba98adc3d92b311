"""`verify()`: the checks of an export, and by module which provider took what.

The checks stand in `verifying`; which module a node is of, in `hierarchy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelexport_optimum.verifying import verify as checks

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from modelexport_optimum.providers.choice import Settings
    from modelexport_optimum.providers.placement import Placement
    from modelexport_optimum.providers.session import Assignment


def verify(
    directory: str | os.PathLike[str],
    *,
    providers: Sequence[str] | None = None,
    provider_options: Settings = None,
    provider_libraries: Settings = None,
    by_module: bool = False,
    task: str | None = None,
    library: str | None = None,
    model: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
) -> checks.VerifyReport:
    """Check an exported directory, and run it on execution providers.

    Every provider but the CPU's runs in a process of its own, which may crash or hang.

    Args:
        directory: What an export wrote.
        providers: Execution providers, by any name that ONNX Runtime or an installed package
            knows, short ("cuda") or full. By default CPU, CUDA and TensorRT, and a machine may
            lack the latter two.
        provider_options: Options of the one provider besides the CPU's, by name.
        provider_libraries: Paths of the libraries of providers that no installed package has,
            by the providers' names.
        by_module: Also say which module's nodes each provider took. The files must be tagged.
        task: What the export is for; found out by default.
        library: The library of the model; found out by default.
        model: The directory of the model that was exported: what it has beside its weights,
            the export must have, too, and its embeddings must be the same.
        trust_remote_code: Run the code of a custom architecture that is in the directory.

    Raises:
        UsageError: There is nothing to check, or no such provider or task.
        ModelExportError: A file is not tagged, and `by_module` was asked for.
    """
    return checks.verify(
        directory,
        providers=providers,
        provider_options=provider_options,
        provider_libraries=provider_libraries,
        task=task,
        library=library,
        model=model,
        trust_remote_code=trust_remote_code,
        place=_placed if by_module else None,
    )


def _placed(path: Path, assignment: Assignment, feeds: Mapping[str, np.ndarray]) -> Placement:
    from modelexport_optimum.hierarchy.tagged_model import read_tagged
    from modelexport_optimum.profiling.placement import place_nodes

    return place_nodes(read_tagged(path), assignment, feeds)
