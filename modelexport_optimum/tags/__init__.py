"""What a file says of the modules that its nodes came from.

It gives to others: `carriers`, where a tag stands on a node; `tag_grammar`, how it is spelled;
`model_record`, what stands in the model's own metadata; `node_names`, what the exporter's names
tell; and `recorded_call`, a call of a module by the path that tags have.

It knows text and bytes alone. It must not know a module tree, PyTorch, or by what evidence a node
was given its tag.
"""
