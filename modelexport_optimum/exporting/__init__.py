"""Optimum's exporter, driven: its options, the model's source, the conversion, the output.

It gives to others: `options.ExportOptions`, which declares the options of one export;
`source.find_source`, which says where a model is or why it cannot be had;
`optimum_export.export_source` and `export_model`, which convert; and `staging`, which publishes
a directory by one rename.

It must not know Typer, batches, or what is checked of a finished export. Of `tagging` it uses the
module tree and the traced graphs of the model that is converted, and it writes no tag.
"""
