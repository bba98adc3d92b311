"""One run of Optimum's exporter: its options, the model's source, the conversion, the output.

It provides: `options.ExportOptions`, which declares the options of one export;
`source.find_source`, which says where a model is or why it cannot be loaded;
`optimum_export.export_source` and `export_model`, which convert; and `staging`, which publishes a
directory by one rename.

It must not know Typer, batches, or the checks of a finished export. It records the module tree and
the traced graphs of the converted model, and writes no tag.
"""
