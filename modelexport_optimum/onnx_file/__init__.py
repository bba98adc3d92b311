"""The `.onnx` file as a stream of protobuf fields: read and rewritten without its weights.

It provides: `reader.read_model`, which returns the graphs, nodes and tensors of a file with their
positions; `rewriter`, which writes the file again with changes of single fields; and `wire`,
protobuf's encoding.

It must not know tags, modules or PyTorch. It never holds a weight, so its memory grows only with
the number of nodes.
"""
