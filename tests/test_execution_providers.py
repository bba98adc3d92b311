"""Which execution providers there are, what one is asked for by, and what it took by module.

What needs a provider that computes is in `test_other_providers.py`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from schemas import valid
from typer.testing import CliRunner

from modelexport_optimum import compare, profile, verify
from modelexport_optimum.cli.main import app
from modelexport_optimum.errors import UsageError
from modelexport_optimum.example_inputs.dimensions import InputOptions
from modelexport_optimum.example_inputs.generate import generate
from modelexport_optimum.hierarchy.tagged_model import read_tagged
from modelexport_optimum.profiling.placement import place_nodes
from modelexport_optimum.providers.choice import (
    CPU,
    Provider,
    choose_provider,
    choose_providers,
    settings_of,
)
from modelexport_optimum.providers.listing import BUILT_IN, MISSING, PLUGIN, list_providers
from modelexport_optimum.providers.messages import log_reason
from modelexport_optimum.providers.plugins import installed_plugins
from modelexport_optimum.providers.session import (
    AssignedNode,
    Assignment,
    assigned_nodes,
    nodes_that_ran,
    open_session,
    record_assignment,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Install = Callable[[str, str], Path]
    Exported = Callable[[str], Path]

OTHER = "OtherExecutionProvider"

records = pytest.mark.skipif(
    not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"),
    reason="this ONNX Runtime keeps no record",
)

# As the packages on PyPI declare themselves.
WEBGPU = """
def get_library_path(): return "/nowhere/libgadget.so"
def get_ep_name(): return "GadgetExecutionProvider"
def get_ep_names(): return [get_ep_name()]
"""
GGML = """
import os
EP_NAME: str = "dream"
def library_path(): return os.path.join(os.path.dirname(__file__), "lib.so")
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package into this environment, as pip would: its name, and its source."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(str(site))

    def install(name: str, source: str) -> Path:
        module = name.replace("-", "_")
        (site / module).mkdir(parents=True)
        (site / module / "__init__.py").write_text(source)
        info = site / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "RECORD").write_text(f"{module}/__init__.py,,\n{info.name}/METADATA,,\n")
        monkeypatch.delitem(sys.modules, module, raising=False)
        return site / module

    return install


# --- Packages -------------------------------------------------------------------------------------


def test_packages_are_found_by_what_they_declare(install: Install) -> None:
    install("onnxruntime-ep-gadget", WEBGPU)
    folder = install("onnxruntime-dream", GGML)
    # As onnxruntime-extensions: its library is one of operators.
    install("onnxruntime-operators", "def get_library_path(): return 'x'")
    install("dreamruntime-ep-x", WEBGPU)

    found = [plugin.package for plugin in installed_plugins() if plugin.version == "1.0"]
    assert found == ["onnxruntime-dream", "onnxruntime-ep-gadget"]
    assert not {"onnxruntime_dream", "onnxruntime_ep_gadget"} & sys.modules.keys()
    assert choose_provider("Gadget", options=["a=b"]) == Provider(
        "GadgetExecutionProvider", library="/nowhere/libgadget.so", options={"a": "b"}
    )
    assert choose_provider("DREAM") == Provider("dream", library=str(folder / "lib.so"))


def test_a_package_that_does_not_work_is_named(install: Install) -> None:
    install("onnxruntime-ep-gadget", "raise OSError('no driver')\n" + WEBGPU)
    with pytest.raises(UsageError, match=r"onnxruntime-ep-gadget 1\.0 does not work .*no driver"):
        choose_provider("gadget")
    (row,) = [one for one in list_providers().providers if one.name == "onnxruntime-ep-gadget"]
    assert row.kind == PLUGIN
    assert "no driver" in row.problem


# --- Names, options, libraries --------------------------------------------------------------------


