"""What the source has beside its weights, the export has too, or the run says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hub
import numpy as np
import pytest
import zoo

from modelexport_optimum import export, verify
from modelexport_optimum.exporting.companions import copy_companions
from modelexport_optimum.system.model_files import companion_files
from modelexport_optimum.verifying.embeddings import SENTENCES

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelexport_optimum.export_run import ExportResult
    from modelexport_optimum.verifying.verify import VerifyReport

    Directory = Callable[[str], Path]

# Found by Python before the real libraries: the modules that BLOCKED names are not there.
WITHOUT_LIBRARIES = """\
import importlib.machinery, os
find = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    blocked = name.partition(".")[0] in os.environ["BLOCKED"].split()
    return None if blocked else find(name, path, target)
importlib.machinery.PathFinder.find_spec = find_spec
"""


@pytest.fixture(scope="module")
def opus_mt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "opus-mt"
    zoo.build(zoo.OPUS_MT, directory)
    return directory


def message(checks: VerifyReport | ExportResult, name: str) -> str:
    report = getattr(checks, "verification", checks)
    return next(check.message for check in report.checks if check.name == name)


def failed(report: VerifyReport) -> list[str]:
    return [check.name for check in report.checks if check.status == "failed"]


# --- Libraries that are not installed -------------------------------------------------------------


def test_a_library_that_is_missing_is_named(
    opus_mt: Path, model_directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an installation that lacks them: diffusers needs pillow itself, so it goes, too."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_LIBRARIES)
    monkeypatch.setenv("BLOCKED", "sentencepiece PIL accelerate diffusers")
    monkeypatch.syspath_prepend(tmp_path)
    root = Path(__file__).parent.parent
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root}")
    common = ["--json", "--provider", "cpu"]
    models = {"opus-mt": opus_mt, **{name: model_directory(name) for name in ("vit", "gpt2")}}
    commands = [["export", str(path), "-o", name, *common] for name, path in models.items()]
    results = dict(
        zip(models, hub.run_commands(commands, tmp_path, "http://127.0.0.1:9"), strict=True)
    )
    assert {name: result["exit"] for name, result in results.items()} == {
        "opus-mt": 3,
        "vit": 3,
        "gpt2": 0,
    }
    read = {name: json.loads(result["stdout"]) for name, result in results.items()}

    def files_of(name: str) -> str:
        checks = read[name]["verification"]["checks"]
        return next(check["message"] for check in checks if check["name"] == "files")

    assert files_of("opus-mt").startswith("of the tokenizer source.spm, special_tokens_map.json,")
    assert "the SentencePiece library" in files_of("opus-mt")
    assert files_of("opus-mt").endswith(": pip install sentencepiece, and export again")
    assert files_of("vit").startswith("of the processor preprocessor_config.json is missing: ")
    assert files_of("vit").endswith(": pip install pillow, and export again")
    for name, tied in (("opus-mt", "decoder.embed_tokens.weight"), ("gpt2", "lm_head.weight")):
        (warning,) = read[name]["warnings"]
        assert "were not deduplicated" in warning
        assert tied in warning
        assert "pip install accelerate" in warning
    assert read["vit"]["warnings"] == []


def test_a_tokenizer_of_sentencepiece_comes_along(opus_mt: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    result = export(opus_mt, tmp_path / "out", providers=["cpu"])
    assert result.ok, result.verification
    assert message(result, "files") == (
        "the same files as in the model: 1 file of the generation config, 5 files of the tokenizer"
    )
    text = zoo.SENTENCES[0]
    ours, theirs = (AutoTokenizer.from_pretrained(d)(text) for d in (tmp_path / "out", opus_mt))
    assert ours["input_ids"] == theirs["input_ids"]
    assert len(ours["input_ids"]) > 10
    assert result.warnings == ()


# --- The files ------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What a model may have: files for the export, and others."""
    source = tmp_path / "source"
    for name in (
        *("tokenizer.json", "tokenizer_config.json", "vocab.txt", "added_tokens.json"),
        *("generation_config.json", "preprocessor_config.json", "language_model/5gram.bin"),
        *("config.json", "model.safetensors", "README.md", "checkpoint-5/tokenizer.json"),
        *(".cache/tokenizer.json", "sentence_bert_config.json"),
    ):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    return source


def places(directory: Path, **options: bool) -> list[str]:
    return sorted(file.place for file in companion_files(directory, **options))


def test_which_files_belong_to_the_export(source: Path) -> None:
    assert places(source) == [
        *("added_tokens.json", "generation_config.json", "language_model/5gram.bin"),
        *("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"),
    ]
    (source / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}]))
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text("{}")
    assert set(places(source, pooled=True)) - set(places(source)) == {
        *("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"),
    }
    (source / "modules.json").write_text(json.dumps([{"path": "../elsewhere"}, {"path": "/etc"}]))
    assert set(places(source, pooled=True)) - set(places(source)) == {
        *("modules.json", "sentence_bert_config.json"),
    }


