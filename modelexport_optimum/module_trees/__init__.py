"""The modules of a model: its paths and classes, and what a config.json says of them.

It gives to others: `module_tree.ModuleTree`, the modules of a model in memory as plain data;
`model_classes`, models without weights, built of the classes that a config.json may describe; and
`export_json`, what transformers' own exporter says of its graphs.

It must not know the nodes of a graph, and it loads no weight. It imports PyTorch and transformers
only where a model is built.
"""
