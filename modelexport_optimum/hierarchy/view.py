"""`view()`: open a tagged export in an installed viewer. It draws nothing itself.

Model Explorer groups the nodes by module; Netron shows the tag of each node.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
from pathlib import Path

from modelexport_optimum.errors import ModelExportError, UsageError
from modelexport_optimum.hierarchy.tagged_model import read_tagged_files

VIEWERS = {"model-explorer": "model_explorer_onnx", "netron": "netron"}
"""Viewer to the Python package that it needs; the first installed one is used."""


def view(
    path: str | os.PathLike[str],
    *,
    viewer: str | None = None,
    port: int | None = None,
    browser: bool = True,
    node_data: str | os.PathLike[str] | None = None,
) -> None:
    """Run a viewer on this machine, until it is interrupted.

    Args:
        path: A tagged `.onnx` file, or a directory with any number of them; Netron opens one file.
        viewer: "model-explorer" or "netron"; by default the first one that is installed.
        port: Port of the viewer; by default a free one.
        browser: Whether to open the browser.
        node_data: A file that `compare` wrote, to colour the nodes by their error. Only Model
            Explorer shows it.

    Raises:
        UsageError: There is no such file or viewer, or the viewer cannot open several files.
        ModelExportError: A file is not tagged, or the viewer is not installed.
    """
    if node_data is not None and viewer is None:
        viewer = "model-explorer"
    name = _installed(viewer)
    if node_data is not None and name != "model-explorer":
        raise UsageError(
            f"{name} shows no node data: leave out --node-data, or take model-explorer"
        )
    if node_data is not None and not Path(node_data).is_file():
        raise UsageError(f"{node_data} does not exist: compare --node-data FILE writes it")
    files = [file.path for file in read_tagged_files(path)]
    if name == "model-explorer":
        import model_explorer

        config = model_explorer.config()
        for file in files:
            config.add_model_from_path(str(file))
        if node_data is not None:
            config.add_node_data_from_path(os.fspath(node_data))
        model_explorer.visualize_from_config(
            config,
            port=port or model_explorer.consts.DEFAULT_PORT,  # for which it takes a free one
            extensions=[VIEWERS[name]],
            no_open_in_browser=not browser,
        )
    else:
        import netron

        if len(files) > 1:
            raise UsageError(
                f"{path} has {len(files)} .onnx files and Netron opens one: "
                f"give one of them, for example {shlex.quote(str(files[0]))}"
            )
        netron.start(str(files[0]), address=("localhost", port), browse=browser)
        netron.wait()


def _installed(viewer: str | None) -> str:
    if viewer is not None and viewer not in VIEWERS:
        raise UsageError(f"there is no viewer {viewer}: give {' or '.join(VIEWERS)}")
    for name, package in VIEWERS.items():
        if viewer in (None, name) and importlib.util.find_spec(package):
            return name
    wanted = [VIEWERS[viewer]] if viewer else VIEWERS.values()
    raise ModelExportError(
        f"{viewer or 'no viewer'} is {'not ' if viewer else ''}installed: "
        f"pip install {' or '.join(package.replace('_', '-') for package in wanted)}"
    )
