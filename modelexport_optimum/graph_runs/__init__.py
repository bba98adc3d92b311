"""A tagged graph laid out node by node, and run with what is between its nodes kept.

It gives to others: `flat_graph.flatten`, the nodes of a file in the order in which they run,
with the calls of modules that they make up; `tapped_run.TappedRun`, a session that gives the
values asked of it; and `recorded_run.record_graph`, what went into and came out of each call.

It must not know what the values are for: comparing and profiling are rooms of their own.
"""
