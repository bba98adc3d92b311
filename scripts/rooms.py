"""Draw docs/design.md's pictures and tables from the code, between their marks in that page.

The rooms and their arrows are the package's imports, what each room and file is are the first
sentences of their docstrings, and the data through one run are the calls in `export()`, in order.
With `--check`, write nothing and fail if the page is out of date.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import grimp
from written_page import write_or_check

REPOSITORY = Path(__file__).parent.parent
PAGE = REPOSITORY / "docs" / "design.md"
PACKAGE = "modelexport_optimum"

ROOMS = (
    *("cli", "batches", "export_run", "compare_run", "verify_run", "uploading"),
    *("reporting", "comparing", "profiling", "graph_runs"),
    *("exporting", "verifying", "hierarchy", "tagging", "attribution", "module_trees"),
    *("tags", "providers", "own_code", "example_inputs", "onnx_file", "system", "errors"),
)
"""From the top floor down, as the contract in pyproject.toml has them."""

USED_BY_ALL = {"system", "errors"}
"""Rooms at which no arrow is drawn: every room may use them."""

PASSED_ON = {
    "require_optimum": ("system", "", "an error, or nothing"),
    "require_packages": ("system", "", "an error, or nothing"),
    "check_repository": ("uploading", "--push-to-hub", "an error, or nothing"),
    "find_source": ("exporting", "the model's name", "its directory, or the Hub"),
    "check_output": ("exporting", "the output's name", "its path, if it may be written"),
    "check_card": ("uploading", "the output's path", "an error, or nothing"),
    "staging_directory": ("exporting", "the output's path", "an empty directory next to it"),
    "optimum_imported": ("exporting", "", "PyTorch, transformers and Optimum in memory"),
    "unchanged": ("exporting", "", "a model in memory, restored at the end"),
    "chosen_providers": ("verifying", "--provider", "the execution providers"),
    "check_options": ("exporting", "task and options", "an error, or nothing"),
    "export_model": ("exporting", "a model in memory", ".onnx files, trees, recorded calls"),
    "export_source": ("exporting", "a model on disk", ".onnx files, trees, recorded calls"),
    "tag": ("tagging", ".onnx files, trees, recorded calls", "the files tagged in place"),
    "unflushed": ("system", "", "files that are not flushed to the disk"),
    "flushed_meanwhile": ("exporting", "", "the files flushed during the check"),
    "verify": ("verifying", "the directory", "a result for each check and provider"),
    "publish": ("exporting", "the directory", "the output, by one rename"),
}
"""What is passed on in one run, by the function that `export()` calls: the function's room, what
it takes and what it gives."""

CHECK = "_check"
"""The part of `export()` that is a function of its own: what it calls is drawn, too."""


def rooms_picture() -> str:
    """Return the rooms and what each imports, as Mermaid."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    arrows = {
        (room(importer), room(imported))
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
    }
    lines = ["flowchart TD"]
    drawn = [name for name in ROOMS if name not in USED_BY_ALL]
    for name in drawn:
        label = f"{name}/" if (REPOSITORY / PACKAGE / name).is_dir() else f"{name}.py"
        lines.append(f'    {name}["{label}"]')
    lines += [
        f"    {one} --> {other}"
        for one in drawn
        for other in drawn
        if one != other and (one, other) in arrows
    ]
    return mermaid(lines)


def room(module: str) -> str:
    """Return the room of a module, "" for the package itself and `__main__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else ""


def run_picture() -> str:
    """Return what one run passes on, as Mermaid: the calls of `export()` from top to bottom."""
    steps = calls_of_export()
    lines = ["flowchart TD"]
    before = "start"
    lines.append('    start(["a model and an output"])')
    alternatives = {"export_model", "export_source"}
    ends: list[str] = ["start"]
    for name in steps:
        where, takes, gives = PASSED_ON[name]
        label = f"{where}: <b>{name}</b><br/>gives {gives}"
        lines.append(f'    {name}["{label}"]')
        heads = [before] if name in alternatives else ends
        text = f'|"{takes}"|' if takes else ""
        lines += [f"    {head} -->{text} {name}" for head in heads]
        if name in alternatives:
            ends = [one for one in ends if one in alternatives] + [name]
        else:
            ends, before = [name], name
    last = PASSED_ON[steps[-1]][2]
    lines.append(f'    {ends[0]} --> done(["{last}"])')
    return mermaid(lines)


def calls_of_export() -> list[str]:
    """Return what `export()` calls of other rooms, in the order of its lines."""
    tree = ast.parse((REPOSITORY / PACKAGE / "export_run.py").read_text(encoding="utf-8"))
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE)
        for alias in node.names
    }
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    called = _calls(functions["export"])
    at = [isinstance(node, ast.Name) and node.id == CHECK for node in called].index(True)
    called[at : at + 1] = _calls(functions[CHECK])
    names = []
    for node in called:
        # A class and its methods are not steps of the run.
        if isinstance(node, ast.Name) and node.id in imported and node.id[0].islower():
            names.append(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names += [node.attr] * (node.value.id in imported and node.value.id.islower())
    for name in names:
        if name not in PASSED_ON:
            sys.exit(f"export() calls {name}: say in {__file__} what it takes and gives")
    return list(dict.fromkeys(names))


def _calls(function: ast.FunctionDef) -> list[ast.expr]:
    """Return what a function calls, in the order of its lines."""
    called = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    return sorted(called, key=lambda node: (node.lineno, node.col_offset))


def rooms_table() -> str:
    """Return what each room is, and what each of its files is."""
    lines = []
    for name in ROOMS:
        folder = REPOSITORY / PACKAGE / name
        if folder.is_dir():
            lines += ["", f"### `{name}/`", "", paragraphs(folder / "__init__.py"), ""]
            lines += ["| file | it is |", "|---|---|"]
            lines += [
                f"| `{file.name}` | {first_sentence(file)} |"
                for file in sorted(folder.glob("*.py"))
                if file.name != "__init__.py"
            ]
        else:
            file = folder.with_suffix(".py")
            lines += ["", f"### `{name}.py`", "", paragraphs(file)]
    return "\n".join(lines).strip()


def docstring(file: Path) -> str:
    """Return a module's docstring."""
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def paragraphs(file: Path) -> str:
    """Return a module's docstring, each paragraph on one line."""
    return "\n\n".join(" ".join(part.split()) for part in docstring(file).split("\n\n"))


def first_sentence(file: Path) -> str:
    """Return the first paragraph of a module's docstring, on one line."""
    return " ".join(docstring(file).split("\n\n")[0].split()).replace("|", "\\|")


def mermaid(lines: list[str]) -> str:
    """Return a fenced block that GitHub draws."""
    return "\n".join(["```mermaid", *lines, "```"])


def drawn(page: str) -> str:
    """Return the page with everything between its marks drawn anew."""
    parts = {"rooms": rooms_picture(), "run": run_picture(), "files": rooms_table()}
    for name, content in parts.items():
        begin, end = f"<!-- {name}: by scripts/rooms.py -->", f"<!-- {name}: end -->"
        before, _, rest = page.partition(begin)
        _, mark, after = rest.partition(end)
        if not mark:
            sys.exit(f"{PAGE} has no marks {begin} and {end}")
        page = f"{before}{begin}\n\n{content}\n\n{end}{after}"
    return page


if __name__ == "__main__":
    write_or_check(PAGE, drawn(PAGE.read_text(encoding="utf-8")), "the code")