def test_options_are_for_the_provider_beside_the_cpu() -> None:
    cpu, azure = choose_providers(["cpu", "azure"], options={"a": 1})
    assert (cpu.options, azure.options) == ({}, {"a": "1"})
    (cpu,) = choose_providers(["cpu"], options=["use_arena=0"])
    assert cpu.options == {"use_arena": "0"}


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (["cuda", "tensorrt"], {"options": ["a=b"]}, "--provider-option is for one provider"),
        (["cpu"], {"options": ["ab"]}, "--provider-option ab: give KEY=VALUE"),
        (["cpu"], {"libraries": ["ab"]}, "--provider-library ab: give NAME=PATH"),
        (["cpu"], {"libraries": {"x": "/nowhere.so"}}, "there is no such file"),
        (["cpu"], {"libraries": {"x": __file__}}, "it is not used: give --provider x"),
    ],
)
def test_what_does_not_fit_is_refused(
    names: list[str], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        choose_providers(names, **given)


def test_settings_keep_what_stands_after_the_first_equals() -> None:
    assert settings_of(["a=b=c", "d="], "--x A=B") == {"a": "b=c", "d": ""}


def test_a_provider_that_is_not_there_is_refused_where_it_must_run() -> None:
    with pytest.raises(UsageError, match=r"no execution provider tensorrt: it has .*CPU"):
        choose_provider("tensorrt")


# --- Libraries that do not work -------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path: Path) -> str:
    path = tmp_path / "libbroken.so"
    path.write_text("this is no library")
    return f"broken={path}"


def test_a_broken_library_is_one_line_everywhere(
    tagged: Exported, broken: str, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["--provider", "broken", "--provider-library", broken]
    for command, status in (("profile", 1), ("compare", 2)):
        result = CliRunner().invoke(app, [command, str(tagged("bert")), *given])
        assert result.exit_code == status, result.output
    report = verify(tagged("bert"), providers=["cpu", "broken"], provider_libraries=[broken])
    cpu, other = report.providers
    assert (cpu.status, other.status, other.stage) == ("ok", "failed", "loading")
    assert "cannot load" in other.message
    assert "libbroken.so" in other.message
    assert "\n" not in other.message
    (row,) = [one for one in list_providers(libraries=[broken]).providers if one.name == "broken"]
    assert "cannot load" in row.problem


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_library_that_ends_its_process_does_not_end_ours(
    tagged: Exported, tmp_path: Path
) -> None:
    source, library = tmp_path / "crash.c", tmp_path / "libcrash.so"
    source.write_text(
        "#include <stdlib.h>\n__attribute__((constructor)) static void f(void) { abort(); }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    given = {"crash": str(library)}
    report = verify(tagged("bert"), providers=["cpu", "crash"], provider_libraries=given)
    assert [one.status for one in report.providers] == ["ok", "failed"]
    assert "its process was ended by SIGABRT" in report.providers[1].message
    (row,) = [one for one in list_providers(libraries=given).providers if one.name == "crash"]
    assert row.problem == "its process was ended by SIGABRT when it was loaded"


# --- The list -------------------------------------------------------------------------------------


def test_the_list_has_what_is_there_and_what_is_missing() -> None:
    result = CliRunner().invoke(app, ["verify", "--list-providers", "--json"])
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    valid(document, "providers")
    kinds = {row["name"]: row["kind"] for row in document["providers"]}
    assert kinds[CPU] == BUILT_IN
    assert set(kinds) >= set(onnxruntime.get_all_providers())
    missing = set(onnxruntime.get_all_providers()) - set(onnxruntime.get_available_providers())
    assert {name for name in missing if kinds[name] == MISSING} == missing
    text = CliRunner().invoke(app, ["verify", "--list-providers"]).stdout
    assert "CPUExecutionProvider" in text
    assert CliRunner().invoke(app, ["verify"]).exit_code == 2


# --- Placement ------------------------------------------------------------------------------------


def assigned(path: Path) -> tuple[AssignedNode, ...]:
    options = onnxruntime.SessionOptions()
    record_assignment(options)
    return assigned_nodes(open_session(str(path), Provider(CPU), options))


@records
@pytest.mark.parametrize("name", ["bert", "gpt2", "resnet", "t5", "swin"])
def test_every_recorded_node_is_placed(name: str, tagged: Exported) -> None:
    """Of merged decoders, too, whose nodes stand in the branches of an If."""
    for path in sorted(tagged(name).glob("*.onnx")):
        nodes = assigned(path)
        found = place_nodes(read_tagged(path), Assignment(CPU, nodes, recorded=True), {})
        assert found.node_count == len(nodes) > 0
        assert found.providers == {CPU: len(nodes)}
        assert not found.crossings
        unplaced = sum(count for _, _, count in found.unplaced)
        assert sum(sum(one.own.values()) for one in found.modules) + unplaced == len(nodes)
        assert unplaced <= len(nodes) / 50
        assert (
            found.answer() == f"{CPU} runs the whole model: {len(nodes):,} of {len(nodes):,} nodes"
        )


@records
def test_what_one_module_leaves_to_another_provider_crosses_there(tagged: Exported) -> None:
    path = tagged("bert") / "model.onnx"
    file = read_tagged(path)
    module = "bert.encoder.layer.1.intermediate.intermediate_act_fn"
    own = {node.name for node in file.modules[module].nodes}
    nodes = tuple(
        node if node.name in own else replace(node, provider=OTHER) for node in assigned(path)
    )
    feeds = generate(path, file.model.graph, InputOptions(2, 8)).arrays
    found = place_nodes(file, Assignment(OTHER, nodes, recorded=True), feeds)

    assert [one.module for one in found.fallen_back] == [module]
    assert found.answer().startswith(f"{OTHER} runs {found.providers[OTHER]} of {len(nodes)} nodes")
    assert f"; on {CPU}: {module} (" in found.answer()
    into = [one for one in found.crossings if one.target == CPU]
    back = [one for one in found.crossings if one.target == OTHER]
    assert {one.target_modules for one in into} == {(module,)}
    assert {one.source_module for one in into} == {"bert.encoder.layer.1.intermediate.dense"}
    assert [(one.source_module, one.target_modules) for one in back] == [
        (module, ("bert.encoder.layer.1.output.dense",))
    ]
    (tensor,) = back
    shape = [2, 8, onnx_width(path, "bert.encoder.layer.1.output.dense")]
    assert tensor.type == f"float32{shape}"
    assert tensor.bytes == 4 * np.prod(shape)
    assert found.crossing_bytes == sum(one.bytes or 0 for one in found.crossings)


def onnx_width(path: Path, module: str) -> int:
    """The number of columns that a Linear reads."""
    file = read_tagged(path)
    weights = [w for node in file.modules[module].nodes for w in node.weights if len(w.dims) == 2]
    return int(weights[0].dims[0])


@records
def test_an_if_that_a_provider_takes_has_its_branches_taken(tagged: Exported) -> None:
    path = tagged("t5") / "decoder_model_merged.onnx"
    (branching,) = [node for node in assigned(path) if node.op_type == "If"]
    taken = (replace(branching, provider=OTHER),)
    found = place_nodes(read_tagged(path), Assignment(OTHER, taken, recorded=True), {})
    assert found.providers == {OTHER: found.node_count}
    assert found.node_count > 200
    assert {one.module for one in found.modules} >= {"decoder.block.0.layer.0.SelfAttention.q"}


@records
def test_a_provider_that_takes_nothing_is_told_with_the_modules_that_its_words_name(
    tagged: Exported,
) -> None:
    path = tagged("resnet") / "model.onnx"
    why = "claiming nothing: 2 of 35 nodes use ops this provider lacks: MaxPool x1"
    assignment = Assignment(OTHER, assigned(path), recorded=True, reason=why)
    answer = place_nodes(read_tagged(path), assignment, {}).answer()
    assert answer.startswith(f"{OTHER} runs nothing: all ")
    assert f"run on {CPU}, kept by resnet.embedder.pooler (1 MaxPool): {why}" in answer


def test_the_nodes_that_ran_by_the_profile() -> None:
    events: list[dict[str, Any]] = [
        {"cat": "Node", "name": f"/a/Add_{end}", "args": {"op_name": "Add", "provider": provider}}
        for end in ("fence_before", "kernel_time", "kernel_time")
        for provider in ([CPU] if end == "kernel_time" else [""])
    ]
    events += [{"cat": "Session", "name": "model_run", "args": {}}]
    assert nodes_that_ran(events) == (AssignedNode(CPU, "/a/Add", "Add"),)


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (
            "2026-11-25T05:10:48.1Z  INFO backend ready\n"
            "2026-11-25T05:10:48.2Z  WARN capability: claiming nothing msg=no MaxPool\n",
            "capability: claiming nothing msg=no MaxPool",
        ),
        (
            "2026-11-22 16:39:41.8 [W:onnxruntime:Default, a.cc:1 f()] it is slow\n"
            "2026-11-25T05:10:48.2Z ERROR no device\n",
            "no device",
        ),
        ("all is well\n", ""),
    ],
)
def test_the_reason_in_a_log(log: str, reason: str) -> None:
    assert log_reason(log) == reason


def test_on_the_cpu_alone_there_is_no_placement(tagged: Exported) -> None:
    (file,) = profile(tagged("bert"), iterations=1, sequence_length=8).files
    assert file.placement is None


def test_verify_and_profile_and_compare_say_who_took_what(tagged: Exported) -> None:
    """On the provider that does nothing, where everything falls back."""
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this build of ONNX Runtime has no provider that does nothing")
    given = [str(tagged("bert")), "--provider", "azure"]
    result = CliRunner().invoke(app, ["verify", *given, "--by-module", "--json"])
    assert result.exit_code == 3
    document = json.loads(result.stdout)
    valid(document, "verify")
    (placement,) = document["placements"]
    assert placement["answer"].startswith("AzureExecutionProvider runs nothing: all ")
    result = CliRunner().invoke(app, ["profile", *given, "--sequence-length", "8", "--json"])
    document = json.loads(result.stdout)
    valid(document, "profile")
    (file,) = document["files"]
    if hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        assert file["placement"] == {**placement, "file": file["placement"]["file"]}
        with pytest.raises(Exception, match=r"takes no node of model\.onnx"):
            compare(tagged("bert"), provider="azure")
    text = CliRunner().invoke(app, ["profile", *given, "--sequence-length", "8"]).stdout
    assert "AzureExecutionProvider runs nothing" in text.splitlines()[0]


def test_options_of_a_provider_reach_its_session(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "m.onnx")
    for arena in ("0", "1"):
        options = onnxruntime.SessionOptions()
        provider = Provider(CPU, options={"use_arena": arena})
        session = open_session(str(tmp_path / "m.onnx"), provider, options)
        assert session.get_provider_options()[CPU].get("use_arena", arena) == arena
