"""Many exports: what to run, who runs it, and what became of each."""
