"""`make test-wheel`: what a plain installation exports, without extras and without this checkout.

Builds the wheel, installs it into a fresh environment, and exports a text, an image, a speech
and a SentencePiece model there, tiny ones with random weights, made by that environment. Each
must have all its files, and every check must be ok.

Then installs it for reading alone, without its dependencies (docs/versions.md): what reads tags
must work on the text model's export, and every other command must say in one line what is missing.
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

READERS = ("filelock", "onnx", "rich", "typer")

# Run where these packages are, in this order: the command, its status, and a part of what
# it prints; of a command that fails, all of it.
READING = (
    ("inspect bert-onnx --depth 2", 0, "BertForMaskedLM"),
    ("diff bert-onnx bert-onnx", 0, "are the same"),
    ("extract bert-onnx --module bert.encoder.layer.0 -o layer.onnx", 0, "BertLayer"),
    ("report bert-onnx -o report.html", 0, "wrote report.html"),
    ("tag bert-onnx", 0, "222"),
    ("view bert-onnx", 1, "no viewer is installed: pip install model-explorer-onnx or netron"),
    ("profile bert-onnx", 1, "{onnxruntime}"),
    ("compare bert-onnx layer.onnx", 2, "{onnxruntime}"),
    ("verify --list-providers", 1, "{onnxruntime}"),
    (
        "verify bert-onnx",
        1,
        "onnxruntime, transformers, torch are not installed, but needed here: pip install "
        "onnxruntime transformers torch",
    ),
    ("export bert -o again", 1, "{optimum}"),
    ("bert", 1, "{optimum}"),
    ("batch models.txt", 1, "{optimum}"),
    ("strip bert-onnx", 0, "stripped bert-onnx/model.onnx"),
    (
        "tag bert-onnx",
        1,
        "transformers, torch are not installed, but needed here: pip install transformers torch",
    ),
)
MISSING = {
    "onnxruntime": "onnxruntime is not installed, but needed here: pip install onnxruntime",
    "optimum": "Optimum's exporter is not installed, but needed here: pip install "
    "'optimum-onnx[onnxruntime]' together with transformers below 4.58; without it, transformers' "
    "own "
    "exporter (5.13 or newer) may be able to: in Python `transformers.exporters.OnnxExporter()"
    ".export(model, inputs, {'dynamic': True}).save_pretrained('DIR')`, then "
    "`modelexport-optimum tag DIR`",
}

# What a source has that an export has no use for: its weights.
WEIGHTS = {"model.safetensors"}


def main() -> None:
    """Run the test, and exit with 1 if an export is not whole or reading does not work."""
    with tempfile.TemporaryDirectory() as folder:
        results = export_all(Path(folder))
        unread = read_alone(Path(folder), "bert-onnx", results["bert"]["node_count"])
    problems = [f"{name}: {problem}" for name, found in results.items() for problem in wrong(found)]
    for name, found in results.items():
        print(f"{name}: {found['node_count']} nodes; {', '.join(sorted(found['paths']))}")
    for problem in (*problems, *unread):
        print(f"failed: {problem}")
    print(
        f"{len(results) - len({p.partition(':')[0] for p in problems})} of {len(results)} are "
        f"whole; beside {', '.join(READERS)} alone {len(READING) + 1 - len(unread)} of "
        f"{len(READING) + 1} commands do what they must"
    )
    sys.exit(bool(problems or unread or set(results) != set(MODELS)))


def export_all(work: Path) -> dict[str, dict]:
    """Install the wheel in a new environment, and export the models there."""
    python = plain_environment(work)
    code = EXPORTS.format(tests=str(ROOT / "tests"), models=MODELS)
    results: dict[str, dict] = json.loads(run(work, python, "-c", code).splitlines()[-1])
    return results


def plain_environment(work: Path) -> Path:
    """Install the wheel without extras in a new environment, and return its Python."""
    python, pip = environment(work, "plain")
    # Built from a copy, so that nothing is left in the checkout.
    copy = work / "checkout"
    shutil.copytree(ROOT / "modelexport_optimum", copy / "modelexport_optimum")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    run(work, *pip, "wheel", "--no-deps", "--wheel-dir", "dist", copy)
    (wheel,) = (work / "dist").glob("*.whl")
    run(work, *pip, "install", "--constraint", ROOT / "constraints.txt", wheel)
    return python


def read_alone(work: Path, export: str, nodes: int) -> list[str]:
    """Install the wheel for reading alone, and return what does not work as it must there."""
    python, pip = environment(work, "reading")
    (wheel,) = (work / "dist").glob("*.whl")
    run(work, *pip, "install", "--constraint", ROOT / "constraints.txt", *READERS)
    run(work, *pip, "install", "--no-deps", wheel)
    (work / "models.txt").write_text("bert\n")
    code = f"import modelexport_optimum as m; print(len(list(m.read_hierarchy({export!r}))))"
    found = run(work, python, "-c", code).strip()
    problems = [] if found == str(nodes) else [f"read_hierarchy: {found} nodes, not {nodes}"]
    for command, status, part in READING:
        ended = finished(work, python.with_name("modelexport-optimum"), *command.split())
        wanted = part.format(**MISSING)
        as_wanted = ended.stderr == f"error: {wanted}\n" if status else wanted in ended.stdout
        if ended.returncode != status or not as_wanted:
            problems.append(f"{command}: {ended.returncode}, {ended.stdout}{ended.stderr}")
    return problems


def environment(work: Path, name: str) -> tuple[Path, tuple[object, ...]]:
    """Make a new environment; return its Python, and pip in it."""
    run(work, sys.executable, "-m", "venv", name)
    python = work / name / "bin" / "python"
    return python, (python, "-m", "pip", "--quiet", "--disable-pip-version-check")


def run(work: Path, *command: object) -> str:
    """Run a command in a directory, and return what it prints."""
    return finished(work, *command, check=True).stdout


def finished(work: Path, *command: object, check: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command in a directory; its errors are shown where it must end well."""
    # The environment of `make` is not to be seen by the new one.
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(part) for part in command], cwd=work, env=variables, check=check,
        stdout=subprocess.PIPE, stderr=None if check else subprocess.PIPE, text=True,
    )  # fmt: skip


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
