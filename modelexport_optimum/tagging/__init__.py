"""The pass: which module each node came from, and writing that onto it."""
