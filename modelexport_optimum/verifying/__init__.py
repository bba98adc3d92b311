"""The checks of a finished export: its config against its graphs, and each execution provider.

It gives to others: `verify.verify` and its `VerifyReport`, and `verify.chosen_providers`, which
says what ONNX Runtime calls a provider.

It reads an exported directory and changes nothing there. It must not know how the export was
made (`exporting`), or what people do with its hierarchy (`hierarchy`).
"""
