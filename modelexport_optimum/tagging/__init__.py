"""The pass: which module each node came from, and writing that onto it.

It gives to others: `htp.tag`, `htp.strip`, `htp.read_hierarchy`; `carriers`, the form of a tag and
where it stands; `module_tree`, the modules of a model without its weights; and
`recorded_calls`, what `exporting` notes while a model is traced.

It must not know how a model was exported or what is checked of it: `tag` works on any `.onnx`
file. It changes a file through `onnx_file` alone, and never reads a weight.
"""
