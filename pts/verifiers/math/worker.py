"""The process behind `MathVerifier`: one JSON question a line in, one JSON reply a line out.

Run by `pts.verifiers.math.verifier`. A question comes with the CPU time that it may take; beyond it
the kernel ends the process by SIGPROF, in the middle of a multiplication of C, too. How much time
may pass by the clock is the parent's matter.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from typing import Any

MEMORY_BYTES = 4 << 30


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Parse the reference; with a text, parse its last answer and compare."""
    from math_verify import parse, verify

    reference = question["reference"]
    written = any(mark in reference for mark in ("$", r"\boxed", r"\(", r"\["))
    gold = parse(reference if written else f"${reference}$", parsing_timeout=None)
    if question["text"] is None:
        return {"readable": bool(gold)}
    found = parse(question["text"], parsing_timeout=None)
    equal = bool(found) and verify(gold, found, timeout_seconds=None)
    return {"equal": bool(equal), "answer": str(found[-1]) if found else None}


def main() -> None:
    """Answer until standard input ends. Stray prints of libraries go to standard error."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # whoever started us may have ignored it
    logging.disable(logging.CRITICAL)
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import math_verify  # noqa: F401 - before "ready", so that no question pays for it

    print("ready", file=replies)
    for line in sys.stdin:
        question = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, question["seconds"])
        reply = answer(question)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), file=replies)


if __name__ == "__main__":
    main()
