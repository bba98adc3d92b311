"""`profile`: the times are ONNX Runtime's own, and stand in the right modules."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from modelexport_optimum.cli.main import app
from modelexport_optimum.errors import ModelExportError, UsageError
from modelexport_optimum.example_inputs.dimensions import InputOptions
from modelexport_optimum.example_inputs.generate import generate
from modelexport_optimum.hierarchy.tagged_model import read_tagged
from modelexport_optimum.onnx_file.reader import read_model
from modelexport_optimum.profiling.node_placement import Places
from modelexport_optimum.profiling.profile import profile
from modelexport_optimum.profiling.profile_log import WARM_UP
from modelexport_optimum.tagging import htp

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelexport_optimum.profiling.profile_result import FileProfile

# The models of the zoo are tiny, with few positions.
SHORT = 16


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT whose modules take times that differ by more than what disturbs them."""
    from optimum.exporters.onnx import onnx_export_from_model
    from transformers import BertConfig, BertForSequenceClassification

    path = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024,
        vocab_size=2000, max_position_embeddings=256,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    onnx_export_from_model(model, path, task="text-classification", do_validation=False)
    htp.tag(path)
    return path


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, Any]]]:
    """What ONNX Runtime's profiler wrote, one log for each session."""
    kept: list[list[dict[str, Any]]] = []
    end = onnxruntime.InferenceSession.end_profiling

    def keep(session: onnxruntime.InferenceSession) -> str:
        path: str = end(session)
        kept.append(json.loads(Path(path).read_bytes()))
        return path

    monkeypatch.setattr(onnxruntime.InferenceSession, "end_profiling", keep)
    return kept


@pytest.mark.parametrize("name", ["bert", "gpt2", "resnet", "t5", "sentence-transformers"])
def test_times_add_up_to_those_of_the_profiler(
    name: str, tagged: Callable[[str], Path], logs: list[list[dict[str, Any]]]
) -> None:
    report = profile(tagged(name), iterations=4, sequence_length=SHORT)

    assert len(report.files) == len(logs) > 0
    for file, log in zip(report.files, logs, strict=True):
        runs = [event for event in log if event["name"] == "model_run"]
        assert len(runs) == WARM_UP + 4
        warm = runs[WARM_UP]["ts"]
        outer = {node.name for node in onnx.load(file.file).graph.node if node.op_type == "If"}
        kernels = [
            event
            for event in log
            if event["cat"] == "Node" and event["ts"] >= warm
            # An If of a merged decoder is timed with what runs in its branch.
            if not outer or event["name"].removesuffix("_kernel_time") in outer
        ]
        times = sum(event["dur"] for event in kernels)
        assert file.kernels == times
        assert sum(m.own for m in file.modules) + sum(t for t, _ in file.unplaced.values()) == times
        assert sum(file.providers.values()) == times
        assert times <= file.runs == sum(run["dur"] for run in runs[WARM_UP:])
        ran = sum(m.kernel_count for m in file.modules) + sum(n for _, n in file.unplaced.values())
        if not outer:
            assert ran * 4 == len(kernels)
        assert_tree(file)


def assert_tree(file: FileProfile) -> None:
    """Each module after the one around it, slower ones first, with the times of what is inside."""
    around: list[tuple[int, int]] = []  # depth, and what its last child took
    inside: dict[int, list[int]] = {}
    for module in file.modules:
        del around[module.depth :]
        assert len(around) == module.depth
        if around:
            parent, slower = around[-1]
            assert module.total <= slower
            around[-1] = (parent, module.total)
            inside[parent].append(module.total)
        around.append((id(module), module.total))
        inside[id(module)] = []
    for module in file.modules:
        assert module.total == module.own + sum(inside[id(module)])


def optimized(path: Path, file: Path) -> Path:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return path


def test_fused_nodes_are_in_the_module_around_what_was_fused(bert: Path, tmp_path: Path) -> None:
    file = read_tagged(bert / "model.onnx")
    built = read_model(optimized(tmp_path / "optimized.onnx", file.path))
    places = Places(file, built)

    classes: dict[str, set[str]] = {}
    for node in built.graph.nodes:
        module = places.module(node.name, node.op_type)
        assert module is not None, node.name
        classes.setdefault(node.op_type, set()).add(module.module_class)
    assert classes["LayerNormalization"] == {"LayerNorm"}
    # Of the bias of intermediate.dense and of the activation beside it.
    assert classes["BiasGelu"] == {"BertIntermediate"}
    # Of pooler.dense and pooler.activation.
    assert classes["FusedGemm"] == {"BertPooler"}


