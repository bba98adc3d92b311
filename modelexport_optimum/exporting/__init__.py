"""Optimum's exporter, driven: the model's source, the conversion, the output directory."""
