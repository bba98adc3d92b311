"""A tagged graph as a flat list of nodes, and runs of it that keep the values between its nodes.

It provides: `flat_graph.flatten`, which returns the nodes of a file in the order in which they run,
with their module calls; `tapped_run.TappedRun`, a session that returns any requested value; and
`recorded_run.record_graph`, which records the inputs and outputs of each call.

It must not know the purpose of the values: comparing and profiling are separate rooms.
"""