def test_blocked_convolutions_are_placed_and_what_is_added_is_not(
    tagged: Callable[[str], Path], tmp_path: Path
) -> None:
    file = read_tagged(tagged("resnet") / "model.onnx")
    built = read_model(optimized(tmp_path / "optimized.onnx", file.path))
    places = Places(file, built)

    values = {value for node in file.nodes for value in node.node.outputs}
    convolutions = set()
    for node in built.graph.nodes:
        module = places.module(node.name, node.op_type)
        if node.op_type in ("Conv", "FusedConv"):
            assert module is not None
            convolutions.add(module.module_class)
        elif module is None:
            assert not values.intersection(node.outputs)
    # The layer where its activation is fused in, the convolution alone where it has none.
    assert convolutions == {"ResNetConvLayer", "Conv2d"}


def test_two_runs_agree_on_the_order_of_the_heaviest_modules(bert: Path) -> None:
    # Other programs take the processor away for milliseconds, as long as some modules take:
    # modules are compared whose times differ twofold, and a disturbed pair is run again.
    for _ in range(10):
        first, second = (times(profile(bert, iterations=40).files[0]) for _ in range(2))
        heaviest = list(first)[:8]
        pairs = [(a, b) for a in heaviest for b in heaviest if first[a] > 2 * first[b]]
        swapped = [(a, b) for a, b in pairs if second[a] <= second[b]]
        if len(pairs) >= 5 and not swapped:
            break
    assert len(pairs) >= 5
    assert not swapped


def times(file: FileProfile) -> dict[str, int]:
    return {path: time for path, _, _, time in file.repeated()}


def test_repeated_modules_are_added_up(bert: Path) -> None:
    file = profile(bert, iterations=2, sequence_length=SHORT).files[0]

    count = {path: count for path, _, count, _ in file.repeated()}
    assert count["bert.encoder.layer.*.intermediate.dense"] == 4
    assert sum(times(file).values()) == sum(module.own for module in file.modules)


