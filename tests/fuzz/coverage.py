"""Coverage-guided: atheris on the reader, the carriers and the rewriter.

It keeps the inputs that reach new branches of these modules, and edits them further, with its own
edits of bytes and ours of fields. Run as `python -m fuzz.coverage DIRECTORY SECONDS SEED
INPUTS`, where the directory has the files to begin with; a finding is a file `found-*` written
there. libFuzzer ends the process when the time is over or this many inputs were run (-1 for no
limit), and says how many it ran.
"""

from __future__ import annotations

import ast
import hashlib
import os
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=[
        f"modelexport_optimum.{room}"
        for room in ("onnx_file", "tags", "module_trees", "attribution", "tagging")
    ]
):
    from modelexport_optimum.errors import ModelExportError
    from modelexport_optimum.onnx_file.reader import read_model
    from modelexport_optimum.onnx_file.skeleton import walk_nodes
    from modelexport_optimum.tagging import htp
    from modelexport_optimum.tags import carriers, tag_grammar
    from modelexport_optimum.tags.model_record import PREFIX

from fuzz import edits
from fuzz.whole_files import SECONDS, scratch_directory


def check_text(text: str) -> None:
    """The grammar takes what Python's parser takes and `repr` writes, and nothing else."""
    found = tag_grammar.parse_texts(text)
    if len(text) < 2000:
        try:
            known = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            known = None
        written = isinstance(known, list) and repr(known) == text
        if written and all(isinstance(one, str) for one in known) and len(known) < 100:
            surrogate = any("\ud800" <= letter < "\ue000" for one in known for letter in one)
            assert found == (None if surrogate else known), (found, known)
        if found is not None:
            assert found == known, (found, known)
    modules = tag_grammar.parse_tag(text)
    if modules is not None:
        assert len(modules) <= tag_grammar.MAX_MODULES
        assert tag_grammar.tag_of(modules) == text


def check_file(data: bytes, path: Path) -> None:
    """A file is read or refused; tagged and stripped it is what it was."""
    path.write_bytes(data)
    try:
        model = read_model(path)
    except ModelExportError:
        return
    for node in walk_nodes(model.graph):
        for marked in (False, True):
            carriers.read(node, marked=marked)
    ours = PREFIX.encode() in data or carriers.ATTRIBUTE.encode() in data
    try:
        htp.tag(path)
    except ModelExportError:
        assert path.read_bytes() == data, "refused, and the file is another"
        return
    tagged = path.read_bytes()
    list(htp.read_hierarchy(path))
    assert not htp.tag(path).files[0].changed, "tagged twice"
    assert path.read_bytes() == tagged, "tagged twice"
    htp.strip(path)
    assert ours or path.read_bytes() == data, "strip(tag(x)) is not x"


def main() -> None:
    """Run until the time is over, or the inputs are used up."""
    directory, seconds, seed, inputs = Path(sys.argv[1]), *sys.argv[2:5]
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-", dir=scratch_directory()))
    path = scratch / "model.onnx"
    seen: set[str] = set()
    donors = [file.read_bytes() for file in sorted(directory.iterdir())]

    def one_input(data: bytes) -> None:
        started = time.process_time()
        try:
            if data.startswith(edits.TEXT_INPUT):
                check_text(data[len(edits.TEXT_INPUT) :].decode("utf-8", "replace"))
            else:
                check_file(data, path)
            left = [name for name in os.listdir(scratch) if name != path.name]  # noqa: PTH208 (fast)
            assert not left, f"left {left}"
            seconds = time.process_time() - started
            assert seconds < SECONDS, f"took {seconds} s"
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            place = f"{type(error).__name__} in {frames[-1].filename}:{frames[-1].lineno}"
            if place not in seen:
                seen.add(place)
                name = hashlib.sha256(data).hexdigest()[:16]
                (directory / f"found-{name}").write_bytes(data)
                said = "".join(traceback.format_exception(error))
                (directory / f"found-{name}.txt").write_text(f"{place}\n{said[-1500:]}")

    def edited(data: bytes, limit: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if data.startswith(edits.TEXT_INPUT) or chance.random() < 0.4:
            return atheris.Mutate(data, limit)
        return edits.edit_model(data, chance.choice(donors), chance)[:limit]

    options = [
        f"-max_total_time={seconds}", f"-runs={inputs}", f"-seed={seed}", "-timeout=120",
        "-rss_limit_mb=3000",
        "-max_len=40000", f"-artifact_prefix={directory}/found-", "-print_final_stats=1",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(directory)], one_input, custom_mutator=edited)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
