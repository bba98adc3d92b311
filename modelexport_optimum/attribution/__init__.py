"""The rules that say which module each node of a graph came from, and by what evidence.

It gives to others: `rules.attribute`, a module and a reason for each node of a graph, whose first
lines are the rules; `placements`, what it returns; `tree_choice`, which module of a tree a graph
was traced from; and `traced_graphs`, what can be noted while PyTorch exports.

It must not know files or how a tag is written: nodes and a module tree go in. It knows no
architecture, and `retracing` alone drives an exporter, where names leave a choice.
"""
