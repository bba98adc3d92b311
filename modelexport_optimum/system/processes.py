"""How a process ended, in the user's words."""

from __future__ import annotations

import signal


def ending(status: int) -> str:
    """Tell how a process ended, by its exit code as `subprocess` gives it."""
    if status >= 0:
        return f"its process ended with exit status {status}"
    name = signal.Signals(-status).name
    if -status == signal.SIGKILL:
        return f"its process was killed ({name}), as the system does when memory runs out"
    return f"its process was ended by {name}"