def test_real_inputs_are_run(tagged: Callable[[str], Path], tmp_path: Path) -> None:
    arrays = {
        name: np.ones((3, 5), np.int64)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    np.savez(tmp_path / "real.npz", **arrays)

    file = profile(tagged("bert"), iterations=1, inputs=tmp_path / "real.npz").files[0]

    assert file.inputs == dict.fromkeys(arrays, "int64[3, 5]")


def test_made_up_inputs_select_rows_that_exist(tagged: Callable[[str], Path]) -> None:
    file = read_tagged(tagged("bert") / "model.onnx")
    arrays = generate(file.path, file.model.graph, InputOptions(64, SHORT)).arrays

    assert {array.shape for array in arrays.values()} == {(64, SHORT)}
    rows = onnx.numpy_helper.to_array
    weights = {t.name: rows(t).shape[0] for t in onnx.load(file.path).graph.initializer}
    words = weights["bert.embeddings.word_embeddings.weight"]
    assert arrays["input_ids"].max() in range(words // 2, words)
    assert set(arrays["token_type_ids"].flat) == {0, 1}
    assert set(arrays["attention_mask"].flat) == {1}


def small(path: Path, shape: list[int | str | None], elem_type: int = TensorProto.FLOAT) -> Path:
    """A tagged file of one node, whose input has that shape."""
    node = helper.make_node("Identity", ["x"], ["y"], doc_string="/Small")
    graph = helper.make_graph(
        [node],
        "small",
        [helper.make_tensor_value_info("x", elem_type, shape)],
        [helper.make_tensor_value_info("y", elem_type, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"modelexport_optimum.version": "0"})
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("dim", ["bins", None])
def test_a_size_that_the_graph_does_not_tell_is_asked_for(dim: str | None, tmp_path: Path) -> None:
    file = small(tmp_path / "small.onnx", ["batch_size", dim])

    with pytest.raises(UsageError, match="input x: give --size"):
        profile(file)


def test_sizes_are_of_the_names_that_they_are_given_for(tmp_path: Path) -> None:
    shape: list[int | str | None] = ["bins", "past_sequence_length + sequence_length + 1", 3]
    file = small(tmp_path / "small.onnx", shape)

    found = profile(file, iterations=1, sequence_length=4, sizes={"bins": 2}).files[0]

    assert found.inputs == {"x": "float32[2, 9, 3]"}
    # The one node has no name, and is found all the same.
    assert [module.kernel_count for module in found.modules] == [1]


@pytest.mark.parametrize(
    ("config", "side"), [(None, 64), ('{"image_size": 48}', 48), ("{}", 64), ("{", 64)]
)
def test_pictures_are_of_the_size_that_the_config_tells(
    config: str | None, side: int, tmp_path: Path
) -> None:
    file = small(tmp_path / "small.onnx", ["batch_size", 3, "height", "width"])
    if config is not None:
        (tmp_path / "config.json").write_text(config)

    arrays = generate(file, read_model(file).graph, InputOptions(2, 4)).arrays

    assert arrays["x"].shape == (2, 3, side, side)


def test_provider_is_named_as_it_ran(tagged: Callable[[str], Path]) -> None:
    # The CPU wheel offers this provider, which takes no node of an ordinary model.
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no AzureExecutionProvider")

    file = profile(tagged("bert"), provider="azure", iterations=1, sequence_length=SHORT).files[0]

    assert list(file.providers) == ["CPUExecutionProvider"]


def test_silent_fallback_is_an_error(
    tagged: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A fault that only a GPU's broken libraries cause.
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])

    with pytest.raises(ModelExportError, match="uses CPUExecutionProvider, not CUDA"):
        profile(tagged("bert"), provider="cuda", iterations=1)


def test_graph_that_cannot_be_saved_is_placed_by_names(
    tagged: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A fault that only providers cause that compile parts of the graph, as TensorRT does.
    session = onnxruntime.InferenceSession

    def start(path: str, options: Any, **kwargs: Any) -> onnxruntime.InferenceSession:
        if options.optimized_model_filepath:
            raise RuntimeError("Unable to serialize model as it contains compiled nodes.")
        return session(path, options, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    file = profile(tagged("bert"), iterations=1, sequence_length=SHORT).files[0]

    assert file.modules
    assert "BiasGelu" in file.unplaced  # its name is ONNX Runtime's


def test_full_log_is_an_error(
    tagged: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A real one has a million events and takes a gigabyte.
    (tmp_path / "log").write_text("[]")
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "end_profiling", lambda _: str(tmp_path / "log")
    )

    with pytest.raises(ModelExportError, match="fewer --iterations"):
        profile(tagged("bert"), iterations=1, sequence_length=SHORT)


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def test_command_prints_the_tree(tagged: Callable[[str], Path]) -> None:
    code, out, _ = run("profile", tagged("resnet"), "--iterations", 2, "--depth", 1)

    assert code == 0
    lines = out.splitlines()
    assert "ms per run" in lines[0]
    assert any(line.startswith("├─ resnet") for line in lines)
    assert not any("encoder " in line for line in lines)
    assert any(line.startswith("(not placed) ") for line in lines)
    assert any("resnet.encoder.stages.*.layers.*.layer.*" in line for line in lines)


def test_command_prints_one_json_document(tagged: Callable[[str], Path]) -> None:
    code, out, _ = run(
        "profile", tagged("bert"), "--iterations", 2, "--sequence-length", 8, "--batch-size", 2,
        "--json",
    )  # fmt: skip

    assert code == 0
    (file,) = json.loads(out)["files"]
    assert {"name": "input_ids", "type": "int64[2, 8]"} in file["inputs"]
    assert file["modules"][0]["class"] == "BertForMaskedLM"
    own = sum(module["own_ms"] for module in file["modules"])
    assert own + sum(row["ms"] for row in file["unplaced"]) == pytest.approx(file["kernels_ms"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--provider", "quantum"], 2, "provider 'quantum' is not known to ONNX Runtime"),
        (["--sequence-length", "2000"], 1, "give sizes that the model takes"),
        (["--inputs", "missing.npz"], 2, "cannot read missing.npz"),
        (["--inputs", __file__], 2, "as a .npz file"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], code: int, message: str, tagged: Callable[[str], Path]
) -> None:
    status, out, err = run("profile", tagged("bert"), *arguments)

    assert (status, out) == (code, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_one_array_is_no_file_of_inputs(tagged: Callable[[str], Path], tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.ones((1, 4), np.int64))

    with pytest.raises(UsageError, match=r"write it with numpy\.savez"):
        profile(tagged("bert"), inputs=tmp_path / "one.npy")


def test_missing_input_is_named(tagged: Callable[[str], Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", input_ids=np.ones((1, 4), np.int64))

    with pytest.raises(UsageError, match="has no array attention_mask"):
        profile(tagged("bert"), inputs=tmp_path / "some.npz")


def test_neither_torch_nor_transformers_is_imported(tagged: Callable[[str], Path]) -> None:
    code = (
        "import sys; from modelexport_optimum.profiling.profile import profile; "
        f"profile({str(tagged('bert'))!r}, iterations=1, sequence_length=8); "
        "sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["clip", "roberta", "vit", "bart", "gpt2", "wav2vec2", "layoutlm"])
def test_profile_needs_no_options(name: str, tagged: Callable[[str], Path]) -> None:
    found = profile(tagged(name), iterations=1).files

    assert all(file.modules and file.sizes for file in found)


def test_a_decoder_runs_on_what_the_encoder_gave(tagged: Callable[[str], Path]) -> None:
    found = profile(tagged("t5"), iterations=1).files

    assert found[0].file.name == "encoder_model.onnx"
    merged = [file for file in found if file.branch]
    assert [file.branch for file in merged] == [
        {"use_cache_branch": False},
        {"use_cache_branch": True},
    ]
    encoded = found[0].sizes["encoder_sequence_length"].size
    for file in found[1:]:
        assert file.sizes["encoder_sequence_length"].size == encoded
        assert "given" in file.sizes["encoder_sequence_length"].source
    assert merged[1].inputs["input_ids"] == "int64[1, 1]"
