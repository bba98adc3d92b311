"""`view`, and what other people's viewers make of our files."""

from __future__ import annotations

import importlib.util
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING

import browser
import onnx
import pytest
from typer.testing import CliRunner

from modelexport_optimum import compare
from modelexport_optimum.cli.main import app
from modelexport_optimum.hierarchy.tagged_model import read_tagged
from modelexport_optimum.tagging import htp

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelexport_optimum.hierarchy.tagged_model import TaggedModule, TaggedNode

LAYERS = r"layer count\s+(\d+)"
"""As Model Explorer says how many modules it shows."""

# What starts the program: it serves until it is interrupted.
PROGRAM = "from modelexport_optimum.cli.main import app; app()"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("bert", "model.onnx"),
        ("resnet", "model.onnx"),
        ("sentence-transformers", "model.onnx"),
        ("t5", "encoder_model.onnx"),
        ("t5", "decoder_model_merged.onnx"),
    ],
)
def test_model_explorer_groups_the_nodes_by_module(
    name: str, file: str, tagged: Callable[[str], Path]
) -> None:
    from model_explorer_onnx.main import ONNXAdapter

    ours = read_tagged(tagged(name) / file)
    (graph, *_) = ONNXAdapter().convert(str(ours.path), {})["graphs"]

    groups = {node.id: node.namespace.split("/") for node in graph.nodes}
    found = set()
    for node in ours.nodes:
        # The adapter puts a constant to the node that reads it, and an If among what is in it.
        if node.op_type in ("Constant", "If"):
            continue
        condition, _, branch = node.graph.rpartition(".")
        group = groups[f"{condition}/{branch}/{node.name}" if branch else node.name]
        assert group[0] == graph.id
        # A nested graph's groups stand inside the If's: `If <name>`, `then_branch`.
        modules = group[group.index(branch) + 1 :] if branch else group[1:]
        assert modules == [f"{m.path}: {qualified(node, m)}" for m in chain(node.module)]
        found.update(modules)
    # Every module that owns nodes, or holds such a module, is a group, and nothing else is.
    assert {module.partition(": ")[0] for module in found} == {
        around.path
        for module in ours.modules.values()
        if any(node.op_type not in ("Constant", "If") for node in module.nodes)
        for around in chain(module)
    }


def chain(module: TaggedModule | None) -> list[TaggedModule]:
    return [] if module is None else [*chain(module.parent), module]


def qualified(node: TaggedNode, module: TaggedModule) -> str:
    metadata = dict(node.node.metadata)
    (name,) = (
        part.partition(": ")[2]
        for part in metadata["namespace"].split("/")
        if part.partition(": ")[0] == module.path
    )
    assert name.rpartition(".")[2] == module.module_class
    return name


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class Served:
    """`view` as it runs, from its first answer until it is interrupted."""

    def __init__(self, path: Path, viewer: str, *options: str) -> None:
        for _ in range(3):  # something else may take the port first
            self.port = free_port()
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-c", PROGRAM, "view", str(path)),
                    *("--viewer", viewer, "--port", str(self.port), "--no-browser", *options),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            assert self.process.stdout is not None
            for line in self.process.stdout:
                if f"http://localhost:{self.port}" in line:
                    self.url = line[line.index("http://") :].strip()
                    return
            self.process.wait()
        raise AssertionError(f"{viewer} serves nothing")

    def __enter__(self) -> str:
        return self.url

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=300)
        assert self.process.returncode == 0


def test_model_explorer_opens_the_file_with_the_figures_of_its_nodes(
    tagged: Callable[[str], Path], tmp_path: Path
) -> None:
    data = tmp_path / "data.json"
    compare(tagged("bert"), tagged("bert"), node_data=data)
    with (
        browser.chromium(webgl=True) as driver,
        Served(tagged("bert"), "model-explorer", "--node-data", str(data)) as url,
    ):
        driver.get(url)
        body = driver.find_element("tag name", "body")
        browser.waited(driver, lambda: "main_graph" in body.text)
        browser.waited(driver, lambda: re.search(LAYERS, body.text) is not None)
        assert re.findall(LAYERS, body.text)[0] == str(drawn_layers(tagged("bert") / "model.onnx"))
        browser.waited(driver, lambda: "own error" in body.text)


