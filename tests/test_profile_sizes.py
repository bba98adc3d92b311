"""`profile` with several sizes of the inputs side by side, and the memory of each module."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from schemas import valid
from typer.testing import CliRunner

from modelexport_optimum import inspect, profile
from modelexport_optimum.cli.main import app
from modelexport_optimum.cli.profile_tables import PROFILE_FIELDS
from modelexport_optimum.errors import UsageError
from modelexport_optimum.profiling.profile_growth import side_by_side
from modelexport_optimum.profiling.profile_log import kernels_of, runs_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Exported = Callable[[str], Path]


# --- Memory ---------------------------------------------------------------------------------------


def test_activations_are_the_sizes_of_what_the_kernels_give(
    tagged: Exported, tmp_path: Path
) -> None:
    """Every value of the graph that ONNX Runtime builds is made an output, and measured."""
    export = tagged("bert")
    (file,) = profile(export, iterations=2, batch_size=2, sequence_length=8).files
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "built.onnx")
    cpu = ["CPUExecutionProvider"]
    onnxruntime.InferenceSession(export / "model.onnx", options, providers=cpu)
    built = onnx.load(tmp_path / "built.onnx")
    names = [name for node in built.graph.node for name in node.output if name]
    del built.graph.output[:]
    built.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(built.SerializeToString(), options, providers=cpu)
    feeds = {value.name: np.ones((2, 8), np.int64) for value in session.get_inputs()}
    sizes = [value.nbytes for value in session.run(names, feeds)]

    assert file.activations == sum(sizes)
    assert file.modules[0].activations == file.activations
    assert sum(module.own_activations for module in file.modules) == file.activations


def test_memory_of_modules(tagged: Exported) -> None:
    export = tagged("bert")
    (file,) = profile(export, iterations=2, batch_size=2, sequence_length=8).files
    weights = {row.module.path: row.total.bytes for row in inspect(export)[0].modules}
    assert {m.module: m.parameters for m in file.modules}.items() <= weights.items()
    assert file.parameters == weights[""]
    root = file.modules[0]
    assert root.peak == file.peak
    assert file.peak is not None
    assert 0 < file.peak < file.activations
    for module in file.modules:
        assert module.peak is not None
        assert module.own_activations <= module.activations
        # Its own largest tensor was in use while it ran, and what is inside it, too.
        inside = [m.peak for m in file.modules if m.module.startswith(f"{module.module}.")]
        assert module.peak >= max((peak for peak in inside if peak), default=0)


def event(name: str, start: int, length: int, **arguments: Any) -> dict[str, Any]:
    found = {"op_name": "Op", "node_index": "0", "provider": "CPU", **arguments}
    return {
        "cat": "Node", "name": f"{name}_kernel_time", "tid": 1, "ts": start, "dur": length,
        "args": {key: str(value) for key, value in found.items()},
    }  # fmt: skip


def memory(now: int, delta: int, peak: int) -> dict[str, int]:
    return {"mem_bytes_in_use": now, "mem_in_use_delta": delta, "mem_in_use_peak": peak}


def test_memory_in_the_log_of_the_profiler() -> None:
    log = [
        {"cat": "Session", "name": "model_run", "ts": 0, "dur": 100},
        event("a", 1, 4, output_size=30, **memory(1030, 30, 1030)),
        # It had 90 while it ran, and gave most of it back.
        event("b", 10, 4, output_size=20, **memory(1050, 20, 1090)),
        event("c", 20, 4, output_size=10, **memory(1010, 10, 1090)),
        # What an If gives, the kernels of its branch have made.
        event("if", 30, 20, output_size=8, **memory(1018, 8, 1090)),
        event("then", 35, 5, output_size=8, **memory(1018, 8, 1090)),
    ]
    found = {kernel.name: kernel for kernel in kernels_of(log, runs_of(log))}
    assert {name: kernel.in_use for name, kernel in found.items()} == {
        "a": 30, "b": 90, "c": 10, "if": 18, "then": 18,
    }  # fmt: skip
    assert {name: kernel.given for name, kernel in found.items()} == {
        "a": 30, "b": 20, "c": 10, "if": 0, "then": 8,
    }  # fmt: skip
    assert {name: kernel.time for name, kernel in found.items()} == {
        "a": 4, "b": 4, "c": 4, "if": 15, "then": 5,
    }  # fmt: skip


def test_an_onnxruntime_that_tells_no_memory() -> None:
    log = [
        {"cat": "Session", "name": "model_run", "ts": 0, "dur": 100},
        event("a", 1, 4, output_size=30),
    ]
    assert [kernel.in_use for kernel in kernels_of(log, runs_of(log))] == [None]


# --- Several sizes --------------------------------------------------------------------------------


def test_each_batch_size_runs_with_each_number_of_tokens(tagged: Exported) -> None:
    report = profile(tagged("bert"), iterations=1, batch_size=[1, 2], sequence_length=[8, 16])
    shapes = [file.inputs["input_ids"] for file in report.files]
    assert shapes == ["int64[1, 8]", "int64[1, 16]", "int64[2, 8]", "int64[2, 16]"]
    (growth,) = report.growth
    assert [tuple(size.values()) for size in growth.sizes] == [(1, 8), (1, 16), (2, 8), (2, 16)]
    times = [file.milliseconds(file.modules[0].total) for file in report.files]
    assert growth.modules[0].ms == tuple(times)
    assert growth.powers.keys() == {"batch_size", "sequence_length"}
    assert profile(tagged("bert"), iterations=1, batch_size=2).growth == ()


def test_the_parts_of_an_encoder_decoder_run_with_each_size(tagged: Exported) -> None:
    report = profile(tagged("t5"), iterations=1, sequence_length=[4, 8])
    assert len({growth.name for growth in report.growth}) == len(report.growth) > 3
    for file in report.files:
        assert file.sequence_length in (4, 8)
        if "encoder_sequence_length" in file.sizes:
            assert file.sizes["encoder_sequence_length"].size == file.sequence_length


def test_powers(tagged: Exported) -> None:
    """Times that grow with the batch, and with the square of the tokens."""
    (file,) = profile(tagged("bert"), iterations=1, sequence_length=8).files
    profiles = []
    for batch, tokens in [(1, 8), (1, 16), (4, 8), (4, 16)]:
        modules = tuple(
            replace(module, total=1000 * batch * tokens**2) for module in file.modules[1:]
        )
        profiles.append(
            replace(
                file,
                batch_size=batch,
                sequence_length=tokens,
                runs=1000 * batch,
                modules=(file.modules[0], *modules),
            )
        )
    growth = side_by_side(profiles)
    assert growth.powers == pytest.approx({"batch_size": 1, "sequence_length": 0}, abs=1e-9)
    for module in growth.modules[1:]:
        assert module.powers == pytest.approx({"batch_size": 1, "sequence_length": 2})
    only_batch = side_by_side([profiles[0], profiles[2]])
    assert only_batch.powers == pytest.approx({"batch_size": 1})
    # A module of which no kernel ran with one of the sizes has no power.
    shorter = replace(profiles[0], modules=file.modules[:1])
    assert side_by_side([shorter, profiles[2]]).modules[1].powers == {}


def test_command(tagged: Exported) -> None:
    sizes = ["--iterations", "1", "--batch-size", "1,2", "--sequence-length", "8,16"]
    run = ["profile", str(tagged("bert")), *sizes]
    printed = CliRunner().invoke(app, run)
    assert printed.exit_code == 0, printed.output
    head = next(line for line in printed.stdout.splitlines() if line.startswith("module "))
    assert [part.strip() for part in head.split("  ") if part.strip()] == [
        "module", "class", "1 x 8", "1 x 16", "2 x 8", "2 x 16", "grows with",
    ]  # fmt: skip
    document = json.loads(CliRunner().invoke(app, [*run, "--json"]).stdout)
    valid(document, "profile")
    assert len(document["growth"][0]["sizes"]) == 4
    rows = list(csv.DictReader(io.StringIO(CliRunner().invoke(app, [*run, "--csv"]).stdout)))
    assert tuple(rows[0]) == PROFILE_FIELDS
    assert {(row["batch_size"], row["sequence_length"]) for row in rows} == {
        ("1", "8"), ("1", "16"), ("2", "8"), ("2", "16"),
    }  # fmt: skip
    modules = len(document["files"][0]["modules"])
    assert len(rows) == 4 * modules
    assert set(PROFILE_FIELDS) <= {"branch", *document["files"][0], *rows[0]}


@pytest.mark.parametrize("sizes", ["0", "x", "1,", "1,-2", ""])
def test_what_is_no_size_is_an_error(sizes: str, tagged: Exported) -> None:
    done = CliRunner().invoke(app, ["profile", str(tagged("bert")), "--batch-size", sizes])
    assert done.exit_code == 2
    assert "is not a number above 0" in " ".join(done.stderr.replace("│", "").split())


def test_real_inputs_have_their_own_sizes(tagged: Exported) -> None:
    with pytest.raises(UsageError, match="leave out --batch-size"):
        profile(tagged("bert"), inputs="real.npz", batch_size=2)
