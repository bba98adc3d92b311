"""The pass over files: which module each node came from is written onto it, or taken out.

It gives to others: `htp.tag`, `htp.strip` and `htp.read_hierarchy`; `explain.explain`, how one
node is placed; and `tag_report`, what the pass found.

It must not know how a file was made or what is checked of it: `tag` works on any `.onnx` file. It
changes a file through `onnx_file` alone, and never reads a weight.
"""
