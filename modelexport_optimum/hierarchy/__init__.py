"""Views of the hierarchy: the commands that use only the tags of an exported model.

It provides: a function for each command of the same name (`inspect`, `diff`, `extract`, `view`),
and `tagged_model`, which reads a file with its tags; the rooms above use it, too.

It needs only the tagged `.onnx` file. It must not know torch, transformers or Optimum, or how an
export is made or checked. It may use `tags`, which reads the tags of a file, but not `tagging`. It
runs no model.
"""
