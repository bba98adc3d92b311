"""The checks of an exported directory: its config against its graphs, and ONNX Runtime.

`export_reader.py` reads the directory, `config_checks.py` checks it, and `providers.py` runs it.
Every result is one line.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import UsageError
from modelexport_optimum.own_code.guard import own_code_refused
from modelexport_optimum.providers.choice import Provider, Settings, choose_providers
from modelexport_optimum.system.display import Displayed
from modelexport_optimum.system.locks import in_one_thread
from modelexport_optimum.system.notebook import shown, table
from modelexport_optimum.system.packages import require_packages
from modelexport_optimum.verifying.config_checks import Check, check_all
from modelexport_optimum.verifying.export_reader import read_exported
from modelexport_optimum.verifying.ort_classes import Loader, find_loader
from modelexport_optimum.verifying.providers import ProviderResult, check_providers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from modelexport_optimum.providers.placement import Placement
    from modelexport_optimum.verifying.provider_run import Loaded
    from modelexport_optimum.verifying.providers import Place

DEFAULT_PROVIDERS = ("cpu", "cuda", "tensorrt")


@dataclass(frozen=True, repr=False)
class VerifyReport(Displayed):
    """The result of the checks of one exported directory.

    Attributes:
        directory: The export.
        task: Its task, in Optimum's name; None if neither the config nor the graphs show it.
        library: The library of the model.
        ort_class: The `ORTModel` class that loads it, None if there is none.
        checks: The checks of config.json against the graphs.
        providers: One result for each execution provider.
        placements: For each graph and provider but the CPU's, the nodes of each module that the
            provider took; empty if this was not requested.
    """

    directory: Path
    task: str | None
    library: str
    ort_class: str | None
    checks: tuple[Check, ...]
    providers: tuple[ProviderResult, ...]
    placements: tuple[Placement, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no check failed, and every provider requested by name ran it."""
        return all(check.status != "failed" for check in self.checks) and all(
            result.status == "ok" or (result.status == "unavailable" and not result.asked)
            for result in self.providers
        )

    def _repr_html_(self) -> str:
        """Return the HTML for a notebook."""
        title = f"{self.directory.name}: {self.ort_class or 'no ORTModel'}, {self.task}"
        return shown(title, table(("check", "result", ""), self.rows()))

    def rows(self) -> list[tuple[str, str, str]]:
        """Return name, status and message of every check, the providers' after the others."""
        return [
            *((check.name, check.status, check.message) for check in self.checks),
            *((one.provider, one.status, one.message) for one in self.providers),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as data for JSON."""
        return {
            "ok": self.ok,
            "directory": str(self.directory),
            "task": self.task,
            "library": self.library,
            "ort_class": self.ort_class,
            "checks": [asdict(check) for check in self.checks],
            "providers": [asdict(result) for result in self.providers],
            "placements": [placement.to_dict() for placement in self.placements],
        }


@in_one_thread
def verify(
    directory: Path,
    providers: Sequence[Provider],
    *,
    task: str | None = None,
    library: str | None = None,
    model: Path | None = None,
    trust_remote_code: bool = False,
    place: Place | None = None,
    loaded: Loaded | None = None,
) -> VerifyReport:
    """Check an exported directory, and run it on execution providers: see `verify_run.verify`.

    `place` finds the nodes of each module that a provider took, for the report's placements.
    `loaded` is called with the CPU's sessions by file, if they ran, before they are released.

    Raises:
        UsageError: There is nothing to check, or no such task.
    """
    if model is not None and not model.is_dir():
        raise UsageError(f"{model} is not a directory: give the directory of the source model")
    with own_code_refused(directory, model, trusted=trust_remote_code):
        exported = read_exported(
            directory, task=task, library=library, trust_remote_code=trust_remote_code
        )
        loader = Loader(None, "its files cannot be read")
        if not exported.unreadable:
            loader = find_loader(exported)
        results, cpu, placements = check_providers(
            exported, loader, providers, place=place, loaded=loaded
        )
        checks = tuple(check_all(exported, cpu, model))
    found_task = exported.task
    if found_task is not None and exported.uses_cache:
        found_task += "-with-past"
    return VerifyReport(
        directory=directory,
        task=found_task,
        library=exported.library,
        ort_class=loader.name,
        checks=checks,
        providers=tuple(results),
        placements=tuple(placements),
    )


def chosen_providers(
    names: Sequence[str] | None, options: Settings, libraries: Settings
) -> list[Provider]:
    """Return the providers to check: those of the names, or the default ones.

    Raises:
        UsageError: There is no such provider, or options or libraries do not fit them.
        ModelExportError: What runs an export is not installed.
    """
    require_packages("onnxruntime", "transformers", "torch")
    return choose_providers(
        names or DEFAULT_PROVIDERS, options=options, libraries=libraries, asked=bool(names)
    )
