"""Run a command until it ends, or until whoever started this is gone: `supervisor.py WORD...`.

The standard input is a pipe that is never written to. When its other end is closed, by the program
that holds it or because that was killed in whatever way, the command and all processes of its group
are ended: asked to at first, then killed. Run by path, with nothing but the standard library.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

PATIENCE = 10.0
"""Seconds between asking a command to end and killing it."""


def supervise(words: Sequence[str]) -> int:
    """Run a command in a process group of its own; its exit status, 128 + n for signal n."""
    try:
        child = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{words[0]}: {error.strerror}", flush=True)
        return 127
    threading.Thread(target=_end_with_the_pipe, args=(child.pid,), daemon=True).start()
    code = child.wait()
    end_group(child.pid)
    return code if code >= 0 else 128 - code


def _end_with_the_pipe(group: int) -> None:
    while os.read(0, 1024):
        pass
    end_group(group)


def end_group(group: int) -> None:
    """End all processes of a group."""
    for sent, seconds in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, 1.0)):
        end = time.monotonic() + seconds
        try:
            os.killpg(group, sent)
            while time.monotonic() < end:
                os.killpg(group, 0)
                time.sleep(0.02)
        except (ProcessLookupError, PermissionError):  # none of them is left
            return


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[1:]))
