"""The pass over files: it writes the module of each node onto the node, or removes it again.

It provides: `htp.tag`, `htp.strip` and `htp.read_hierarchy`; `explain.explain`, which says how the
module of one node was found; and `tag_report`, the result of the pass.

It must not know how a file was made or how it is checked: `tag` works on any `.onnx` file. It
changes files only with `onnx_file`, and never reads a weight.
"""
