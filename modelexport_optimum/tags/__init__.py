"""Tags in a file: their form, and where they are stored.

It provides: `carriers`, the three places of a tag on a node; `tag_grammar`, the form of a tag;
`model_record`, the entries in the model's own metadata; `node_names`, which parses the exporter's
names; and `recorded_call`, a call of a module with its path.

It knows only text and bytes. It must not know module trees, PyTorch, or the evidence for a tag.
"""
