"""`report()`: one HTML file to share, with the modules of a tagged export as charts and tables.

The numbers are those of `inspect` and, if given, of `profile` and `compare`; the charts are
plotly's. The page needs no network, and holds no weights. Its looks and its script are in
`report.html`.
"""

from __future__ import annotations

import html
import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.filesize import decimal

from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.hierarchy.inspect import amounts
from modelexport_optimum.hierarchy.report_figures import read_errors, read_times
from modelexport_optimum.hierarchy.tagged_model import elements, nbytes, read_tagged_files
from modelexport_optimum.system.atomic_write import replacing
from modelexport_optimum.system.output_files import check_output_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelexport_optimum.hierarchy.comparison import Comparison
    from modelexport_optimum.hierarchy.inspect import Amount
    from modelexport_optimum.hierarchy.profile import ProfileReport
    from modelexport_optimum.hierarchy.report_figures import Errors, Times
    from modelexport_optimum.hierarchy.tagged_model import TaggedFile, TaggedModule

# Levels of modules that a chart shows at once, or fewer if these are more modules than can
# be drawn in a moment and told apart. A click on a module shows those inside it.
_LEVELS = 6
_DRAWN = 1000

# Keys of the model's own metadata that say of what it was made.
_RECORD = "modelexport_optimum."
_RECORDED = ("source", "version", "torch", "transformers", "optimum")

_SECTION = """
<section>
<h2>{name}</h2>
{summary}
{charts}
<h3>Modules</h3>
<p><input class="known" type="search" placeholder="Search modules by path or class"
 aria-label="Search modules"><span class="found dim"></span>
 <span class="dim">— click one to zoom into it and list its nodes; again to leave</span></p>
<div class="scroll"><table><thead><tr><th>module<th>class<th class="number">operators
<th class="number">parameters<th class="number">bytes<th class="number">share</tr></thead>
<tbody class="modules"></tbody></table></div>
<h3>How every node was placed</h3>
<p><input class="node" type="search" placeholder="Search nodes, operators, modules, evidence"
 aria-label="Search nodes"><span class="listed dim"></span></p>
<div class="scroll"><table><thead><tr><th>node<th>operator<th>module<th>class<th>placed by
<th>nested graph</tr></thead><tbody class="nodes"></tbody></table>
<button class="more">show more</button></div>
</section>
"""


def report(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    profile: ProfileReport | str | os.PathLike[str] | None = None,
    comparison: Comparison | str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an HTML page about a tagged export.

    Args:
        path: A tagged `.onnx` file, or a directory with any number of them.
        output: The `.html` file to write.
        profile: Times to show: what `profile` returned, or the file that its `--json` wrote.
        comparison: Errors to show: what `compare` returned, or the file that its `--json` wrote.
        overwrite: Replace a file that is there.

    Returns:
        The file that was written.

    Raises:
        UsageError: There is no such file, the output is there already, or the profile or the
            comparison is not one of these files.
        ModelExportError: A file is not tagged, the page cannot be written, or plotly is missing.
    """
    target = Path(output)
    check_output_file(target, (".html", ".htm"), overwrite=overwrite)
    plotly = _plotly()
    files = read_tagged_files(path)
    nothing = [None] * len(files)
    times = read_times(profile, files) if profile is not None else nothing
    errors = read_errors(comparison, files) if comparison is not None else nothing
    sections = []
    data = []
    for number, (file, time, found) in enumerate(zip(files, times, errors, strict=True)):
        counted = amounts(file)
        charts = [_parameters_chart(file, counted, f"parameters-{number}")]
        if time is not None:
            charts.append(_time_chart(file, time, f"time-{number}"))
        name = file.path.relative_to(path) if Path(path).is_dir() else file.path.name
        sections.append(
            _SECTION.format(
                name=html.escape(str(name)),
                summary=_summary(file, time, found),
                charts="\n".join(charts),
            )
        )
        data.append(_data(file, counted, time, found))
    page = _filled(
        Path(__file__).with_name("report.html").read_text("utf-8"),
        title=html.escape(f"{Path(path).resolve().name}: {files[0].root.module_class}"),
        record=html.escape(_record(files[0])),
        plotly=plotly,
        sections="\n".join(sections),
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    )
    with replacing(target) as descriptor, os.fdopen(descriptor, "wb", closefd=False) as page_file:
        page_file.write(page.encode())
    return target


def _plotly() -> str:
    """The whole of plotly.js, which goes into the page."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ModelExportError(
            "report needs plotly: pip install 'modelexport-optimum[report]'"
        ) from error
    script: str = get_plotlyjs()
    return script


