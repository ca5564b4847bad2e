"""A verifier for mathematical answers, by the `math-verify` library (extra `math`).

    verifier = MathVerifier(seconds=5)

**What is compared.** The answer that a completion declares last: what \\boxed holds, else what
follows "answer is", "answers are", "answer:" or "####", else its last expression, with the list or
range ("3 and 4", "12–15") that it ends. A range equals that range only. Rational numbers are
compared exactly, however they are spelled: fractions, mixed numbers, decimals, powers of ten,
percentages (which also equal their hundredth), money and numbers with a unit, which is not
compared. Words, times, numbers with a base and lists with dots are compared as they are spelled.
Everything else is parsed by the library as LaTeX or as a plain formula ("pi/2", "x**2", "log(2)"
with either base) and compared symbolically, its numbers to a relative 1e-6 where they are
irrational.

Model-written expressions can make it run for hours (9^9^9…) and its own time limit works by
signals, which only the main thread receives; so it runs in a worker process that ends when the
limit has passed. The limit is one of CPU time, so that a busy or suspended machine changes no
verdict. An answer that takes longer is FAIL, a reference that takes longer or cannot be read is
UNSCORED. Equal questions are asked once, unless the worker dies or is held up (ten times the limit,
and a minute, pass by the clock): that raises VerifierError, so the completion is UNSCORED, and is
asked anew when it comes again.

Not covered: proofs, units that differ, numbers in words, decimal commas.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import selectors
import signal
import subprocess
import sys
import weakref
from functools import lru_cache
from typing import Any

from pts.errors import MissingExtra, VerifierError
from pts.types import Grade, Problem, Verdict
from pts.verifiers.math import places, values
from pts.verifiers.memo import Memo

START_SECONDS = 60.0
"""Allowed for the worker's imports."""
PATIENCE = 60.0
"""Seconds by the clock, beyond ten times the CPU time, after which a worker counts as held up.

So many because the CPU time is to be reached first, even with ten busy processes a core.
"""


class MathVerifier:
    """Compares a completion's final answer with the reference as mathematics.

    `seconds` is the CPU time that one comparison may take. Raises MissingExtra without
    `math-verify`, and VerifierError where a worker does not answer.
    """

    def __init__(self, seconds: float = 5.0) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise MissingExtra("math-verify", "math")
        self.seconds = seconds
        self._worker: _Worker | None = None
        self._fault = lru_cache(maxsize=4096)(self._read_reference)
        self._grades = Memo[Grade]()

    def __reduce__(self) -> tuple[type[MathVerifier], tuple[float]]:
        """A copy in another process has a worker of its own."""
        return type(self), (self.seconds,)

    def __call__(self, problem: Problem, text: str) -> Grade:
        fault = self._fault(problem.reference)
        if fault:
            reason = f"reference of {problem.id}: {problem.reference!r} {fault}"
            return Grade(Verdict.UNSCORED, reason=reason)
        said = places.answered(text)
        return self._grades.recall(
            (problem.reference, said), lambda: self._ask_comparison(problem.reference, said)
        )

    def _read_reference(self, reference: str) -> str:
        """What is wrong with a reference; empty for a good one."""
        if values.exact(places.declared(reference) or reference):
            return ""  # without a process
        reply = self._ask(reference, None)
        if reply is None:
            return f"takes longer than {self.seconds:g} s to read"
        return str(reply["fault"])

    def _ask_comparison(self, reference: str, text: str) -> Grade:
        reply = self._ask(reference, text)
        if reply is None:
            reason = f"comparing took longer than {self.seconds:g} s"
            return Grade(Verdict.FAIL, reason=reason)
        if "error" in reply:
            raise VerifierError(f"the answer {reply['error']}")
        if reply["equal"]:
            return Grade(Verdict.PASS, reply["answer"])
        why = f"expected {reference}" if reply["answer"] is not None else "no final answer"
        return Grade(Verdict.FAIL, reply["answer"], why)

    def _ask(self, reference: str, text: str | None) -> dict[str, Any] | None:
        """The worker's reply; None when its CPU time was used up.

        Raises VerifierError for a worker that is dead or held up; the next call starts another.
        """
        if self._worker is None:
            self._worker = _Worker()
        question = {"reference": reference, "text": text, "seconds": self.seconds}
        try:
            reply = self._worker.ask(question, 10 * self.seconds + PATIENCE)
        except VerifierError:
            self._drop_worker()
            raise
        if reply is None:
            self._drop_worker()
        return reply

    def _drop_worker(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None


class _Worker:
    """A process that answers one JSON line with one JSON line."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "pts.verifiers.math.worker"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.stop = weakref.finalize(self, _stop, self._process)
        if self._line(START_SECONDS) != b"ready\n":
            self.stop()
            raise VerifierError("the math-verify worker did not start; run: pip check")

    def ask(self, question: dict[str, Any], wall: float) -> dict[str, Any] | None:
        """The reply; None when the question's CPU time was used up, which ends the worker.

        Raises VerifierError after `wall` seconds by the clock, and when the worker dies.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise VerifierError("the math-verify worker died between two questions") from None
        line = self._line(wall)
        if line is None:
            raise VerifierError(
                f"the math-verify worker was held up: {wall:g} s passed, but less than "
                f"{question['seconds']:g} s of CPU time (busy machine?)"
            )
        if line:
            return dict(json.loads(line))
        if self._process.wait() == -signal.SIGPROF:
            return None
        raise VerifierError("the math-verify worker died (out of memory?)")

    def _line(self, seconds: float) -> bytes | None:
        """One line, b"" at the end of the stream, or None when time is up."""
        assert self._process.stdout is not None
        data = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not data.endswith(b"\n"):
                if not selector.select(seconds):
                    return None
                chunk = os.read(self._process.stdout.fileno(), 65536)
                if not chunk:
                    return b""
                data += chunk
        return data


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # a question it died on is still buffered
                pipe.close()
