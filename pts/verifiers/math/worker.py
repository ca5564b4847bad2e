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

from pts.verifiers.math import answers, places, prose, values

MEMORY_BYTES = 4 << 30


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Say what is wrong with the reference; with a text, compare its last answer.

    The text is what `places.answered` leaves of a completion.
    """
    reference = places.declared(question["reference"]) or question["reference"]
    if question["text"] is None:
        return {"fault": _fault(reference)}
    text = question["text"]
    given, found = places.declared(text), list[Any]()
    if given is None:
        given, found = _last_expression(prose.with_minus(places.undeclared(text)))
    if given is None:
        return {"equal": False, "answer": None}
    return {"equal": _equal(reference, given, found), "answer": given}


def _last_expression(text: str) -> tuple[str | None, list[Any]]:
    """What a text without a declaration ends with, and what the library has read of it."""
    found = _parse(text)
    if not found:
        return None, []
    number = str(found[-1])
    if several := prose.several(number, text):
        return several, []
    return prose.with_its_word(number, text), found


def reply(question: dict[str, Any]) -> dict[str, Any]:
    """The answer to a question, or the fault that the library met with it."""
    try:
        return answer(question)
    except MemoryError:
        raise  # what is left of this process is not to be trusted
    except Exception as error:  # of any kind: sympy has many
        said = f"{type(error).__name__}: {error}"[:200]
        key = "fault" if question["text"] is None else "error"
        return {key: f"cannot be compared ({said})"}


def _fault(reference: str) -> str:
    """Why a reference cannot be read; empty for a good one."""
    if values.exact(reference) or answers.words(reference) or answers.ends(reference):
        return ""
    formula = answers.latex(reference)
    if unknown := answers.unknown_words(formula):
        return f"holds words that are no unit: {', '.join(unknown[:3])}"
    return "" if _parse(f"${formula}$") else "is no mathematical answer"


def _equal(reference: str, given: str, found: list[Any]) -> bool:
    """`found` is what the library has read already, if it has."""
    wanted, value = values.exact(reference), values.exact(given)
    if wanted and value:
        return wanted.equals(value)
    ranges = answers.ranges(reference, given)
    if ranges is not None:
        return bool(ranges) and all(_equal(a, b, []) for a, b in ranges)
    (sign, rest), (other, other_rest) = answers.relation(reference), answers.relation(given)
    if sign or other:
        return sign == other and _equal(rest, other_rest, [])
    spelled = answers.spelled(reference, given)
    if spelled is not None:
        return spelled
    if wanted and answers.unreadable(given):
        return False
    lists = answers.elements(reference), answers.elements(given)
    if lists[0] and lists[1]:
        return _same_elements(*lists[0], *lists[1])
    if (lists[0] and value) or (lists[1] and wanted):
        return False
    formulas = [answers.latex(reference)]
    if "\\" not in reference and r"\log" in formulas[0]:  # in code the natural logarithm
        formulas.append(formulas[0].replace(r"\log", r"\ln"))
    found = found or _parse(f"${answers.latex(given)}$")
    if found and _is_number(found[0]) and answers.unknowns(given) and not value:
        return False  # the library has passed over what it takes for a unit
    return any(_same(_parse(f"${formula}$"), found) for formula in formulas)


def _same_elements(kind: str, wanted: list[str], other: str, given: list[str]) -> bool:
    """Tuples, and values of named unknowns, in their order; sets and lists in any."""
    if len(wanted) != len(given) or {"(", "{"} <= {kind, other}:
        return False
    names = [
        {one.name for part in parts if (one := values.exact(part))} for parts in (wanted, given)
    ]
    if "(" in (kind, other) or (len(names[0]) > 1 and names[1] == {""}):
        return all(_equal(a, b, []) for a, b in zip(wanted, given, strict=True))
    left = list(given)
    for part in wanted:
        match = next((one for one in left if _equal(part, one, [])), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    return list(parse(text, parsing_timeout=None))


def _same(gold: list[Any], found: list[Any]) -> bool:
    """Whether the library takes them for equal, and the numbers among them are so exactly."""
    from math_verify import verify

    if not gold or not found:
        return False
    if not verify(gold, found, timeout_seconds=None, allow_set_relation_comp=True):
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
    between = sympy.N(a - b, 30)
    if not between.is_finite:  # infinities have no difference
        return bool(a == b)
    return bool(abs(between) <= 1e-6 * abs(sympy.N(a, 30)))


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
        said = reply(question)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(said), file=replies)


if __name__ == "__main__":
    main()
