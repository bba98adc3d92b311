"""Importing this module imports what every worker of the local pool needs.

multiprocessing's fork server imports it once, and every worker is a copy of that process.
"""

from modelexport_optimum.system.import_path import forget_current_directory

forget_current_directory()

# Without that directory.
from modelexport_optimum.batches.worker import import_all  # noqa: E402
from modelexport_optimum.system.lean_imports import freeze_collector_for_good  # noqa: E402

import_all()
# The collector writes to each object that it looks at, and a page that is written is copied.
freeze_collector_for_good()
