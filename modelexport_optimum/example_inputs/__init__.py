"""Inputs to run an exported graph on, made from what the export says of itself.

It gives to others: `generate.generate`, the one generator of example inputs, which makes an array
for each input of a graph and says where each size comes from.

It reads the `.onnx` file's skeleton and the JSON files beside it. It must not know tags, modules,
PyTorch or transformers, nor the name of any architecture; it runs nothing.
"""