def _filled(page: str, **values: str) -> str:
    """Put values into their places; what looks like a place inside a value is left."""
    first, *parts = page.split("{{")
    filled = [first]
    for part in parts:
        name, _, rest = part.partition("}}")
        filled += [values[name], rest]
    return "".join(filled)


def _record(file: TaggedFile) -> str:
    metadata = {key: value for key, value, *_ in file.model.metadata}
    record = {name: metadata.get(_RECORD + name) for name in _RECORDED}
    source = record.pop("source")
    record["modelexport-optimum"] = record.pop("version")
    versions = ", ".join(f"{name} {value}" for name, value in record.items() if value)
    return f"{source} ({versions})" if source else versions


def _summary(file: TaggedFile, time: Times | None, found: Errors | None) -> str:
    placed = Counter(node.evidence or "not placed" for node in file.nodes)
    lines = [
        f"{len(file.nodes):,} nodes in {len(file.modules):,} modules; "
        f"{sum(map(elements, file.initializers)):,} parameters, "
        f"{decimal(sum(map(nbytes, file.initializers)))}; opset {file.model.opsets.get('', 0)}",
        "Nodes placed by " + ", ".join(f"{name} {n:,}" for name, n in placed.most_common()),
    ]
    if time is not None:
        inputs = ", ".join(f"{value['name']} {value['type']}" for value in time["inputs"])
        lines.append(
            f"{time['run_ms']:.3f} ms a run, of which {time['kernels_ms']:.3f} ms in kernels on "
            f"{', '.join(row['provider'] for row in time['providers'])}; mean of "
            f"{time['iterations']} run{'s' * (time['iterations'] > 1)} of {inputs}"
        )
    if found is not None:
        accused = ", ".join(path or "(root)" for path in found.culprits) or "none"
        lines.append(
            f"{found.other} against {found.reference}: differ by themselves, by more than "
            f"{found.tolerance:g}: {accused}"
        )
    return "\n".join(f"<p>{html.escape(line)}</p>" for line in lines)


def _data(
    file: TaggedFile,
    counted: Mapping[str, tuple[Amount, Amount]],
    time: Times | None,
    found: Errors | None,
) -> dict[str, Any]:
    """What the page's script lists: columns of numbers, which are a fifth of the size of rows."""
    size = sum(map(nbytes, file.initializers))
    milliseconds = {row["module"]: row["ms"] for row in time["modules"]} if time else {}
    place = {path: index for index, path in enumerate(file.modules)}
    columns = {
        "op_type": [node.op_type for node in file.nodes],
        "evidence": [node.evidence for node in file.nodes],
        "graph": [node.graph for node in file.nodes],
    }
    lists = {name: list(dict.fromkeys(column)) for name, column in columns.items()}
    numbers = {name: {text: n for n, text in enumerate(texts)} for name, texts in lists.items()}
    return {
        "timed": time is not None,
        "tolerance": found.tolerance if found is not None else None,
        "modules": [
            [
                module.path,
                module.name,
                module.module_class,
                module.depth,
                counted[module.path][1].node_count,
                counted[module.path][1].parameters,
                decimal(counted[module.path][1].bytes),
                counted[module.path][1].bytes / size if size else 0,
                milliseconds.get(module.path, 0),
                found.error.get(module.path) if found is not None else None,
                found.own.get(module.path) if found is not None else None,
            ]
            for module in file.modules.values()
        ],
        "nodes": {
            "name": [node.name for node in file.nodes],
            "module": [place[n.module.path] if n.module is not None else -1 for n in file.nodes],
            **{name: [numbers[name][text] for text in column] for name, column in columns.items()},
        },
        "lists": lists,
    }


