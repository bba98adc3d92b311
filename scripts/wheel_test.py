"""`make test-wheel`: what a plain installation exports, without extras and without this checkout.

Builds the wheel, installs it into a fresh environment, and exports a text, an image, a speech
and a SentencePiece model there, tiny ones with random weights, made by that environment. Each
must have all its files, and every check must be ok.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("bert", "vit", "wav2vec2", "opus-mt")

# Run in the new environment: one process, since importing PyTorch takes longest.
EXPORTS = """
import json, sys
from pathlib import Path
sys.path.append({tests!r})
import zoo
from modelexport_optimum import export

rows = {{row.name: row for row in (*zoo.ARCHITECTURES, zoo.OPUS_MT)}}
results = {{}}
for name in {models!r}:
    zoo.build(rows[name], Path(name))
    result = export(name, f"{{name}}-onnx", task=rows[name].task, providers=["cpu"])
    source = sorted(path.name for path in Path(name).iterdir())
    found = {{"source": source, "node_count": result.tags.node_count, "paths": list(result.files)}}
    results[name] = {{**result.to_dict(), **found}}
print(json.dumps(results))
"""

# What a source has that an export has no use for: its weights.
WEIGHTS = {"model.safetensors"}


def main() -> None:
    """Run the test, and exit with 1 if an export is not whole."""
    with tempfile.TemporaryDirectory() as folder:
        results = export_all(Path(folder))
    problems = [f"{name}: {problem}" for name, found in results.items() for problem in wrong(found)]
    for name, found in results.items():
        print(f"{name}: {found['node_count']} nodes; {', '.join(sorted(found['paths']))}")
    for problem in problems:
        print(f"failed: {problem}")
    print(
        f"{len(results) - len({p.partition(':')[0] for p in problems})} of {len(results)} are whole"
    )
    sys.exit(bool(problems or set(results) != set(MODELS)))


def export_all(work: Path) -> dict[str, dict]:
    """Install the wheel in a new environment, and export the models there."""
    python = plain_environment(work)
    code = EXPORTS.format(tests=str(ROOT / "tests"), models=MODELS)
    results: dict[str, dict] = json.loads(run(work, python, "-c", code).splitlines()[-1])
    return results


def plain_environment(work: Path) -> Path:
    """Install the wheel without extras in a new environment, and return its Python."""
    run(work, sys.executable, "-m", "venv", "plain")
    python = work / "plain" / "bin" / "python"
    # Built from a copy, so that nothing is left in the checkout.
    copy = work / "checkout"
    shutil.copytree(ROOT / "modelexport_optimum", copy / "modelexport_optimum")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    pip = (python, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(work, *pip, "wheel", "--no-deps", "--wheel-dir", "dist", copy)
    (wheel,) = (work / "dist").glob("*.whl")
    run(work, *pip, "install", "--constraint", ROOT / "constraints.txt", wheel)
    return python


def run(work: Path, *command: object) -> str:
    """Run a command in a directory, and return what it prints."""
    # The environment of `make` is not to be seen by the new one.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(part) for part in command], cwd=work, env=environment, check=True,
        stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip


def wrong(found: dict) -> list[str]:
    """Return what is wrong with an export, a line each."""
    problems = [f"warning: {warning}" for warning in found["warnings"]]
    problems += [
        f"{check['name']} is {check['status']}: {check['message']}"
        for check in (*found["verification"]["checks"], *found["verification"]["providers"])
        if check["status"] != "ok"
    ]
    if found["comparison"]["status"] != "ok":
        problems.append(f"PyTorch: {found['comparison']['message']}")
    missing = set(found["source"]) - WEIGHTS - set(found["paths"])
    return [*problems, *(f"{name} is missing" for name in sorted(missing))]


if __name__ == "__main__":
    main()
