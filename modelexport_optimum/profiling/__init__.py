"""Profiling: where a run's time and memory go, by module, and where each module runs.

It gives to others: `profile.profile` and what it gives, a `profile_result.ProfileReport`; and
`placement`, which execution provider took the nodes of each module.

It works from the tagged `.onnx` file alone. It must not know torch, transformers or Optimum.
"""
