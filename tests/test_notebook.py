"""docs/notebook.md, run in a kernel, and what results show there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jupytext
import nbclient
import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

PAGE = Path(__file__).parent.parent / "docs" / "notebook.md"


@pytest.fixture(scope="module")
def shown(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What each cell that shows a result shows, by its last line's first word."""
    place = tmp_path_factory.mktemp("notebook")
    (place / "demo").mkdir()
    (place / "demo" / "all-MiniLM-L6-v2").symlink_to(sample)
    notebook: Any = jupytext.read(PAGE)
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(place)}}
    )
    client.execute()
    found = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output["output_type"] == "execute_result":
                (last,) = cell["source"].splitlines()[-1:]
                found[last] = output["data"]["text/html"]
    return found


def test_every_result_shows_itself(shown: Mapping[str, str]) -> None:
    pages = {re.match(r"\w+", last)[0]: page for last, page in shown.items()}  # type: ignore[index]
    assert pages.keys() == {"result", "inspect", "profile", "compare", "diff", "verify"}
    for page in shown.values():
        assert "<table>" in page
        assert not re.search(r"<script|https?:|<link|<img|\son\w+=", page)
        assert len(page) < 60_000
    assert ">CPUExecutionProvider</td><td class='ok'>ok</td>" in pages["verify"]
    assert ">PyTorch</td><td class='ok'>ok</td>" in pages["result"]
    assert ">524</td>" in pages["result"]
    assert "<div class='ok'>no module differs</div>" in pages["compare"]
    assert "class='map'" in pages["profile"]
    assert "encoder.layer.0" in shown['inspect("minilm-onnx", modules=["encoder.layer.0"])']


def test_the_largest_module_has_the_largest_box(shown: Mapping[str, str]) -> None:
    boxes = [
        (name, float(wide) * float(high))
        for name, wide, high in re.findall(
            r"<div title='(.*?)\n.*?width:(.*?)%;height:(.*?)%",
            shown['inspect("minilm-onnx")'],
            re.DOTALL,
        )
    ]
    largest, area = max(boxes, key=lambda box: box[1])
    assert largest == "embeddings.word_embeddings"
    assert area / 100**2 == pytest.approx(11_720_448 / 22_565_376, abs=0.005)
    assert sum(area for _, area in boxes) / 100**2 == pytest.approx(1, abs=0.01)
