"""Inputs to run an exported graph on, generated from the graph and the JSON files of the export.

It provides: `generate.generate`, the one generator of example inputs, which makes an array for each
input of a graph and says where each size comes from.

It reads the `.onnx` file's skeleton and the JSON files beside it. It must not know tags, modules,
PyTorch or transformers, nor the name of any architecture; it runs nothing.
"""
