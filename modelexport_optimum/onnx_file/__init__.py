"""The `.onnx` file as a stream of protobuf fields: read and rewritten without its weights."""
