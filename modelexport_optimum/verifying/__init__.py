"""The checks of a finished export: its config against its graphs, and each execution provider."""
