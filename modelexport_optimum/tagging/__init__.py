"""The pass: which module each node came from, and writing that onto it.

It gives to others: `htp.tag`, `htp.strip`, `htp.read_hierarchy`; `carriers`, where a
tag stands on a node; `tag_grammar`, how it is spelled; `module_tree`, the modules of a model;
`model_classes`, models without weights; and `traced_graphs`, what `exporting` has noted while a
model is traced.

It must not know how a file was made or what is checked of it: `tag` works on any `.onnx` file,
and `retracing` alone drives an exporter, where names leave a choice. It changes a file through
`onnx_file` alone, and never reads a weight.
"""
