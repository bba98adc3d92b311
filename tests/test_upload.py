"""Uploads to the Hub, the model card, and what becomes of the export when the Hub refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hub
import onnx
import pytest
import yaml
from markdown_it import MarkdownIt
from schemas import valid
from typer.testing import CliRunner

from modelexport_optimum import UsageError, export
from modelexport_optimum.batches.earlier_runs import published_record
from modelexport_optimum.batches.jobs import Job
from modelexport_optimum.batches.worker import run_job
from modelexport_optimum.cli.main import app
from modelexport_optimum.uploading import model_card
from modelexport_optimum.uploading.model_card import CardFacts, card_of, is_own

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    ModelDirectory = Callable[[str], Path]

MINE = "# My own words\n"


# --- Uploads --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def uploads(place: Path, model_directory: ModelDirectory) -> Mapping[str, Any]:
    """The results of exports that are uploaded, all in one process, and what the Hub got."""
    public, mine = place / "repositories" / "public", place / "repositories" / "mine"
    public.mkdir(parents=True)
    mine.mkdir()
    (mine / "README.md").write_text(MINE)
    models = {
        "team/bert": model_directory("bert"),
        "team/public": public,
        "team/mine": mine,
    }
    model = ["team/bert", "--provider", "cpu", "--json"]
    broken = [*model, "--atol", "1e-30"]

    def pushed(name: str, *more: str, to: str | None = None) -> list[str]:
        return [*model, "-o", name, "--push-to-hub", to or f"team/{name}", *more]

    Path(place, "lines.jsonl").write_text(
        "\n".join(
            json.dumps({"model": "team/bert", "output": name, "push_to_hub": f"team/{name}"})
            for name in ("one", "forbidden")
        )
    )
    commands = {
        "new": pushed("new", "--model-card"),
        "again": pushed("new", "--overwrite"),
        "seen": pushed("seen", "--public"),
        "nameless": pushed("nameless", to="nameless"),
        "public": pushed("public"),
        "mine": pushed("mine", "--public"),
        "no token": ["HF_TOKEN=", *pushed("no-token")],
        "read": [f"HF_TOKEN={hub.READ_ONLY}", *pushed("read")],
        "unknown": ["HF_TOKEN=hf_unknown", *pushed("unknown")],
        "forbidden": pushed("forbidden"),
        "lost": pushed("lost"),
        "failed check": [*broken, "-o", "checked", "--push-to-hub", "team/checked"],
        "wrong": pushed("wrong", to="a b"),
        "batch": ["batch", "lines.jsonl", "-o", "exports", "--provider", "cpu", "--json"],
    }
    private: dict[str, bool] = {}
    asked: list[str] = []
    where = place / "uploads"
    with hub.serving(models, asked, uploads=where, private=private) as endpoint:
        results = hub.run_commands(list(commands.values()), place, endpoint)
    return {
        **dict(zip(commands, results, strict=True)),
        "private": private,
        "asked": asked,
    }


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def test_the_export_is_uploaded_whole_and_private(uploads: Mapping[str, Any], place: Path) -> None:
    result = uploads["new"]
    assert result["exit"] == 0, result["stderr"]
    document = valid(json.loads(result["stdout"]), "export")
    assert document["upload"]["status"] == "ok"
    assert document["upload"]["private"] is True
    assert document["upload"]["commit"] == hub.COMMIT
    assert document["upload"]["message"].endswith("/team/new (private)")
    assert uploads["private"]["team/new"] is True
    on_hub, here = contents(place / "uploads" / "team" / "new"), contents(place / "new")
    # It was exported again with --overwrite, and without --model-card.
    assert here.keys() == on_hub.keys() - {"README.md"}
    assert here == {name: on_hub[name] for name in here}
    assert "POST /team/new.git/info/lfs/objects/batch" in uploads["asked"]
    assert "Upload to the Hub" in result["stderr"]
    assert uploads["again"]["exit"] == 0


def test_it_is_public_where_that_was_asked_for(uploads: Mapping[str, Any]) -> None:
    assert uploads["seen"]["exit"] == 0
    assert uploads["private"]["team/seen"] is False
    assert json.loads(uploads["seen"]["stdout"])["upload"]["private"] is False


def test_a_name_alone_is_the_users_own(uploads: Mapping[str, Any], place: Path) -> None:
    assert uploads["nameless"]["exit"] == 0
    assert (place / "uploads" / "me" / "nameless" / "model.onnx").is_file()


def test_a_card_of_others_on_the_hub_is_kept(uploads: Mapping[str, Any], place: Path) -> None:
    result = uploads["mine"]
    assert result["exit"] == 0, result["stderr"]
    assert (place / "repositories" / "mine" / "README.md").read_text() == MINE
    message = json.loads(result["stdout"])["upload"]["message"]
    assert "its README.md was not written by this program, and was not changed" in message


@pytest.mark.parametrize(
    ("case", "output", "expected"),
    [
        ("no token", "no-token", "there is no token for the Hub: log in with `hf auth login`"),
        ("unknown", "unknown", "the Hub does not take the token (401): log in with"),
        (
            "read",
            "read",
            "the token may not write to team/read (403): give a name in your own namespace",
        ),
        ("forbidden", "forbidden", "the token may not write to team/forbidden (403)"),
        ("public", "public", "team/public exists and is public: add --public to upload to it"),
        ("lost", "lost", "the connection to the Hub (http://127.0.0.1:"),
    ],
)
def test_the_export_is_kept_when_the_hub_refuses(
    uploads: Mapping[str, Any], place: Path, case: str, output: str, expected: str
) -> None:
    result = uploads[case]
    assert result["exit"] == 4
    document = valid(json.loads(result["stdout"]), "export")
    assert document["ok"] is False
    assert document["upload"]["status"] == "failed"
    last = result["stderr"].splitlines()[-1]
    assert last == f"error: {document['upload']['message']}"
    assert expected in last
    if case == "public":  # `hf upload --private` does not mind that everybody would see it
        assert last.endswith(f"; the export is in {place / output}")
        assert "hf upload" not in last
    else:
        assert f"`hf upload --private team/{output} {place / output}` uploads it" in last
    assert "hf_" not in last.replace("hf_hub", "")
    assert (place / output / "model.onnx").stat().st_size > 0
    assert not (place / "uploads" / "team" / output / "model.onnx").exists()


def test_an_export_whose_check_failed_is_not_uploaded(
    uploads: Mapping[str, Any], place: Path
) -> None:
    result = uploads["failed check"]
    assert result["exit"] == 3
    assert "not uploaded to team/checked, because a check failed" in result["stderr"]
    assert (place / "checked" / "model.onnx").is_file()
    assert "team/checked" not in uploads["private"]


def test_a_wrong_name_is_told_before_anything_is_exported(
    uploads: Mapping[str, Any], place: Path
) -> None:
    assert uploads["wrong"]["exit"] == 2
    assert "--push-to-hub 'a b' is not a name on the Hub" in uploads["wrong"]["stderr"]
    assert not (place / "wrong").exists()
    with pytest.raises(UsageError, match="--public is for --push-to-hub"):
        export(place / "mine", place / "never", private=False)


def test_lines_of_a_batch_are_uploaded(uploads: Mapping[str, Any], place: Path) -> None:
    result = uploads["batch"]
    document = valid(json.loads(result["stdout"]), "batch")
    assert (result["exit"], document["exit_status"]) == (4, 4)
    one, refused = document["records"]
    assert (one["status"], refused["status"]) == ("ok", "upload-failed")
    assert refused["exit_status"] == 4
    assert "the token may not write to team/forbidden (403)" in refused["error"]
    assert Path(refused["log"]).is_file()
    assert (place / "exports" / "forbidden" / "model.onnx").is_file()
    assert (place / "uploads" / "team" / "one" / "model.onnx").is_file()


def test_a_job_that_dies_during_its_upload_is_not_done(
    model_directory: ModelDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object, **__: object) -> None:
        raise SystemExit(9)

    monkeypatch.setattr("modelexport_optimum.export_run.push", dies)
    arguments = {"push_to_hub": "team/x", "providers": ["cpu"]}
    log = tmp_path / "logs" / "out.log"
    job = Job(1, str(model_directory("bert")), tmp_path / "out", log, arguments)
    with pytest.raises(SystemExit):
        run_job(job, lambda _: None, 1)
    record = published_record(job.pending)
    assert record is not None
    assert (record["ok"], record["status"], record["exit_status"]) == (False, "upload-failed", 4)
    assert record["error"] == "its process ended before it was uploaded"
    assert (tmp_path / "out" / "model.onnx").is_file()


# --- The model card -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(place: Path, model_directory: ModelDirectory) -> tuple[Path, Any]:
    """An export with a card whose upload Ctrl-C ended, and what the command printed."""
    output = place / "an export"
    arguments = [model_directory("bert"), "-o", output, "--provider", "cpu", "--model-card"]

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modelexport_optimum.export_run.push", interrupted)
        command = [*map(str, arguments), "--push-to-hub", "team/x"]
        return output, CliRunner().invoke(app, command)


def test_ctrl_c_in_an_upload_leaves_the_export(stopped: tuple[Path, Any]) -> None:
    output, result = stopped
    assert result.exit_code == 130
    last = result.stderr.splitlines()[-1]
    assert last == "stopped: the export is written, but was not uploaded"
    assert (output / "model.onnx").is_file()


def test_the_card_says_how_to_load_the_export(
    stopped: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, _ = stopped
    card = (output / "README.md").read_text()
    (block,) = re.findall("```python\n(.*?)```", card, re.DOTALL)
    assert len([line for line in block.splitlines() if line]) <= 3
    monkeypatch.chdir(output.parent)
    here: dict[str, Any] = {}
    exec(compile(block.replace("team/x", output.name), "README.md", "exec"), here)
    assert type(here["model"]).__name__ == "ORTModelForMaskedLM"


def test_the_card_tells_what_it_is_and_nothing_of_this_machine(stopped: tuple[Path, Any]) -> None:
    output, _ = stopped
    card = (output / "README.md").read_text()
    _, metadata, text = card.split("---\n", 2)
    assert yaml.safe_load(metadata) == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["onnx", "optimum", "modelexport-optimum"],
    }
    assert "| `bert.encoder.layer.0` | `BertLayer` | 79 | 2,224 |" in text
    assert re.search(r"\| `CPUExecutionProvider` \| `ok` \| ORTModelForMaskedLM: forward", text)
    assert re.search(r"\| transformers \| `\d+\.\d+", text)
    assert str(output.parent) not in card
    assert "/" not in text.partition("exported to ONNX")[0].partition("\n\n")[2]


def test_a_card_of_the_users_is_not_replaced(
    stopped: tuple[Path, Any], model_directory: ModelDirectory, tmp_path: Path
) -> None:
    output = shutil.copytree(stopped[0], tmp_path / "out")
    assert is_own((output / "README.md").read_text())
    (output / "README.md").write_text((output / "README.md").read_text() + MINE)
    before = contents(output)
    how: Any = {"overwrite": True, "providers": ["cpu"]}
    with pytest.raises(UsageError, match=r"README\.md was not written by this program, or was"):
        export(model_directory("bert"), output, model_card=True, **how)
    assert contents(output) == before
    result = export(model_directory("bert"), output, **how)
    assert "README.md was kept from the old export" in result.warnings[-1]
    assert contents(output)["README.md"] == before["README.md"]
    assert "README.md" in result.files


EVIL = "<img src=x>`|[x](http://evil)\n---\n# x $$ http://evil www.evil.com a@evil.com"


def test_names_in_a_card_are_data(tagged: Callable[[str], Path], tmp_path: Path) -> None:
    directory = shutil.copytree(tagged("bert"), tmp_path / "export")
    model = onnx.load(directory / "model.onnx")
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = "/BertForMaskedLM/<img src=x>`|[x](http:evil).a`|b"
    onnx.save(model, directory / "model.onnx")
    evil = EVIL.replace("\n", "\r\n")
    checks = [(EVIL, EVIL, EVIL), ("a", "ok", evil), ("b", "ok", "see www.evil.com or a@evil.com")]
    plain = card_of(tagged("bert"), CardFacts("x", False, "x", None, None, [("a", "b", "c")], "x"))
    card = card_of(directory, CardFacts(EVIL, False, EVIL, EVIL, None, checks, EVIL))
    for text in (plain, card):
        _, metadata, body = text.split("---\n", 2)
        assert set(yaml.safe_load(metadata)) <= {"library_name", "pipeline_tag", "tags"}
        tokens = MarkdownIt("commonmark").enable("table").parse(body)
        inline = [one for token in tokens for one in token.children or []]
        kinds = {"text", "code_inline", "link_open", "link_close"}
        assert {one.type for one in inline} <= kinds
        links = [one.attrs["href"] for one in inline if one.type == "link_open"]
        assert links == ["https://huggingface.co/docs/optimum-onnx"]
        assert all("evil" not in one.content for one in inline if one.type == "text")
        (comment,) = (token for token in tokens if token.type == "html_block")
        assert comment.content.startswith("<!-- Written by modelexport-optimum")
        headings = [token for token in tokens if token.type == "heading_open"]
        assert len(headings) == 5
        cells = [token.type for token in tokens if token.type in ("tr_open", "td_open")]
        assert {len(row) for row in "".join(kind[1] for kind in cells).split("r")} <= {0, 2, 3, 4}
        (block,) = (token.content for token in tokens if token.type == "fence")
        compile(block, "README.md", "exec")
        assert is_own(text)
        assert not is_own(text.replace("Load it", "Load"))


def test_no_card_is_taken_for_ours_that_was_edited() -> None:
    assert not is_own(MINE)
    assert not is_own("")
    end = model_card._END.format(digest="0" * 64)
    assert not is_own(f"{MINE}{end}\n")
