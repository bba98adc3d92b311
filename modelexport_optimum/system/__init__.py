"""Services of the system that every room may use: files, locks, standard streams, packages.

It provides: atomic replacement of a file, locks that are released when their process dies,
redirection of a whole process's output, `version.__version__`, the names of a model's files other
than its weights, the private names of other packages that are used here, and imports of heavy
libraries without optional extras.

It must not know ONNX, PyTorch or models, or any room but `errors`.
"""
