"""Looking at the hierarchy: what people do with the tags of an exported model.

It gives to others: a function for each command of the same name (`inspect`, `diff`, `extract`,
`view`), and `tagged_model`, a file read with its tags, from which the rooms above it start, too.

It works from the tagged `.onnx` file alone. It must not know torch, transformers or Optimum, how
an export is made or checked, and of `tagging` anything but what a tagged file says of itself
(`carriers`, `model_record`). It runs no model.
"""
