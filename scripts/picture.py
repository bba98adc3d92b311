"""Run `make demo` in a terminal of its own, and draw what it shows as docs/demo.svg."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docs" / "demo.svg"
COLUMNS, ROWS = 100, 50
TITLE = "make demo"

# Escape sequences that move the cursor or hide it, which a picture has no use for.
MOVES = re.compile(r"\x1b\[[0-9;?]*[A-HJKSThl]")


def record(command: list[str]) -> str:
    """Return what a command writes to a terminal.

    Args:
        command: Program and arguments.
    """
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(ROOT)
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
        os.execvp(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    written = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        written += part
    _, status = os.waitpid(process, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{written.decode()}")
    return written.decode()


def settled(written: str) -> list[str]:
    """Return the lines as they stand in the end: of what was written over, only the last."""
    lines = []
    for line in written.replace("\r\n", "\n").split("\n"):
        lines.append(MOVES.sub("", line.rpartition("\r")[2]))
    return lines


def main() -> None:
    """Draw the picture."""
    written = record(["make", "demo"])
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text("$ make demo", style="bold"))
    for line in settled(written):
        console.print(Text.from_ansi(line), soft_wrap=True)
    FILE.parent.mkdir(exist_ok=True)
    picture = console.export_svg(title=TITLE)
    # rich would fetch its font from the network; any monospaced one does.
    FILE.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL))


if __name__ == "__main__":
    main()
