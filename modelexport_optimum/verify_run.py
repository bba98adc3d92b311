"""`verify()`: the checks of an export, and the provider of each module's nodes.

The checks are in `verifying`; `hierarchy` finds the module of a node.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modelexport_optimum.verifying import verify as checks

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

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

    Every provider but the CPU's runs in a separate process, because it may crash or hang.

    Args:
        directory: The directory of an export.
        providers: Execution providers, by any name that ONNX Runtime or an installed package knows,
            short ("cuda") or full. By default CPU, CUDA and TensorRT; the last two may be
            unavailable.
        provider_options: Options of the one provider besides the CPU's, by name.
        provider_libraries: Paths of the libraries of providers that are in no installed package, by
            the providers' names.
        by_module: Also return which provider took the nodes of each module. The files must be
            tagged.
        task: Task of the export; detected by default.
        library: Library of the model; detected by default.
        model: Directory of the source model. The export must have all its files but the weights,
            and give the same embeddings.
        trust_remote_code: Run the code of a custom architecture that is in the directory.

    Raises:
        UsageError: There is nothing to check, or no such provider or task.
        ModelExportError: `by_module` is True, and a file is not tagged.
    """
    return checks.verify(
        Path(directory),
        checks.chosen_providers(providers, provider_options, provider_libraries),
        task=task,
        library=library,
        model=None if model is None else Path(model),
        trust_remote_code=trust_remote_code,
        place=_placed if by_module else None,
    )


def _placed(path: Path, assignment: Assignment, feeds: Mapping[str, np.ndarray]) -> Placement:
    from modelexport_optimum.hierarchy.tagged_model import read_tagged
    from modelexport_optimum.profiling.placement import place_nodes

    return place_nodes(read_tagged(path), assignment, feeds)
