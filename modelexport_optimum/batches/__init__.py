"""Many exports: a manifest's lines become jobs, a runner runs them, each leaves a record.

It provides: `run.batch` and its `BatchResult`; for `cli` also `jobs.Watcher`, which receives the
events of a batch. `resources.Resources` declares the options that only a line has, and not
`export`. The jobs run in `local_pool` or on `ray_cluster`, which both call `worker.run_job`.

It must not know Typer, how anything is printed, or the steps of an export: it only calls
`export()`.
"""
