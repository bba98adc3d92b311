"""Checks for installed packages: code that only reads tagged files needs few of them."""

from __future__ import annotations

import functools
import importlib.util

from modelexport_optimum.errors import ModelExportError

OTHER_EXPORTER = (
    "transformers' own exporter (5.13 or newer) may be able to: in Python "
    "`transformers.exporters.OnnxExporter().export(model, inputs, {'dynamic': True})"
    ".save_pretrained('DIR')`, then `modelexport-optimum tag DIR`"
)
"""The way that needs no Optimum."""

TESTED = {
    "optimum-onnx": "0.1.0",
    "optimum": "2.1.0",
    "transformers": "4.57.6",
    "torch": "2.13.0",
    "huggingface_hub": "0.36.2",
    "typer": "0.29.2",
}
"""The versions of constraints.txt, of the packages of `private_names`."""

TESTED_WITHOUT_OPTIMUM = {**TESTED, "transformers": "5.24.0"}
"""Those of constraints-transformers5.txt."""


@functools.cache
def has_optimum() -> bool:
    """Whether Optimum's exporter is installed; nothing is imported."""
    return installed_version("optimum-onnx") is not None


def installed_version(package: str) -> str | None:
    """Return the version of a package, None if it is not installed."""
    from importlib import metadata  # 30 ms, which `--help` need not pay

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def require_optimum() -> None:
    """Raise an error if Optimum's exporter is missing.

    Raises:
        ModelExportError: It is not installed.
    """
    if not has_optimum():
        raise ModelExportError(no_optimum())


def no_optimum() -> str:
    """Return the message that Optimum's exporter is missing."""
    return (
        "Optimum's exporter is not installed, but needed here: pip install "
        "'optimum-onnx[onnxruntime]' together with transformers below 4.58; without it, "
        f"{OTHER_EXPORTER}"
    )


def require_packages(*names: str) -> None:
    """Raise an error if some packages are missing; nothing is imported.

    Args:
        *names: Packages whose names for pip and for imports are the same.

    Raises:
        ModelExportError: Some are not installed.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelExportError(not_installed(*missing))


def not_installed(*names: str) -> str:
    """Return the message that packages are missing, and how to install them."""
    verb = "is" if len(names) == 1 else "are"
    return (
        f"{', '.join(names)} {verb} not installed, but needed here: pip install {' '.join(names)}"
    )


def tested(*packages: str) -> str:
    """Return the command that installs the tested versions of packages."""
    known = TESTED if has_optimum() else TESTED_WITHOUT_OPTIMUM
    versions = [f"{package}=={known[package]}" for package in packages]
    return f"pip install {' '.join(versions)} (with which this was tested)"
