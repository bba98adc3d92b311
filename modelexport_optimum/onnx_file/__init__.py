"""The `.onnx` file as a stream of protobuf fields: read and rewritten without its weights.

It gives to others: `reader.read_model`, the graphs, nodes and tensors of a file with their places
in it; `rewriter`, which writes the file again with edits of single fields; `wire`, protobuf's
encoding.

It must not know tags, modules or PyTorch. It never holds a weight, and takes no more memory than
the nodes do.
"""
