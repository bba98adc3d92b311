"""Several runs at once, in real processes and threads: nothing is mixed, nothing is lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import forked_python
import numpy as np
import onnx
from onnx import TensorProto, helper

from modelexport_optimum import export
from modelexport_optimum.exporting.staging import staging_directory
from modelexport_optimum.module_trees.module_tree import Module, ModuleTree
from modelexport_optimum.tagging import htp

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelexport_optimum import ExportResult

TREE = ModuleTree({path: Module(path, f"m.{path.upper() or 'Root'}", path) for path in ("", "a")})

CHANGES = """
import sys
from pathlib import Path
from modelexport_optimum.tagging import htp
from modelexport_optimum.module_trees.module_tree import Module, ModuleTree
tree = ModuleTree({p: Module(p, f"m.{p.upper() or 'Root'}", p) for p in ("", "a")})
directory, verb = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for _ in range(10):
    htp.tag(directory, model=tree) if verb == "tag" else htp.strip(directory)
"""


def model_of_some_size(path: Path) -> None:
    weight = helper.make_tensor(
        "w", TensorProto.FLOAT, [500_000], np.zeros(500_000, np.float32).tobytes(), raw=True
    )
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    nodes = [helper.make_node("Add", ["x", "w"], ["y"], name="/a/Add")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_eight_tags_and_strips_of_one_directory(tmp_path: Path) -> None:
    directory = tmp_path / "export"
    directory.mkdir()
    for name in ("one.onnx", "two.onnx"):
        model_of_some_size(directory / name)
    (directory / "config.json").write_text('{"model_type": "bert"}')
    stripped = contents(directory)
    htp.tag(directory, model=TREE)
    tagged = contents(directory)
    assert all(stripped[name] != tagged[name] for name in stripped)

    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CHANGES, directory, verb],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for verb in ("tag", "strip") * 4
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    seen = 0
    while any(process.poll() is None for process in processes):
        for name in stripped:  # whoever reads meanwhile sees one of the two, whole
            assert (directory / name).read_bytes() in (stripped[name], tagged[name])
            seen += 1
    assert seen
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        # Whoever came second waited, and said so.
        assert set(errors.splitlines()) <= {f"waiting for another run that works on {directory}"}
    assert contents(directory) in (stripped, tagged)


def test_threads_export_one_after_another(
    model_directory: Callable[[str], Path], tmp_path: Path
) -> None:
    def run(number: int) -> ExportResult:
        name = "bert" if number % 2 else "gpt2"
        return export(model_directory(name), tmp_path / str(number), providers=["cpu"])

    for name in ("bert", "gpt2"):
        model_directory(name)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, range(4)))
    assert all(result.ok for result in results)
    for number in (2, 3):
        assert contents(tmp_path / str(number)) == contents(tmp_path / str(number - 2))
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1", "2", "3"}


def test_whoever_comes_second_to_an_output_is_told_before_the_work(
    model_directory: Callable[[str], Path], tmp_path: Path, python_server: Path
) -> None:
    """A single export, and a batch beside it, while another export is under way."""
    model = shutil.copytree(model_directory("bert"), tmp_path / "bert")
    exports = tmp_path / "exports"
    output = exports / "bert-onnx"
    (tmp_path / "models.txt").write_text(f"{model}\n")
    command = [sys.executable, "-m", "modelexport_optimum"]
    second_is_done, under_way = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        under_way.set()
        assert second_is_done.wait(300)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(export, model, output, providers=["cpu"], before_publish=wait)
        try:
            assert under_way.wait(300)
            # Nothing is imported for it that an export needs.
            single = subprocess.run(
                [*command[:1], "-X", "importtime", *command[1:], model, "-o", output],
                capture_output=True,
                text=True,
                check=False,
            )
            batch = forked_python.run(
                python_server,
                [*command[1:], "batch", tmp_path / "models.txt", "-o", exports, "--json"],
                cwd=tmp_path,
            )
            assert not output.exists()
        finally:
            second_is_done.set()
        result = first.result()
    assert single.returncode == 1
    assert f"output {output} is being written by another run" in single.stderr
    assert "torch" not in {line.rpartition("|")[2].strip() for line in single.stderr.splitlines()}
    assert batch.returncode == 1, batch.stderr
    assert "is being written by another run" in json.dumps(json.loads(batch.stdout))
    assert result.ok
    assert result.files == {path.name: path.stat().st_size for path in output.iterdir()}
    assert not list(exports.glob(".*staging*"))
    with staging_directory(output):  # and the lock was given back
        pass
