"""`report`: the page opens offline in a real browser, and shows what is in the file."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import browser
import onnx
import pytest
import typer
from onnx import TensorProto, helper
from test_compare import planted
from typer.testing import CliRunner

from modelexport_optimum import compare
from modelexport_optimum.cli import view_commands
from modelexport_optimum.errors import ModelExportError, UsageError
from modelexport_optimum.hierarchy.profile import ProfileReport, profile
from modelexport_optimum.hierarchy.report import report
from modelexport_optimum.hierarchy.tagged_model import read_tagged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from selenium.webdriver import Chrome

    from modelexport_optimum.hierarchy.comparison import Comparison


@pytest.fixture(scope="module")
def times(tagged: Callable[[str], Path]) -> ProfileReport:
    return profile(tagged("bert"), iterations=2, sequence_length=16)


@pytest.fixture(scope="module")
def page(
    tagged: Callable[[str], Path], times: ProfileReport, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return report(tagged("bert"), tmp_path_factory.mktemp("page") / "bert.html", profile=times)


@pytest.fixture(scope="module")
def broken(tagged: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("broken")
    bias = "bert.encoder.layer.0.attention.self.key.bias"
    planted(tagged("bert"), directory, "model.onnx", bias)
    return directory


@pytest.fixture(scope="module")
def errors(tagged: Callable[[str], Path], broken: Path) -> Comparison:
    return compare(tagged("bert"), broken)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chrome]:
    with browser.chromium() as driver:
        yield driver


def opened(driver: Chrome, page: Path) -> Chrome:
    """Opens the page without a network: it asks for nothing, and complains of nothing."""
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    browser.console(driver), browser.requests(driver)
    driver.get(page.as_uri())
    driver.implicitly_wait(browser.PATIENCE)
    assert driver.find_element("css selector", "#parameters-0 g.slice")
    assert browser.console(driver) == []
    assert [url for url in browser.requests(driver) if not url.startswith("data:")] == [
        page.as_uri()
    ]
    return driver


def drawn(driver: Chrome, chart: str) -> dict[str, Any]:
    """What a chart shows: the module that it is zoomed into, and the labels in it."""
    found: dict[str, Any] = driver.execute_script(
        "const chart = document.getElementById(arguments[0]);"
        "const slices = [...chart.querySelectorAll('g.slice')];"
        "return {level: chart.data[0].level ?? null,"
        " labels: slices.filter(s => s.querySelector('path').getAttribute('d'))"
        "  .map(s => s.__data__.data.data.id)}",
        chart,
    )
    return found


@pytest.mark.parametrize("chart", ["parameters-0", "time-0"])
def test_a_click_on_a_module_zooms_into_it(chromium: Chrome, page: Path, chart: str) -> None:
    driver = opened(chromium, page)
    before = drawn(driver, chart)
    assert before["level"] is None
    assert {"/", "/bert", "/cls"} <= set(before["labels"])

    for slice_ in driver.find_elements("css selector", f"#{chart} g.slice"):
        if slice_.text.startswith("encoder"):
            slice_.click()
            break

    browser.waited(driver, lambda: drawn(driver, chart)["level"] == "/bert.encoder")
    browser.waited(driver, lambda: "/cls" not in drawn(driver, chart)["labels"])
    inside = [label for label in drawn(driver, chart)["labels"] if label != "/bert.encoder"]
    assert inside
    assert all(label.startswith("/bert.encoder.") or label in ("/", "/bert") for label in inside)
    assert browser.console(driver) == []


def test_the_tree_is_searched_and_leads_to_the_nodes(
    chromium: Chrome, page: Path, tagged: Callable[[str], Path]
) -> None:
    driver = opened(chromium, page)
    file = read_tagged(tagged("bert") / "model.onnx")
    path = "bert.encoder.layer.1.attention.self.query"

    driver.find_element("css selector", ".known").send_keys("LAYER.1.attention.self.q")
    rows = driver.find_elements("css selector", "tr.module")
    assert [row.text.split()[:2] for row in rows] == [[path, "Linear"]]

    rows[0].click()
    nodes = [row.text for row in driver.find_elements("css selector", ".nodes tr")]
    assert len(nodes) == len(file.modules[path].nodes)
    for row, node in zip(nodes, file.modules[path].nodes, strict=True):
        assert row.split() == [node.name, node.op_type, path, "Linear", *node.evidence.split()]
    assert drawn(driver, "parameters-0")["level"] == f"/{path}"

    rows[0].click()
    listed = driver.find_element("css selector", ".listed").text
    assert listed == f"{min(200, len(file.nodes))} of {len(file.nodes):,} nodes"
    assert browser.console(driver) == []


def test_every_node_is_listed_with_how_it_was_placed(
    chromium: Chrome, page: Path, tagged: Callable[[str], Path]
) -> None:
    driver = opened(chromium, page)
    file = read_tagged(tagged("bert") / "model.onnx")

    more = driver.find_element("css selector", ".more")
    while more.is_displayed():
        more.click()
    rows = driver.execute_script(
        "return [...document.querySelectorAll('.nodes tr')]"
        ".map(row => [...row.cells].map(cell => cell.textContent))"
    )

    assert [(row[0], row[1], row[4]) for row in rows] == [
        (node.name, node.op_type, node.evidence) for node in file.nodes
    ]


def test_folded_modules_are_shown_when_they_are_opened(chromium: Chrome, page: Path) -> None:
    driver = opened(chromium, page)

    def shown() -> list[str]:
        rows = driver.find_elements("css selector", "tr.module")
        return [row.get_attribute("title") or "" for row in rows]

    def fold(path: str) -> None:
        driver.find_element("css selector", f"tr.module[title='{path}'] .fold").click()

    layers = {"bert.encoder.layer.0", "bert.encoder.layer.1"}
    before = shown()
    assert {"bert.encoder", *layers} <= set(before)
    fold("bert.encoder.layer.1")
    fold("bert.encoder")
    assert "bert.encoder" in shown()
    assert not layers & set(shown())
    fold("bert.encoder")
    assert layers <= set(shown())
    assert not any(path.startswith("bert.encoder.layer.1.") for path in shown())
    fold("bert.encoder.layer.1")
    assert shown() == before


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_charts_add_up(name: str, tagged: Callable[[str], Path], tmp_path: Path) -> None:
    # Weights that several modules share are drawn once.
    page = report(tagged(name), tmp_path / "page.html").read_text()

    figures = page.split("Plotly.newPlot(")[1:]
    files = sorted(tagged(name).glob("*.onnx"))
    assert len(figures) == len(files)
    for figure, file in zip(figures, files, strict=True):
        (chart,), _ = json.JSONDecoder().raw_decode(figure[figure.index("[") :])
        whole = sum(
            int(onnx.numpy_helper.to_array(tensor).size)
            for tensor in initializers(onnx.load(file).graph)
        )
        assert sum(chart["values"]) == whole
        assert len(set(chart["ids"])) == len(chart["ids"])
        assert set(chart["parents"]) <= {"", *chart["ids"]}


def initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from initializers(attribute.g)


def test_times_are_those_of_the_profile(
    tagged: Callable[[str], Path], times: ProfileReport, tmp_path: Path
) -> None:
    saved = tmp_path / "profile.json"
    saved.write_text(json.dumps({"ok": True, **times.to_dict()}))

    pages = [
        report(tagged("bert"), tmp_path / f"{index}.html", profile=given).read_text()
        for index, given in enumerate([times, saved])
    ]

    assert pages[0] == pages[1]
    figure = pages[0].split("Plotly.newPlot(")[2]
    (chart,), _ = json.JSONDecoder().raw_decode(figure[figure.index("[") :])
    kernels = times.to_dict()["files"][0]["kernels_ms"]
    assert sum(chart["values"]) == pytest.approx(kernels)


def test_errors_are_those_of_the_comparison(
    chromium: Chrome, broken: Path, errors: Comparison, tmp_path: Path
) -> None:
    saved = tmp_path / "comparison.json"
    saved.write_text(json.dumps(errors.to_dict()))
    pages = [
        report(broken, tmp_path / f"{index}.html", comparison=given)
        for index, given in enumerate([errors, saved])
    ]
    assert pages[0].read_bytes() == pages[1].read_bytes()

    driver = opened(chromium, pages[0])
    said = driver.find_element("css selector", "section").text
    assert f"differ by themselves, by more than 0.0001: {errors.culprits[0]}\n" in said
    text = driver.execute_script("return document.getElementById('data').text")
    (data,) = json.loads(text)
    assert data["tolerance"] == errors.tolerance
    shown = {row[0]: row[-2:] for row in data["modules"]}
    figures = {row.path: [row.relative, row.own_relative] for row in errors.modules}
    assert shown["bert.encoder.layer.0.attention.self.key"] == figures[errors.culprits[0]]
    assert shown == {path: figures.get(path, [None, None]) for path in shown}

    driver.find_element("css selector", ".known").send_keys("layer.0.attention.self")
    rows = driver.find_elements("css selector", "tr.module")
    wrong = {
        row.get_attribute("title"): len(row.find_elements("css selector", ".wrong")) for row in rows
    }
    inner = "bert.encoder.layer.0.attention.self"
    # The key is wrong by itself, the attention around it with it, and the query is right.
    assert (wrong[f"{inner}.key"], wrong[f"{inner}.query"]) == (2, 0)


def test_what_is_not_a_number_is_drawn_as_the_largest_error(
    broken: Path, errors: Comparison, tmp_path: Path
) -> None:
    document = errors.to_dict()
    row = next(row for row in document["modules"] if row["path"] == errors.culprits[0])
    assert row["reason"] == ""
    # What `compare --json` writes of a tensor with NaN.
    row.update(max_abs=None, relative=None, snr_db=None, cosine=0.0, own_relative=None)
    saved = tmp_path / "comparison.json"
    saved.write_text(json.dumps(document))

    page = report(broken, tmp_path / "page.html", comparison=saved).read_text()

    start = page.index('<script type="application/json" id="data">')
    (data,), _ = json.JSONDecoder().raw_decode(page[page.index("[", start) :])
    shown = {row[0]: row[-2:] for row in data["modules"]}
    assert shown[errors.culprits[0]] == [1000.0, 1000.0]


def large(path: Path, *, blocks: int, parts: int, nodes: int) -> Path:
    """A tagged file of a root with so many blocks of so many parts of so many nodes."""
    made = []
    weights = []
    value = "x"
    for block in range(blocks):
        for part in range(parts):
            scope = f"layers.{block}.parts.{part}"
            weights.append(helper.make_tensor(f"{scope}.bias", TensorProto.FLOAT, [1], [1.0]))
            for index in range(nodes):
                inputs = [value, weights[-1].name]
                value = f"{scope}/{index}"
                made.append(
                    helper.make_node(
                        "Add", inputs, [value], name=f"/{scope}/Add_{index}",
                        doc_string=f"/Root/Block.layers.{block}/Part.parts.{part}",
                    )
                )  # fmt: skip
    graph = helper.make_graph(
        made,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, [1])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"modelexport_optimum.version": "0"})
    onnx.save(model, path)
    return path


def test_large_graphs_open(chromium: Chrome, tmp_path: Path) -> None:
    file = large(tmp_path / "large.onnx", blocks=50, parts=99, nodes=20)

    driver = opened(chromium, report(file, tmp_path / "large.html"))

    assert driver.find_element("css selector", ".found").text == "5,001 modules"
    assert driver.find_element("css selector", ".listed").text == "200 of 99,000 nodes"
    driver.find_element("css selector", ".node").send_keys("layers.49.parts.98/Add_19")
    assert driver.find_element("css selector", ".listed").text == "1 of 1 nodes"
    chart = drawn(driver, "parameters-0")["labels"]
    assert len(chart) == 51


def test_names_are_text_and_no_markup(chromium: Chrome, tmp_path: Path) -> None:
    file = large(tmp_path / "<b>&{x}{{data}}.onnx", blocks=1, parts=1, nodes=1)
    model = onnx.load(file)
    model.graph.node[0].name = "</script><script>document.title = 'broken'</script>"
    model.graph.node[0].doc_string = "/Root/<img>.<i>"
    onnx.save(model, file)

    driver = opened(chromium, report(file, tmp_path / "page.html"))

    assert driver.title == "<b>&{x}{{data}}.onnx: Root"
    assert not driver.execute_script("return document.querySelector('img, i')")
    row = driver.find_element("css selector", ".nodes tr").text
    assert model.graph.node[0].name in row


def test_a_directory_has_a_section_for_each_file(
    chromium: Chrome, tagged: Callable[[str], Path], tmp_path: Path
) -> None:
    driver = opened(chromium, report(tagged("t5"), tmp_path / "t5.html"))

    titles = [title.text for title in driver.find_elements("css selector", "h2")]
    files = [file.name for file in sorted(tagged("t5").glob("*.onnx"))]
    assert titles == files
    assert files[-1] == "encoder_model.onnx"
    assert "/encoder" in drawn(driver, f"parameters-{len(files) - 1}")["labels"]
    assert "/decoder" in drawn(driver, "parameters-0")["labels"]


def run(*arguments: object) -> tuple[int, str, str]:
    app = typer.Typer()
    view_commands.register(app)
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def test_command_writes_the_page(
    tagged: Callable[[str], Path], times: ProfileReport, tmp_path: Path
) -> None:
    saved = tmp_path / "profile.json"
    saved.write_text(json.dumps(times.to_dict()))
    page = tmp_path / "page.html"

    code, out, _ = run("report", tagged("bert"), "-o", page, "--profile", saved)

    assert code == 0
    assert out.startswith(f"wrote {page} (")
    assert page.read_text().count("Plotly.newPlot(") == 2


def test_errors_are_one_line(
    tagged: Callable[[str], Path], times: ProfileReport, errors: Comparison, tmp_path: Path
) -> None:
    bert = tagged("bert")
    other = tmp_path / "other.json"
    other.write_text(json.dumps(times.to_dict()))
    compared = tmp_path / "compared.json"
    compared.write_text(json.dumps(errors.to_dict()))
    (tmp_path / "gpt2").mkdir()
    same_name = shutil.copy(tagged("gpt2") / "model.onnx", tmp_path / "gpt2")
    cases = [
        (bert, "page.onnx", None, 2, "is not a .html file"),
        (tmp_path / "none", "page.html", None, 2, "does not exist"),
        (bert, "none/page.html", None, 1, "cannot write"),
        (bert, "page.html", "none.json", 2, "cannot read"),
        (bert, "page.html", __file__, 2, "cannot read"),
        (bert, "page.html", bert / "config.json", 2, "is not what `profile --json` writes"),
        (tagged("gpt2"), "page.html", other, 2, "has times of"),
        (bert, "page.html", other, 2, "is not what `compare --json` writes", "--comparison"),
        (tagged("t5"), "page.html", compared, 2, "has figures of model.onnx", "--comparison"),
        (same_name, "page.html", compared, 2, "and the comparison BertForMaskedLM", "--comparison"),
    ]
    for path, page, saved, status, message, *option in cases:
        options = [*(option or ["--profile"]), saved] if saved else []
        code, out, err = run("report", path, "-o", tmp_path / page, *options)
        assert (code, out) == (status, ""), err
        assert message in err
        assert len(err.splitlines()) == 1
        assert not (tmp_path / page).exists()


def test_times_of_modules_that_are_not_there_are_refused(
    tagged: Callable[[str], Path], times: ProfileReport, tmp_path: Path
) -> None:
    document = times.to_dict()
    document["files"][0]["modules"][1]["module"] = "renamed"
    saved = tmp_path / "profile.json"
    saved.write_text(json.dumps(document))

    with pytest.raises(UsageError, match="has no module renamed"):
        report(tagged("bert"), tmp_path / "page.html", profile=saved)


def test_plotly_is_asked_for(
    tagged: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)

    with pytest.raises(ModelExportError, match=r"pip install 'modelexport-optimum\[report\]'"):
        report(tagged("bert"), tmp_path / "page.html")
