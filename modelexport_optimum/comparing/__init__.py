"""Comparing: the modules whose numbers differ between two sides, and where the difference begins.

It provides: `compare.compare_files` and its result, a `comparison.Comparison`; and `file_pairs`,
which pairs the files of two exports.

It must not know where the numbers of a side come from: `exporting` records PyTorch's, and
`compare_run` passes them in. It must not know torch, transformers or Optimum.
"""