def drawn_layers(file: Path) -> int:
    """How many layers Model Explorer draws: a layer of one operation is drawn as the operation."""
    from model_explorer_onnx.main import ONNXAdapter

    (graph, *_) = ONNXAdapter().convert(str(file), {})["graphs"]
    operations = Counter(
        layer
        for node in graph.nodes
        for layer in accumulate(node.namespace.split("/"), "{}/{}".format)
        if node.namespace
    )
    assert len(operations) == 1 + sum(
        any(node.op_type != "Constant" for node in module.walk_nodes())
        for module in read_tagged(file).modules.values()
    )  # the graph, and each module that has nodes
    return sum(count > 1 for count in operations.values())


def test_netron_shows_the_tag_on_every_node(tagged: Callable[[str], Path]) -> None:
    file = tagged("bert") / "model.onnx"
    nodes = {node.name: node for node in read_tagged(file).nodes}
    # It shows a constant in the node that reads it, if that is one alone.
    drawn = {name for name, node in nodes.items() if node.op_type != "Constant"}
    with browser.chromium() as chromium, Served(file, "netron") as url:
        with urllib.request.urlopen(f"{url}/data/model.onnx") as answer:
            assert answer.read() == file.read_bytes()
        chromium.set_script_timeout(browser.PATIENCE)
        chromium.get(f"{url}/icon.png")
        # Otherwise it asks first, over the network, whether the country wants cookies asked for.
        chromium.add_cookie({"name": "consent", "value": "1"})
        chromium.get(url)
        # Nodes are transparent until they have their places.
        browser.waited(
            chromium,
            lambda: chromium.execute_script(
                """
                const nodes = [...document.querySelectorAll('g.node[id^="node-name-"]')];
                return nodes.length >= arguments[0] && nodes.every(node => !node.style.opacity);
                """,
                len(drawn),
            ),
        )
        shown = chromium.execute_async_script(
            """
            const [patience, done] = arguments;
            (async () => {
              const end = Date.now() + patience * 900;
              const shown = {};
              for (const node of document.querySelectorAll('g.node[id^="node-name-"]')) {
                node.querySelector('.node-item').dispatchEvent(
                  new MouseEvent('click', { bubbles: true }));
                // The sidebar is drawn when the browser finds time for it.
                const name = node.id.slice('node-name-'.length);
                do {
                  await new Promise(resolve => setTimeout(resolve, name in shown && 10));
                  const sidebar = document.getElementById('sidebar-content');
                  shown[name] = (sidebar?.innerText ?? '').split('\\n');
                } while (!shown[name].includes(name) && Date.now() < end);
              }
              done(shown);
            })();
            """,
            browser.PATIENCE,
        )
    assert drawn <= shown.keys() <= nodes.keys()
    for name, lines in shown.items():
        assert name in lines
        assert nodes[name].tag in lines


def test_netron_opens_one_file(tagged: Callable[[str], Path]) -> None:
    code, err = run("view", tagged("t5"), "--viewer", "netron")

    assert code == 2
    assert "Netron opens one" in err
    assert len(err.splitlines()) == 1


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    return result.exit_code, result.stderr


def test_errors_are_one_line(
    tagged: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = onnx.load(tagged("bert") / "model.onnx")
    onnx.save(plain, tmp_path / "plain.onnx")
    htp.strip(tmp_path / "plain.onnx")
    cases = [
        (tagged("bert"), ["--viewer", "paint"], 2, "there is no viewer paint"),
        (tmp_path / "none", [], 2, "does not exist"),
        (tmp_path / "plain.onnx", [], 1, "is not tagged"),
    ]
    for path, options, status, message in cases:
        code, err = run("view", path, *options)
        assert code == status
        assert message in err
        assert len(err.splitlines()) == 1

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for options, message in (
        ([], "no viewer is installed: pip install model-explorer-onnx or netron"),
        (["--viewer", "netron"], "netron is not installed: pip install netron"),
    ):
        code, err = run("view", tagged("bert"), *options)
        assert code == 1
        assert message in err


def test_the_first_viewer_that_is_installed_is_taken(
    tagged: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import netron

    started = []
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: object() if name == "netron" else None
    )
    monkeypatch.setattr(netron, "start", lambda file, **_: started.append(file))

    assert run("view", tagged("bert")) == (0, "")
    assert started == [str(tagged("bert") / "model.onnx")]
