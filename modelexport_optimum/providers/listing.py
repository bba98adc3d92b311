"""The execution providers of this machine, and what must be installed for the others."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any

from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.providers.choice import settings_of
from modelexport_optimum.providers.needs import INSTALL, needs
from modelexport_optimum.providers.plugins import (
    Plugin,
    built_in_providers,
    devices_of,
    installed_plugins,
)
from modelexport_optimum.system.display import Displayed
from modelexport_optimum.system.packages import require_packages
from modelexport_optimum.system.processes import ending

BUILT_IN, PLUGIN, MISSING = "built in", "plugin", "missing"

_SECONDS = 120
"""Time for a library to load, in seconds; it is loaded in a separate process, which may crash."""


@dataclass(frozen=True, slots=True, repr=False)
class Device(Displayed):
    """A device of a provider.

    Attributes:
        type: "CPU", "GPU" or "NPU".
        vendor: Its vendor.
        description: More details, such as its name; may be "".
    """

    type: str
    vendor: str
    description: str


@dataclass(frozen=True, slots=True, repr=False)
class ListedProvider(Displayed):
    """One execution provider.

    Attributes:
        name: ONNX Runtime's name of it.
        kind: "built in", "plugin" or "missing".
        package: The package that contains it; None if it is missing.
        library: The path of a plugin's library.
        devices: Its devices on this machine. A built-in provider has none if ONNX Runtime does not
            list them.
        problem: Why it cannot be used, "" if no problem is known.
        install: The command that installs it; None if it is available, or the command is not known.
    """

    name: str
    kind: str
    package: str | None = None
    library: str | None = None
    devices: tuple[Device, ...] = ()
    problem: str = ""
    install: str | None = None


@dataclass(frozen=True, slots=True, repr=False)
class ProviderList(Displayed):
    """The execution providers.

    Attributes:
        onnxruntime: ONNX Runtime's version.
        providers: The available ones, and then the others that this version knows.
    """

    onnxruntime: str
    providers: tuple[ListedProvider, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the list as data for JSON."""
        return {
            "onnxruntime": self.onnxruntime,
            "providers": [asdict(one) for one in self.providers],
        }


def list_providers(*, libraries: Any = None) -> ProviderList:  # noqa: ANN401
    """List the providers of this machine, and what the others need.

    Args:
        libraries: Paths of further providers' libraries, by the providers' names, as a mapping or
            as `NAME=PATH`.

    Raises:
        ModelExportError: ONNX Runtime is not installed.
    """
    require_packages("onnxruntime")
    import onnxruntime as ort

    package = f"onnxruntime {ort.__version__}"
    found = {
        name: ListedProvider(name, BUILT_IN, package, devices=_built_in_devices(name))
        for name in built_in_providers()
    }
    for plugin in installed_plugins():
        for one in _of_plugin(plugin):
            found.setdefault(one.name, one)
    given = settings_of(libraries, "--provider-library NAME=PATH")
    for name, path in given.items():
        found[name] = _loaded(ListedProvider(name, PLUGIN, None, path))
    for name in ort.get_all_providers():
        if name not in found:
            found[name] = ListedProvider(
                name, MISSING, problem=needs(name), install=INSTALL.get(name)
            )
    return ProviderList(ort.__version__, tuple(found.values()))


def _of_plugin(plugin: Plugin) -> list[ListedProvider]:
    package = f"{plugin.package} {plugin.version}"
    try:
        return [
            _loaded(ListedProvider(name, PLUGIN, package, plugin.library()))
            for name in plugin.names()
        ]
    except ModelExportError as error:
        return [ListedProvider(plugin.package, PLUGIN, package, problem=str(error))]


def _loaded(one: ListedProvider) -> ListedProvider:
    """Return the provider with its devices, or with the reason why it has none."""
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        f"from {__name__} import print_devices; print_devices({one.name!r}, {one.library!r})"
    )
    try:
        run = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, timeout=_SECONDS, check=False
        )
        answer: dict[str, Any] = {"problem": f"{ending(run.returncode)} when it was loaded"}
        if run.returncode == 0:
            answer = json.loads(run.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        answer = {"problem": f"it was not loaded after {_SECONDS} s"}
    devices = tuple(Device(**device) for device in answer.get("devices", ()))
    return replace(one, devices=devices, problem=answer.get("problem", ""))


def print_devices(name: str, library: str) -> None:
    """Print the devices of a provider as one line of JSON; runs in a separate process."""
    answer: dict[str, Any] = {}
    try:
        answer["devices"] = [asdict(_device(device)) for device in devices_of(name, library)]
    except ModelExportError as error:
        answer["problem"] = str(error)
    print(f"\n{json.dumps(answer)}", flush=True)


def _built_in_devices(name: str) -> tuple[Device, ...]:
    import onnxruntime as ort

    devices = ort.get_ep_devices() if hasattr(ort, "get_ep_devices") else ()
    return tuple(_device(device) for device in devices if device.ep_name == name)


def _device(found: Any) -> Device:  # noqa: ANN401 (ONNX Runtime's classes are untyped)
    hardware = found.device
    named = [value for key, value in sorted(hardware.metadata.items()) if "escription" in key]
    return Device(hardware.type.name, hardware.vendor, ", ".join(named))
