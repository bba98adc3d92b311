"""The rules that say which module each node of a graph came from, and by what evidence.

It provides: `rules.attribute`, which returns a module and a reason for each node of a graph (the
rules are at the top of that file); `placements`, the type of its result; `tree_choice`, which finds
the module of a tree that a graph was traced from; and `traced_graphs`, which records the module of
each node while PyTorch exports.

Its input is nodes and a module tree. It must not know files, how a tag is written, or any
architecture. Only `retracing` runs an exporter, where the names in a file leave a choice.
"""
