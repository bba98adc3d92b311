"""An explanation of how the module of one node was found."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelexport_optimum.errors import UsageError
from modelexport_optimum.onnx_file.skeleton import walk_all_nodes
from modelexport_optimum.system.locks import in_one_thread
from modelexport_optimum.tagging.directory_trees import given_trees, trees_of_files
from modelexport_optimum.tagging.htp import attribute_files
from modelexport_optimum.tagging.open_files import by_directory, open_file, writable_files
from modelexport_optimum.tags import tag_grammar

if TYPE_CHECKING:
    import os


@in_one_thread
def explain(
    path: str | os.PathLike[str],
    node_name: str,
    *,
    model: Any = None,  # noqa: ANN401
    trust_remote_code: bool = False,
) -> list[str]:
    """Explain how the module of a node is found, without changing anything.

    Args:
        path: A `.onnx` file, or a directory with any number of them.
        node_name: Name of the node.
        model: As for `tag`.
        trust_remote_code: As for `tag`.

    Returns:
        A paragraph for each node of that name.

    Raises:
        UsageError: No node has the name.
    """
    given = given_trees(model, trust_remote_code)
    found = []
    with contextlib.ExitStack() as stack:
        files = [open_file(file, stack) for file in writable_files(Path(path))]
        for directory, group in by_directory(files).items():
            wanted = [
                (file, node)
                for file in group
                for node in walk_all_nodes(file.model)
                if node.name == node_name
            ]
            if not wanted:
                continue
            trees = trees_of_files(directory, group, given, trust_remote_code, afresh=True)
            placed = attribute_files(group, trees, afresh=True)
            for file, node in wanted:
                placement = placed[file.path].placements[node.start]
                chain = placed[file.path].chain(node)
                found.append(
                    f"{file.path.name}: {node.op_type} {node.name}\n"
                    f"  tag       {tag_grammar.format_tag(chain)}\n"
                    f"  module    {chain[-1].path or '(root)'}: {chain[-1].qualified}\n"
                    f"  evidence  {placement.evidence}: {placement.reason}"
                )
    if not found:
        raise UsageError(f"{path} has no node named {node_name}")
    return found
