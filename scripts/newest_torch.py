"""`make test-newest-torch`: the tests of exports, with the newest PyTorch that Optimum works with.

In an environment of its own, with the versions of constraints.txt but for those that
constraints-newest-torch.txt has. Where pip would take a CUDA build, 6 GB with its libraries, as
PyPI has it for Linux on x86-64, nothing is installed, and this part is not run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv" / "newest-torch"
NEWEST = ROOT / "constraints-newest-torch.txt"
TESTS = ("test_zoo.py", "test_export.py", "test_verify.py", "test_compare.py")
NEEDED = (
    ".[sentence-transformers,diffusers]", "hypothesis", "jsonschema", "onnxscript", "onnxslim",
    "pytest", "pytest-xdist",
)  # fmt: skip
"""The package, and what these tests import besides."""


def main() -> None:
    """Install what is missing, run the tests, and exit with their status."""
    scripts = sysconfig.get_path("scripts", "venv", {"base": str(ENVIRONMENT)})
    python = Path(scripts) / ("python.exe" if os.name == "nt" else "python")
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    (pinned,) = re.findall(r"^torch==\S+", NEWEST.read_text(), flags=re.MULTILINE)
    report = pip(python, "--dry-run", "--ignore-installed", "--report", "-", pinned)
    cuda = cuda_packages(json.loads(report))
    if cuda:
        print(
            f"not run: the tests with {pinned}, of which pip takes a CUDA build here "
            f"(with {len(cuda)} packages such as {cuda[0]})"
        )
        return
    constraints = ENVIRONMENT / "constraints.txt"
    constraints.write_text(joined(ROOT / "constraints.txt", NEWEST))
    pip(python, "--constraint", str(constraints), "--editable", *NEEDED)
    tests = [f"tests/{name}" for name in TESTS]
    how = ("-n", "auto", "--maxprocesses", "4")
    command = [str(python), "-m", "pytest", *how, *(sys.argv[1:] or tests)]
    sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)


def pip(python: Path, *arguments: str) -> str:
    """Run pip install in the environment, and return what it prints."""
    command = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def cuda_packages(report: dict[str, Any]) -> list[str]:
    """Return the packages of NVIDIA's that pip would install, by its report."""
    names = (entry["metadata"]["name"] for entry in report["install"])
    return sorted(name for name in names if name.startswith("nvidia-"))


def joined(constraints: Path, others: Path) -> str:
    """Return the lines of constraints, but for the packages that the others have."""
    instead = others.read_text()
    named = set(re.findall(r"^([\w-]+)==", instead, flags=re.MULTILINE))
    lines = constraints.read_text().splitlines()
    kept = [line for line in lines if line.partition("==")[0] not in named]
    return "\n".join([*kept, instead])


if __name__ == "__main__":
    main()
