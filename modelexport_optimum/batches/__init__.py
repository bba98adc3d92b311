"""Many exports: a manifest's lines become jobs, a runner runs them, each leaves a record.

It gives to others: `run.batch` and its `BatchResult`; to `cli` also `jobs.Watcher`, which is told
how a batch goes on. `resources.Resources` declares the options that a line has and `export` has
not. The jobs run in `local_pool` or on `ray_cluster`, which both call `worker.run_job`.

It must not know Typer or how anything is printed, and what is inside of one export: it calls
`export()` alone.
"""