def test_what_optimum_left_is_copied_but_not_what_could_not_be_loaded(
    source: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    (output / "tokenizer.json").write_text("ours")
    copy_companions(source, output, pooled=False)
    assert {path.name: path.read_text() for path in output.iterdir()} == {
        "tokenizer.json": "ours",
        "tokenizer_config.json": "tokenizer_config.json",
        "vocab.txt": "vocab.txt",
        "added_tokens.json": "added_tokens.json",
        "generation_config.json": "generation_config.json",
    }


def test_a_link_that_leads_out_is_not_copied(source: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (source / "vocab.txt").unlink()
    (source / "vocab.txt").symlink_to(tmp_path / "secret")
    output = tmp_path / "output"
    output.mkdir()
    (output / "tokenizer.json").write_text("ours")
    copy_companions(source, output, pooled=False)
    assert not (output / "vocab.txt").exists()
    assert (output / "added_tokens.json").exists()


def test_a_file_that_is_gone_is_a_failed_check(
    exported: Directory, model_directory: Directory, tmp_path: Path
) -> None:
    directory = shutil.copytree(exported("stable-diffusion"), tmp_path / "pipeline")
    assert verify(directory, providers=["cpu"], model=model_directory("stable-diffusion")).ok
    (directory / "scheduler" / "scheduler_config.json").unlink()
    (directory / "tokenizer" / "special_tokens_map.json").unlink()
    report = verify(directory, providers=["cpu"], model=model_directory("stable-diffusion"))
    assert "files" in failed(report)
    assert "of the scheduler scheduler/scheduler_config.json is missing: " in message(
        report, "files"
    )
    assert "tokenizer/special_tokens_map.json is missing: copy it from" in message(report, "files")


# --- sentence-transformers ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentences(model_directory: Directory, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """An export for `SentenceTransformer(DIR, backend="onnx")`."""
    return export(
        model_directory("sentence-transformers"),
        tmp_path_factory.mktemp("exports") / "sentences",
        task="feature-extraction",
        library_name="transformers",
        providers=["cpu"],
    )


def test_a_sentence_transformers_model_is_used_as_its_users_do(
    sentences: ExportResult, model_directory: Directory
) -> None:
    from sentence_transformers import SentenceTransformer

    assert sentences.ok, sentences.verification
    assert message(sentences, "embeddings").startswith(
        'SentenceTransformer(DIR, backend="onnx") gives the model\'s embeddings within '
    )
    theirs = SentenceTransformer(str(model_directory("sentence-transformers")), device="cpu")
    ours = SentenceTransformer(str(sentences.output), backend="onnx", device="cpu")
    assert ours.max_seq_length == theirs.max_seq_length
    expected = theirs.encode(SENTENCES)
    assert np.linalg.norm(expected, axis=1) == pytest.approx(1)
    assert ours.encode(SENTENCES) == pytest.approx(expected, abs=1e-5)
    report = verify(sentences.output, providers=["cpu"])
    assert report.ok
    assert message(report, "embeddings").endswith(" gives 8 numbers for each sentence")


CLS = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("1_Pooling/config.json", CLS, "gives other embeddings than the model"),
        ("sentence_bert_config.json", {"max_seq_length": 5}, "gives other embeddings than"),
        ("2_Dense/config.json", {"in_features": "wide"}, "cannot load or run it"),
    ],
)
def test_other_embeddings_are_a_failed_check(
    sentences: ExportResult, model_directory: Directory, tmp_path: Path,
    name: str, changes: dict[str, Any], words: str,
) -> None:  # fmt: skip
    directory = shutil.copytree(sentences.output, tmp_path / "changed")
    settings = json.loads((directory / name).read_text())
    (directory / name).write_text(json.dumps(settings | changes))
    report = verify(directory, providers=["cpu"], model=model_directory("sentence-transformers"))
    assert failed(report) == ["embeddings"]
    assert words in message(report, "embeddings")


def test_without_its_modules_it_is_no_sentence_transformers_model(
    sentences: ExportResult, model_directory: Directory, tmp_path: Path
) -> None:
    """What Optimum alone writes: it loads there, and gives other embeddings."""
    directory = shutil.copytree(sentences.output, tmp_path / "bare")
    (directory / "modules.json").unlink()
    shutil.rmtree(directory / "1_Pooling")
    report = verify(directory, providers=["cpu"], model=model_directory("sentence-transformers"))
    assert failed(report) == ["files"]
    assert (
        "of the sentence-transformers modules 1_Pooling/config.json, modules.json are missing"
        in (message(report, "files"))
    )


def test_optimums_own_export_of_it_says_what_it_is_for(
    model_directory: Directory, tmp_path: Path
) -> None:
    result = export(model_directory("sentence-transformers"), tmp_path / "out", providers=["cpu"])
    assert result.ok, result.verification
    said = message(result, "embeddings")
    assert said.startswith("sentence_embedding gives the model's embeddings within ")
    assert "for ONNX Runtime and ORTModelForCustomTasks" in said
    assert "export with --library-name transformers --task feature-extraction" in said
    assert not (tmp_path / "out" / "modules.json").exists()


def test_modules_of_its_own_are_not_run_unless_trusted(
    sentences: ExportResult, tmp_path: Path
) -> None:
    directory = shutil.copytree(sentences.output, tmp_path / "odd")
    modules = json.loads((directory / "modules.json").read_text())
    modules[1]["type"] = "odd.Odd"
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "odd.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    report = verify(directory, providers=["cpu"])
    assert "code of its own, which was not run (odd.Odd in modules.json)" in message(
        report, "config"
    )
    assert not report.ok
    assert not (tmp_path / "ran").exists()
