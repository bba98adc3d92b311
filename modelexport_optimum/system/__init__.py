"""What every room may use of the system: files, locks, standard streams, packages.

It gives to others: a file replaced in one step, a lock that dies with its process, the output of
a whole process sent elsewhere, `version.__version__`, the names of the files that a model's
directory holds beside its weights, the names of other packages that these do not promise to keep,
and heavy libraries imported without the extras that they look for.

It must not know what ONNX, PyTorch or a model is, how one is loaded, or any room but `errors`.
"""
