"""`report`: the page opens offline in a real browser, and shows what is in the file."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import browser
import onnx
import pytest
from onnx import TensorProto, helper
from test_compare import planted
from typer.testing import CliRunner

from modelexport_optimum import compare
from modelexport_optimum.cli.main import app
from modelexport_optimum.errors import UsageError
from modelexport_optimum.hierarchy.tagged_model import read_tagged
from modelexport_optimum.profiling.profile import profile
from modelexport_optimum.reporting.report import report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from selenium.webdriver import Chrome

    from modelexport_optimum.comparing.comparison import Comparison
    from modelexport_optimum.profiling.profile_report import ProfileReport


@pytest.fixture(scope="module")
def times(tagged: Callable[[str], Path]) -> ProfileReport:
    return profile(tagged("bert"), iterations=2, sequence_length=16)


@pytest.fixture(scope="module")
def page(
    tagged: Callable[[str], Path], times: ProfileReport, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A page whose chart begins at one module, whatever took how long on a busy machine."""
    target = tmp_path_factory.mktemp("page") / "bert.html"
    return report(tagged("bert"), target, profile=by_kernels(times))


def by_kernels(times: ProfileReport) -> ProfileReport:
    """The same with 100 microseconds for each kernel."""
    (file,) = times.files
    own = {one.module: 100 * one.kernel_count for one in file.modules}

    def total(module: str) -> int:
        return sum(time for path, time in own.items() if f"{path}.".startswith(f"{module}."))

    modules = tuple(
        dataclasses.replace(
            one,
            own=own[one.module],
            total=total(one.module) if one.module else sum(own.values()),
        )
        for one in file.modules
    )
    return dataclasses.replace(times, files=(dataclasses.replace(file, modules=modules),))


