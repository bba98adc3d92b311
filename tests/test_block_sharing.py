"""Weights stay where they are in a file system's blocks, which the new file then shares."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from disks import BLOCK_SHARING, mounted_image
from onnx import TensorProto, helper

from modelexport_optimum.onnx_file import block_sharing, rewriter
from modelexport_optimum.tagging import htp
from modelexport_optimum.tags import carriers

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 4096
WEIGHTS = np.random.default_rng(0).standard_normal(2**20, np.float32).tobytes()  # 4 MB


def saved(path: Path, *, weights: bytes = WEIGHTS, text: str = "") -> Path:
    """A model of two nodes and one tensor, as an exporter writes it: the nodes, then the tensor."""
    node = helper.make_node("Add", ["x", "a.w"], ["h"], name="/a/Add")
    last = helper.make_node("Neg", ["h"], ["y"], name="/b/Neg", doc_string=text)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [len(weights) // 4]) for name in "xy"
    ]
    tensor = TensorProto(name="a.w", dims=[len(weights) // 4], data_type=1, raw_data=weights)
    graph = helper.make_graph([node, last], "main", ends[:1], ends[1:], [tensor])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path.write_bytes(made.SerializeToString())
    return path


def padding_of(path: Path) -> list[str]:
    return [
        entry.value
        for node in onnx.load(path).graph.node
        for entry in node.metadata_props
        if entry.key == carriers.PADDING
    ]


@pytest.mark.parametrize("kind", BLOCK_SHARING)
def test_weights_are_shared_and_not_copied(kind: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted_image(disk, kind):
        path = saved(disk / "model.onnx")
        before = path.read_bytes()
        # The old file stays in use, so that what the new one does not share takes room.
        (disk / "old.onnx").hardlink_to(path)

        def used() -> int:
            subprocess.run(["sync", "--file-system", disk], check=True)
            status = os.statvfs(disk)
            return (status.f_blocks - status.f_bfree) * status.f_frsize

        at_first = used()
        htp.tag(path)
        assert used() - at_first < 2**20
        assert path.read_bytes() != before
        (disk / "tagged.onnx").hardlink_to(path)
        htp.strip(path)
        assert used() - at_first < 2**20
        assert path.read_bytes() == before


def test_weights_move_by_whole_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever there is to be made up for, and where the padding makes a length longer."""
    monkeypatch.setattr(block_sharing, "LEAST_SHARED_BYTES", 1000)
    weights = WEIGHTS[:20_000]
    blanks = set()
    for length in [*range(0, BLOCK, 61), *range(7465, 7480)]:
        path = saved(tmp_path / "model.onnx", weights=weights, text="-" * length)
        before = path.read_bytes()
        htp.tag(path)
        moved = path.read_bytes().index(weights) - before.index(weights)
        assert moved > 0
        assert moved % BLOCK == 0
        blanks.update(len(value) for value in padding_of(path))
        assert not htp.tag(path).files[0].changed
        htp.strip(path)
        assert path.read_bytes() == before
    assert min(blanks) < BLOCK < BLOCK + 128 < max(blanks)  # the first try was not enough for all


def test_what_pads_is_a_record_like_others(tmp_path: Path) -> None:
    """It is read and kept by those who know nothing of it, and `strip` finds it then."""
    path = saved(tmp_path / "model.onnx")
    htp.tag(path)
    [blanks] = padding_of(path)
    assert set(blanks) == {" "}
    onnx.checker.check_model(str(path), full_check=True)
    onnx.save(onnx.load(path), path)
    htp.strip(path)
    assert onnx.load(path) == onnx.load(saved(tmp_path / "other.onnx"))


def test_little_is_copied_without_padding(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.onnx", weights=WEIGHTS[: 2**20 - 100])
    htp.tag(path)
    assert padding_of(path) == []


def test_a_file_without_room_for_it_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "model.onnx")
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(block_sharing, "LEAST_SHARED_BYTES", len(WEIGHTS) + 1)
        htp.tag(path)
    size = path.stat().st_size
    path.write_bytes(before)
    monkeypatch.setattr(rewriter, "MAX_MESSAGE_BYTES", size)
    htp.tag(path)
    assert path.stat().st_size == size
    assert not htp.tag(path).files[0].changed
