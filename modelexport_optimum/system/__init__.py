"""What every room may use of the operating system: files, locks, streams; and our own version.

It gives to others: a file replaced in one step, a lock that dies with its process, the output of
a whole process sent elsewhere, `version.__version__`, and the names of the files that a model's
directory holds beside its weights.

It must not know ONNX, PyTorch, how a model is loaded, or any other room but `errors`.
"""