@pytest.fixture(scope="module")
def broken(tagged: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("broken") / "bert-broken"
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
    assert driver.find_element("css selector", ".cell")
    assert browser.console(driver) == []
    assert [url for url in browser.requests(driver) if not url.startswith("data:")] == [
        page.as_uri()
    ]
    return driver


def drawn(driver: Chrome) -> list[str]:
    """The paths of the modules that the chart shows, the one that it is zoomed into first."""
    found: list[str] = driver.execute_script(
        "return [...document.querySelectorAll('.cell[data-path]')].map(cell => cell.dataset.path)"
    )
    return found


def measure(driver: Chrome, name: str) -> None:
    """Chooses what the chart shows."""
    buttons = driver.find_elements("css selector", "#measures button")
    next(button for button in buttons if button.text == name).click()


def data_of(page: str, name: str = "part-0-0") -> Any:
    """The data in a page."""
    start = f'<script type="application/json" id="{name}">'
    return json.JSONDecoder().raw_decode(page[page.index(start) + len(start) :])[0]


def measured(page: str, key: str, name: str = "part-0-0") -> dict[str, Any]:
    return next(one for one in data_of(page, name)["measures"] if one["key"] == key)


@pytest.mark.parametrize("name", ["Parameters", "Bytes", "Operators", "Time"])
def test_a_click_on_a_module_zooms_into_it(chromium: Chrome, page: Path, name: str) -> None:
    driver = opened(chromium, page)
    measure(driver, name)
    before = drawn(driver)
    assert {"bert", "bert.encoder", "bert.embeddings"} <= set(before)

    driver.find_element("css selector", ".cell[data-path='bert.encoder']").click()

    inside = drawn(driver)
    assert inside[0] == "bert.encoder"
    assert len(inside) > 1
    assert all(path.startswith("bert.encoder.") for path in inside[1:])
    trail = driver.find_element("css selector", "#trail").text.split()
    assert trail[-1] == "encoder"
    driver.find_element("css selector", ".cell[data-path='bert.encoder']").click()
    assert drawn(driver)[0] == "bert"
    assert browser.console(driver) == []


def test_the_keyboard_reaches_everything(chromium: Chrome, page: Path) -> None:
    from selenium.webdriver import Keys

    driver = opened(chromium, page)

    def focused(name: str) -> str:
        found: str = driver.execute_script(
            f"return document.activeElement.getAttribute('{name}') || ''"
        )
        return found

    def press(*keys: str) -> None:
        for key in keys:
            driver.switch_to.active_element.send_keys(key)

    press(Keys.TAB, Keys.TAB)
    assert focused("id") == "theme"
    press(Keys.TAB)
    assert (focused("role"), focused("aria-checked")) == ("radio", "true")
    press(Keys.ARROW_LEFT)
    assert driver.find_element("css selector", "#explained").text.startswith("Milliseconds")
    press(Keys.TAB)
    while focused("role") != "treeitem":
        press(Keys.TAB)
    top = focused("data-path")
    press(Keys.ARROW_RIGHT)
    assert focused("data-path").startswith(f"{top}.".lstrip("."))
    press(Keys.ARROW_DOWN, Keys.ENTER)
    chosen = focused("data-path")
    assert drawn(driver)[0] == chosen != top
    assert driver.find_element("css selector", "tr.chosen").get_attribute("title") == chosen
    press(Keys.ESCAPE)
    around = drawn(driver)[0]  # by the times, which are others each time, one of two depths
    assert around != chosen
    assert chosen.startswith(f"{around}.".lstrip("."))

    driver.find_element("css selector", ".known").click()
    while driver.execute_script("return !document.activeElement.closest('.modules')"):
        press(Keys.TAB)
    press(Keys.HOME, Keys.ARROW_DOWN)
    path = focused("title")
    assert focused("aria-expanded") == "true"
    press(Keys.ARROW_LEFT)
    assert (focused("title"), focused("aria-expanded")) == (path, "false")
    press(Keys.ARROW_RIGHT, Keys.ENTER)
    assert drawn(driver)[0] == path
    while driver.execute_script("return document.activeElement.className !== 'node'"):
        press(Keys.TAB)
    assert browser.console(driver) == []


def test_a_screen_reader_is_told_what_there_is(chromium: Chrome, page: Path) -> None:
    driver = opened(chromium, page)
    driver.execute_cdp_cmd("Accessibility.enable", {})
    nodes = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    told = {
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
    }
    roles = {role for role, _ in told}
    assert {"radiogroup", "radio", "tree", "treeitem", "treegrid", "table", "heading"} <= roles
    assert {name for role, name in told if role in ("button", "radio", "treeitem", "searchbox")}
    assert not [role for role, name in told if role in ("button", "radio", "treeitem") and not name]
    assert any(
        role == "treeitem" and name.startswith("bert.encoder, BertEncoder, ") for role, name in told
    )


SCREENSHOTS = Path(__file__).parent / "screenshots"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_themes_are_drawn(
    chromium: Chrome, page: Path, theme: str, tmp_path: Path, broken: Path, errors: Comparison,
    tagged: Callable[[str], Path],
) -> None:  # fmt: skip
    """Leaves a picture of each page in tests/screenshots, to be looked at."""
    both = report(tagged("bert"), tmp_path / "both.html", against=broken, comparison=errors)
    SCREENSHOTS.mkdir(exist_ok=True)
    seen = []
    for name, shown in (("report", page), ("side-by-side", both)):
        driver = opened(chromium, shown)
        button = driver.find_element("css selector", "#theme")
        while button.text != f"Theme: {theme}":
            button.click()
        driver.save_screenshot(str(SCREENSHOTS / f"{name}-{theme}.png"))
        seen.append(
            driver.execute_script(
                "const style = getComputedStyle(document.body);"
                "return [style.backgroundColor, style.color].map(colour =>"
                " colour.match(/\\d+/g).slice(0, 3).reduce((sum, one) => sum + Number(one), 0))"
            )
        )
    for background, text in seen:
        assert (background > text + 300) if theme == "light" else (background + 300 < text)


def test_nothing_runs_out_of_its_frame(chromium: Chrome, page: Path) -> None:
    driver = opened(chromium, page)
    outside = driver.execute_script(
        "const frame = document.querySelector('.chart').getBoundingClientRect();"
        "return [...document.querySelectorAll('.cell')].filter(cell => {"
        " const box = cell.getBoundingClientRect();"
        " return box.right > frame.right + 1 || box.bottom > frame.bottom + 1; }).length"
    )
    assert outside == 0
    assert driver.execute_script(
        "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )


def test_a_class_has_one_colour_in_every_chart(
    chromium: Chrome, tagged: Callable[[str], Path], tmp_path: Path
) -> None:
    driver = opened(chromium, report(tagged("t5"), tmp_path / "t5.html"))
    colours: dict[str, set[str]] = {}
    for tab in range(len(driver.find_elements("css selector", "#files button"))):
        driver.find_elements("css selector", "#files button")[tab].click()
        for name in ("Parameters", "Operators"):
            measure(driver, name)
            cells = driver.execute_script(
                "return [...document.querySelectorAll('.cell[data-type]')].map(cell =>"
                " [cell.dataset.type, getComputedStyle(cell).backgroundColor])"
            )
            for kind, colour in cells:
                colours.setdefault(kind, set()).add(colour)
    assert len(colours) > 5
    assert all(len(found) == 1 for found in colours.values())
    assert len({colour for found in colours.values() for colour in found}) == len(colours)


def test_two_exports_stand_side_by_side(
    chromium: Chrome, tagged: Callable[[str], Path], broken: Path, errors: Comparison,
    tmp_path: Path,
) -> None:  # fmt: skip
    page = report(tagged("bert"), tmp_path / "both.html", against=broken, comparison=errors)
    driver = opened(chromium, page)

    figures = driver.find_elements("css selector", "figure")
    assert [figure.text.split("\n")[0] for figure in figures] == data_of(page.read_text(), "head")[
        "sides"
    ]
    measure(driver, "Own error")
    assert len(driver.find_elements("css selector", "figure")) == 1  # one side alone has errors
    measure(driver, "Operators")
    driver.find_element("css selector", ".known").send_keys("embeddings.LayerNorm")
    (row,) = driver.find_elements("css selector", "tr.module")
    cells = [cell.text for cell in row.find_elements("css selector", "td.number")][:3]
    assert cells[0] == cells[1]
    assert cells[2] == "="


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
    assert drawn(driver)[0] == path

    driver.find_element("css selector", "tr.module").click()
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

    for number, file in enumerate(sorted(tagged(name).glob("*.onnx"))):
        whole = sum(
            int(onnx.numpy_helper.to_array(tensor).size)
            for tensor in initializers(onnx.load(file).graph)
        )
        chart = measured(page, "parameters", f"part-{number}-0")
        assert sum(chart["own"]) + chart["rest"] == chart["whole"] == whole
        nodes = measured(page, "operators", f"part-{number}-0")
        assert sum(nodes["own"]) + nodes["rest"] == len(read_tagged(file).nodes)


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
    chart = measured(pages[0], "time")
    kernels = times.to_dict()["files"][0]["kernels_ms"]
    assert sum(chart["own"]) + chart["rest"] == pytest.approx(kernels)


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
    said = driver.find_element("css selector", "#facts").text
    assert f"differ by themselves, by more than 0.0001: {errors.culprits[0]}" in said
    assert str(broken.parent) not in pages[0].read_text()
    assert data_of(pages[0].read_text())["tolerance"] == errors.tolerance
    shown = errors_in(pages[0].read_text())
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

    assert errors_in(page)[errors.culprits[0]] == [1000.0, 1000.0]


def errors_in(page: str) -> dict[str, list[float | None]]:
    """The error and the own error of each module, as the page has them."""
    columns = [measured(page, key)["total"] for key in ("error", "own")]
    return {
        path: list(values)
        for path, *values in zip(data_of(page)["modules"]["path"], *columns, strict=True)
    }


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
    file = large(tmp_path / "large.onnx", blocks=50, parts=99, nodes=6)

    page = report(file, tmp_path / "large.html")
    driver = opened(chromium, page)
    assert page.stat().st_size < 3_000_000

    assert driver.find_element("css selector", ".found").text == "5,001 modules"
    assert driver.find_element("css selector", ".listed").text == "200 of 29,700 nodes"
    driver.find_element("css selector", ".node").send_keys("layers.49.parts.98/Add_5")
    assert driver.find_element("css selector", ".listed").text == "1 of 1 nodes"
    assert len(drawn(driver)) == 51
    assert driver.find_elements("css selector", ".cell.thin") == []  # each has its label
    driver.find_element("css selector", ".known").send_keys("parts")
    assert driver.find_element("css selector", ".found").text == "4,950 modules"
    assert len(driver.find_elements("css selector", "tr.module")) == 200


def test_a_page_is_as_narrow_as_a_phone(chromium: Chrome, page: Path) -> None:
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        driver = opened(chromium, page)
        wide = driver.execute_script("return document.documentElement.scrollWidth")
    finally:
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide == 400


def test_a_page_names_no_directory_of_the_source(tmp_path: Path) -> None:
    file = large(tmp_path / "large.onnx", blocks=1, parts=1, nodes=1)
    model = onnx.load(file)
    for source, named in (("/home/me/models/mine", "mine"), ("org/name", "org/name")):
        metadata = {"modelexport_optimum.version": "0", "modelexport_optimum.source": source}
        helper.set_model_props(model, metadata)
        onnx.save(model, file)
        page = report(file, tmp_path / "page.html", overwrite=True).read_text()
        assert f"Root; {named} (modelexport-optimum 0)" in page
        assert "/home/me" not in page


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


def test_the_files_of_a_directory_are_tabs(
    chromium: Chrome, tagged: Callable[[str], Path], tmp_path: Path
) -> None:
    driver = opened(chromium, report(tagged("t5"), tmp_path / "t5.html"))

    tabs = driver.find_elements("css selector", "[role='tab']")
    assert [tab.text for tab in tabs] == [file.name for file in sorted(tagged("t5").glob("*.onnx"))]
    # The chart begins where the model branches: all of this file is in the decoder.
    assert drawn(driver)[0] == "decoder"
    tabs[-1].click()
    assert drawn(driver)[0] == "encoder"
    assert browser.console(driver) == []


def run(*arguments: object) -> tuple[int, str, str]:
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
    assert measured(page.read_text(), "time")["whole"] > 0


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
        (bert, "page.html", bert / "config.json", 2, "is not the output of `profile --json`"),
        (tagged("gpt2"), "page.html", other, 2, "has only the times of"),
        (bert, "page.html", other, 2, "is not the output of `compare --json`", "--comparison"),
        (
            tagged("t5"),
            "page.html",
            compared,
            2,
            "has only the figures of model.onnx",
            "--comparison",
        ),
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
