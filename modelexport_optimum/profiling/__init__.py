"""Profiling: the time and the memory of each module in a run, and its execution provider.

It provides: `profile.profile` and its result, a `profile_report.ProfileReport`; and `placement`,
which finds the execution provider of each module's nodes.

It needs only the tagged `.onnx` file. It must not know torch, transformers or Optimum.
"""
