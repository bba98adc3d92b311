"""Importing this module imports what every worker of the local pool needs.

multiprocessing's fork server imports it once, and every worker is a copy of that process.
"""

import gc

from modelexport_optimum.system.import_path import forget_current_directory

forget_current_directory()

from modelexport_optimum.batches.worker import import_all  # noqa: E402 (without that directory)

import_all()
gc.freeze()  # else the collector writes to each object, and a page that is written is copied
