"""What the local pool's workers have in common: importing this is all the imports.

The pool's server imports it once, and every worker is a copy of that process.
"""

import gc

from modelexport_optimum.system.import_path import forget_current_directory

forget_current_directory()

from modelexport_optimum.batches.worker import import_all  # noqa: E402 (without that directory)

import_all()
gc.freeze()  # the collector would touch, and so copy, what the workers share