class _Slice(NamedTuple):
    """One module in a chart, with its own part of what is drawn."""

    key: str
    around: str
    label: str
    kind: str
    value: float
    text: str


def _slice(module: TaggedModule, value: float, text: str) -> _Slice:
    # A path after a slash: plotly takes an empty parent for none.
    key = f"/{module.path}"
    around = f"/{module.parent.path}" if module.parent is not None else ""
    # plotly reads tags and links in a text.
    path, name = html.escape(module.path or "(root)"), html.escape(module.module_class)
    text = f"<b>{path}</b><br>{name}<br>{text}"
    return _Slice(key, around, html.escape(module.name), module.module_class, value, text)


def _parameters_chart(
    file: TaggedFile, counted: Mapping[str, tuple[Amount, Amount]], name: str
) -> str:
    """Parameters by module; a weight that several modules read stands in the first of them."""
    drawn: set[int] = set()
    slices = []
    for module in file.modules.values():
        weights = {id(t): t for node in module.nodes for t in node.weights if id(t) not in drawn}
        drawn |= weights.keys()
        total = counted[module.path][1]
        text = f"{total.parameters:,} parameters<br>{decimal(total.bytes)}"
        slices.append(_slice(module, sum(map(elements, weights.values())), text))
    rest = sum(elements(tensor) for tensor in file.initializers if id(tensor) not in drawn)
    if rest:
        slices.append(_Slice("unread", "/", "(no module)", "", rest, f"{rest:,} parameters"))
    return _chart("Parameters by module", slices, file, name)


def _time_chart(file: TaggedFile, time: Times, name: str) -> str:
    """The kernels' time by module, and that of the kernels without one."""
    slices = [
        _slice(
            file.modules[row["module"]],
            row["own_ms"],
            f"{row['ms']:.3f} ms, {row['own_ms']:.3f} ms in its own kernels",
        )
        for row in time["modules"]
    ]
    for row in time["unplaced"]:
        label = html.escape(f"(not placed) {row['op_type']}")
        text = f"{row['ms']:.3f} ms in {row['kernel_count']} kernels that ONNX Runtime has added"
        slices.append(_Slice(label, "/", label, "", row["ms"], text))
    return _chart("Time by module", slices, file, name)


def _chart(title: str, slices: Sequence[_Slice], file: TaggedFile, name: str) -> str:
    import plotly.colors
    import plotly.graph_objects as go
    import plotly.io

    palette = plotly.colors.qualitative.Set3
    classes = dict.fromkeys(module.module_class for module in file.modules.values())
    colours = {kind: palette[index % len(palette)] for index, kind in enumerate(classes)}
    depths = sorted(module.depth for module in file.modules.values())
    levels = depths[_DRAWN] if len(depths) > _DRAWN else _LEVELS
    figure = go.Figure(
        go.Icicle(
            ids=[item.key for item in slices],
            parents=[item.around for item in slices],
            labels=[item.label for item in slices],
            values=[item.value for item in slices],
            text=[item.text for item in slices],
            marker={"colors": [colours.get(item.kind, "lightgrey") for item in slices]},
            texttemplate=["%{label}", *["%{label}  %{percentRoot:.1%}"] * (len(slices) - 1)],
            hovertemplate="%{text}<br>%{percentRoot:.1%}<extra></extra>",
            branchvalues="remainder",
            maxdepth=max(2, min(levels, _LEVELS)),
            tiling={"pad": 1},
        )
    )
    figure.update_layout(
        template="none",
        margin={"t": 24, "l": 0, "r": 0, "b": 0},
        uniformtext={"minsize": 11, "mode": "hide"},
    )
    chart = plotly.io.to_html(
        figure,
        include_plotlyjs=False,
        full_html=False,
        div_id=name,
        config={"displayModeBar": False, "responsive": True},
    )
    return f'<h3>{title}</h3>\n<div class="chart">{chart}</div>'
