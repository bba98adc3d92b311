"""config.json in every formatting: what `tag` writes into it, and that `strip` takes it out."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, save

from modelexport_optimum.errors import ModelExportError
from modelexport_optimum.module_trees.module_tree import Module, ModuleTree
from modelexport_optimum.tagging import htp
from modelexport_optimum.tagging.config_json import ConfigJson, metadata_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONFIG = {"architectures": ["É"], "model_type": "bert", "text_config": {"htp_metadata": {"a": 1}}}
TREE = ModuleTree({path: Module(path, f"m.{path.upper() or 'Root'}", path) for path in ("", "a")})


def small_model(path: Path, scope: str = "/a") -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"], name=f"{scope}/Neg")], "g", [x], [y]
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def spelled(config: dict[str, object], **kwargs: object) -> str:
    return json.dumps(config, ensure_ascii=False, **kwargs)


FORMATTINGS = {
    "two spaces": spelled(CONFIG, indent=2) + "\n",
    "four spaces": spelled(CONFIG, indent=4) + "\n",
    "tabs": spelled(CONFIG, indent="\t"),
    "one line": spelled(CONFIG),
    "compact": spelled(CONFIG, separators=(",", ":")),
    "CRLF": spelled(CONFIG, indent=2).replace("\n", "\r\n") + "\r\n",
    "byte order mark": "\ufeff" + spelled(CONFIG, indent=2),
    "repeated key": '{"a": 1, "model_type": "bert", "a": 2}',
    "odd spaces": ' {\n\n "model_type" :\t"bert" ,"b":[ 1 ]\n\n  }\n\n',
    "closing brace beside": '{\n  "model_type": "bert"}',
    "brace in a string": '{"model_type": "}{\\"", "x": "htp_metadata"}',
}


@pytest.mark.parametrize("name", FORMATTINGS)
def test_tag_adds_the_key_and_strip_gives_the_bytes_back(tmp_path: Path, name: str) -> None:
    small_model(tmp_path / "m.onnx")
    config = tmp_path / "config.json"
    before = FORMATTINGS[name].encode()
    config.write_bytes(before)
    htp.tag(tmp_path, model=TREE)
    after = config.read_bytes()
    pairs = json.loads(after.decode("utf-8-sig"), object_pairs_hook=list)
    assert [key for key, _ in pairs].count("htp_metadata") == 1
    assert dict(pairs)["htp_metadata"][:2] == [
        ("hierarchy_modules", 2),
        ("module_types", ["A", "Root"]),
    ]
    start = next(i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b)
    assert after.endswith(before[start:])  # one piece was put in, and nothing else was touched
    assert (b"\r\n" in before) == (b"\r\n" in after[start:])
    htp.tag(tmp_path, model=TREE)
    assert config.read_bytes() == after
    htp.strip(tmp_path)
    assert config.read_bytes() == before


@pytest.mark.parametrize("place", ["first", "middle", "last", "twice", "sorted by others"])
def test_key_that_stands_somewhere_is_written_there(tmp_path: Path, place: str) -> None:
    """As `save_pretrained` leaves it, which sorts the keys of a config that it has loaded."""
    small_model(tmp_path / "m.onnx")
    old = {"export_strategy": "htp", "hierarchy_modules": 7, "module_types": [], "version": "0"}
    config = tmp_path / "config.json"
    rest = {"a": 1, "model_type": "bert", "z": {}}
    texts = {
        "first": spelled({"htp_metadata": old, **rest}, indent=2),
        "middle": spelled({"a": 1, "htp_metadata": old, **rest}, indent=2),
        "last": spelled({**rest, "htp_metadata": old}, indent=2),
        "twice": spelled({"htp_metadata": old, **rest, "htp_metadat?": old}, indent=2),
        "sorted by others": spelled({**rest, "htp_metadata": old}, indent=2, sort_keys=True),
    }
    config.write_text(texts[place].replace("?", "a"))
    htp.tag(tmp_path, model=TREE)
    pairs = json.loads(config.read_bytes(), object_pairs_hook=list)
    keys = [key for key, _ in pairs]
    assert keys.count("htp_metadata") == 1
    assert dict(pairs)["htp_metadata"]
    without = [key for key in keys if key != "htp_metadata"]
    order = {"middle": ["a", "model_type", "z"]}.get(place, ["a", "model_type", "z"])
    assert without == order
    htp.strip(tmp_path)
    assert config.read_text() == spelled(rest, indent=2)


def test_transformers_saves_the_key_and_it_stays_ours(
    exported: Callable[[str], Path], tmp_path: Path
) -> None:
    from transformers import AutoConfig

    bert = shutil.copytree(exported("bert"), tmp_path / "bert")
    loaded = AutoConfig.from_pretrained(bert)
    loaded.save_pretrained(bert)
    before = (bert / "config.json").read_bytes()
    htp.tag(bert)
    AutoConfig.from_pretrained(bert).save_pretrained(bert)
    moved = (bert / "config.json").read_bytes()
    assert list(json.loads(moved))[-1] != "htp_metadata"
    htp.tag(bert)
    assert (bert / "config.json").read_bytes() == moved  # it says so already
    htp.strip(bert)
    assert (bert / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "repair it"),
        (b"[]", "not a JSON object"),
        (b'{"model_type": "\xff"}', "repair it"),
        (spelled(CONFIG).encode("utf-16"), "repair it"),
        (b'{"a": ' + b"[" * 100_000, "repair it"),
        (b'{"model_type": "bert", "htp_metadata": "mine"}', "another tool"),
        (None, "link"),
    ],
)
def test_config_that_cannot_be_kept_is_refused_before_anything_is_written(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    before = small_model(tmp_path / "m.onnx").read_bytes()
    config = tmp_path / "config.json"
    if content is None:
        (tmp_path / "other.json").write_text(FORMATTINGS["one line"])
        config.symlink_to("other.json")
    else:
        config.write_bytes(content)
    with pytest.raises(ModelExportError, match=words):
        htp.tag(tmp_path, model=TREE)
    assert (tmp_path / "m.onnx").read_bytes() == before
    assert content is None or config.read_bytes() == content
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


WHITE = st.text(" \t\r\n", max_size=3)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@st.composite
def texts(draw: st.DrawFn) -> str:
    """An object in JSON with spaces wherever they may stand, and keys that may be repeated."""
    keys = draw(st.lists(st.text(max_size=4), max_size=4))
    keys.insert(draw(st.integers(0, len(keys))), "model_type")
    members = [
        "".join([draw(WHITE), json.dumps(key, ensure_ascii=draw(st.booleans())), draw(WHITE), ":",
                 draw(WHITE), json.dumps(draw(VALUES)), draw(WHITE)])
        for key in keys
    ]  # fmt: skip
    mark = draw(st.sampled_from(["", "\ufeff"]))
    return f"{mark}{draw(WHITE)}{{{','.join(members)}}}{draw(WHITE)}"


@settings(max_examples=100, deadline=None)
@given(text=texts(), number=st.integers(0, 3))
def test_any_json_comes_back(
    tmp_path_factory: pytest.TempPathFactory, text: str, number: int
) -> None:
    directory = tmp_path_factory.getbasetemp() / "any_json"
    directory.mkdir(exist_ok=True)
    config = directory / "config.json"
    before = text.encode()
    config.write_bytes(before)

    def written(metadata: dict[str, object] | None) -> bytes:
        read = ConfigJson.read(directory)
        assert read is not None
        read.write(metadata)
        return config.read_bytes()

    for classes in (["A"] * number, ["B"]):
        metadata = metadata_of({str(index): name for index, name in enumerate(classes)})
        after = written(metadata)
        assert json.loads(after.decode("utf-8-sig"))["htp_metadata"] == metadata
        assert written(metadata) == after
    assert written(None) == before


def test_key_describes_all_tagged_files_of_the_directory(tmp_path: Path) -> None:
    for name, scope in (("one.onnx", "/a"), ("two.onnx", "/b/c")):
        small_model(tmp_path / name, scope)
    config = tmp_path / "config.json"
    config.write_text(FORMATTINGS["two spaces"])
    (tmp_path / "damaged.onnx").write_bytes(b"\x08")
    tree = ModuleTree({path: Module(path, f"m.{path or 'Root'}", path) for path in ("", "a", "b")})
    tree.modules["b.c"] = Module("b.c", "m.C", "b.c")

    def metadata() -> tuple[int, list[str]]:
        found = json.loads(config.read_text()).get("htp_metadata")
        return (found["hierarchy_modules"], found["module_types"]) if found else (0, [])

    htp.tag(tmp_path / "one.onnx", model=tree)
    assert metadata() == (2, ["Root", "a"])
    htp.tag(tmp_path / "two.onnx", model=tree)
    assert metadata() == (4, ["C", "Root", "a", "b"])  # b owns no node itself
    htp.strip(tmp_path / "one.onnx")
    assert metadata() == (3, ["C", "Root", "b"])
    htp.strip(tmp_path / "two.onnx")
    assert config.read_text() == FORMATTINGS["two spaces"]
