"""The modules of a model: their paths and classes, from a model in memory or from config.json.

It provides: `module_tree.ModuleTree`, the modules of a model in memory as plain data;
`model_classes`, which builds models without weights from the classes that a config.json may
describe; and `export_json`, which reads the file that transformers' own exporter writes.

It must not know the nodes of a graph, and it loads no weight. It imports PyTorch and transformers
only to build a model.
"""
