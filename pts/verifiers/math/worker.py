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

from pts.verifiers.math import answers

MEMORY_BYTES = 4 << 30


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Say what is wrong with the reference; with a text, compare its last answer."""
    reference = answers.declared(question["reference"]) or question["reference"]
    if question["text"] is None:
        return {"fault": _fault(reference)}
    text = question["text"]
    given = answers.declared(text)
    found: list[Any] = []
    if given is None:
        found = _parse(answers.without_counts(text))
        given = str(found[-1]) if found else None
    if given is None:
        return {"equal": False, "answer": None}
    return {"equal": _equal(reference, given, text, found), "answer": given}


def _fault(reference: str) -> str:
    """Why a reference cannot be read; empty for a good one."""
    if answers.exact(reference) or answers.words(reference):
        return ""
    formula = answers.latex(reference)
    if unknown := answers.unknown_words(formula):
        return f"holds words that are no unit: {', '.join(unknown[:3])}"
    return "" if _parse(f"${formula}$") else "is no mathematical answer"


def _equal(reference: str, given: str, text: str, found: list[Any]) -> bool:
    wanted, value = answers.exact(reference), answers.exact(given)
    if wanted and value:
        return wanted.equals(value)
    spelled = answers.spelled(reference, given)
    if spelled is not None:
        return spelled
    formulas = [answers.latex(reference)]
    if "\\" not in reference and r"\log" in formulas[0]:  # in code the natural logarithm
        formulas.append(formulas[0].replace(r"\log", r"\ln"))
    found = found or _parse(f"${answers.latex(given)}$") or _parse(text)
    return any(_same(_parse(f"${formula}$"), found) for formula in formulas)


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    return list(parse(text, parsing_timeout=None))


def _same(gold: list[Any], found: list[Any]) -> bool:
    """Whether the library takes them for equal, and the numbers among them are so exactly."""
    from math_verify import verify

    if not gold or not found or not verify(gold, found, timeout_seconds=None):
        return False
    return not (_is_number(gold[0]) and _is_number(found[0])) or _close(gold[0], found[0])


def _is_number(value: Any) -> bool:
    return not isinstance(value, str) and bool(getattr(value, "is_number", False))


def _close(a: Any, b: Any) -> bool:
    """Equal where both are rational, else to a relative 1e-6: the library rounds to 1e-6."""
    import sympy

    a, b = (sympy.nsimplify(x.doit(), rational=True) for x in (a, b))
    if a.is_rational and b.is_rational:
        return bool(a == b)
    return bool(abs(sympy.N(a - b, 30)) <= 1e-6 * abs(sympy.N(a, 30)))


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
