"""Comparing: which module's numbers differ between two sides, and whose fault it is.

It gives to others: `compare.compare_files` and what it gives, a `comparison.Comparison`; and
`file_pairs`, which files of two exports belong together.

It must not know where a side's numbers come from: PyTorch's are recorded by `tagging`, and
brought by `compare_run`. It must not know torch, transformers or Optimum.
"""
