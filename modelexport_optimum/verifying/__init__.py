"""The checks of a finished export: its config against its graphs, and each execution provider.

It provides: `verify.verify` and its `VerifyReport`, and `verify.chosen_providers`, which returns
the providers for the names from the user.

It reads an exported directory and changes nothing there. It must not know how the export was made
(`exporting`), or the views of its hierarchy (`hierarchy`).
"""
