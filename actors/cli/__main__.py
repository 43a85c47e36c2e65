"""The script `rayfold`, and `python -m rayfold.actors.cli`: the command line from its first moment on.

Rule kept here: Ctrl-C and SIGTERM end it with one line and 130 also while its modules are imported, half a second in
which nothing else of Rayfold could catch them.
"""

from __future__ import annotations

import signal
import sys

__all__ = ["main"]

INTERRUPTED = 130


def main() -> None:
    """The entry point of the script; `main.py` has what it does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from .main import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
