"""A verifier for Python code, by unit tests in a sandbox.

    verifier = CodeVerifier(timeout=5, memory=512)

**What `reference` holds.** The tests, as text in one of these forms:

* Python that asserts something of what the code defines (MBPP):
  `assert add(1, 2) == 3`. Functions `test_*()` are called.
* Python that defines `check(candidate)` (HumanEval). The problem's column `entry_point` names the
  function that is handed to it.
* JSON, a list of such lines: `["assert add(1, 2) == 3", "assert add(0, 0) == 0"]`.
* JSON, calls of one function: `{"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}`. Values are
  compared as JSON has them (`pts.verifiers.code.tests.same_json`).
* JSON, whole programs, by what they read and print:
  `{"inputs": ["1 2\\n"], "outputs": ["3\\n"]}`. Blanks at the ends of lines and blank lines at the
  end do not count. APPS' lists of lines are joined.
* JSON of LiveCodeBench, `[{"input": ..., "output": ..., "testtype": "stdin"}]`; "functional" tests
  need the column `entry_point`.

A function may also be a method of `class Solution`. Tests are tried once without any code; those
that fail on their own are UNSCORED.

**What is judged.** See `pts.verifiers.code.extract`. The problem's column `prefix`, where there is
one, stands before it.

**What is run where.** The code runs in a process of its own that never holds the tests; the tests
run in another one and use the code through stand-ins. Values are compared there, on copies, so
printed verdicts, early exits, patched builtins and objects that equal everything lead to FAIL. Both
processes are without network, without writable files outside a folder of their own, without the
right to start or to signal processes, and limited in CPU time, time and memory. Code that breaks a
limit is FAIL; UNSCORED are tests that can test nothing, and a sandbox that does not start.

**What it does not cover.** Packages outside the standard library (and tests that import them);
tests by `unittest`, or that capture what a function prints; coroutines; objects of the tests' own
classes passed to the code; operators between plain data and objects of the code's classes (the
answer would be the code's to choose). Whether two objects of the code's classes are equal is what
the code says. Code that is right by chance, or that finds the right values
in the problem itself. Faults of the kernel, and what the processor leaks (a virtual machine is the
answer where that matters). With `landlock` the code can ask whether a file exists, and cannot write
even in its own folder. Threads are limited by memory alone when the verifier runs as root.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

from pts.errors import ConfigError, DataError, VerifierError, did_you_mean
from pts.types import Grade, Problem, Verdict
from pts.verifiers.code import lockdown
from pts.verifiers.code.extract import extract_code
from pts.verifiers.code.sandbox import Isolation, JobLimits, Sandbox
from pts.verifiers.code.text import Asserts, Tests, read_tests
from pts.verifiers.memo import Memo

ISOLATIONS: tuple[Isolation, ...] = ("bwrap", "landlock")
LEAST_MEMORY = 128
"""MiB that the interpreter and its standard library need."""
MOST_TEXT = 1 << 20
"""Characters of code that are tried at most."""

_REMEDY = (
    "install bubblewrap 0.7 or newer (apt install bubblewrap; dnf install bubblewrap), which also "
    "needs user namespaces (docker run --security-opt seccomp=unconfined --security-opt "
    "apparmor=unconfined), or use a kernel with Landlock (Linux 5.13 or newer); without either, "
    "model-written code is not run"
)


class CodeVerifier:
    """Runs the tests of `problem.reference` on a completion's code.

    Args:
        timeout: CPU seconds of one run (all asserts, or one program), rounded up to whole ones;
            four times as many (and one more) may pass by the clock, so that a busy machine changes
            no verdict.
        memory: MiB of address space of one process.
        isolation: "bwrap", "landlock", or "auto": the first of them that works here. The attribute
            of this name holds which it is.
        prefix: metadata column whose text stands before the completion's code: imports, or the
            beginning of a function that the completion continues.
        entry_point: metadata column that names the function under test.

    Raises ConfigError for bad settings, and where the system offers no such isolation.
    """

    def __init__(
        self,
        timeout: float = 5.0,
        memory: int = 512,
        isolation: Isolation | Literal["auto"] = "auto",
        prefix: str = "prefix",
        entry_point: str = "entry_point",
    ) -> None:
        faults = []
        if not (isinstance(timeout, (int, float)) and 0 < timeout <= 3600):
            faults.append(f"timeout must be more than 0 and at most 3600 seconds, got {timeout!r}")
        if not (isinstance(memory, int) and LEAST_MEMORY <= memory <= 1 << 20):
            faults.append(f"memory must be whole MiB, {LEAST_MEMORY} to {1 << 20}, got {memory!r}")
        known = ("auto", *ISOLATIONS)
        if isolation not in known:
            hint = did_you_mean(str(isolation), known) or f"; give {', '.join(known)}"
            faults.append(f"no isolation {isolation!r}{hint}")
        if sys.platform != "linux" or not lockdown.supported():
            faults.append("the code verifier needs Linux on x86-64 or ARM64")
        if faults:
            raise ConfigError(*faults)
        self.timeout, self.memory = timeout, memory
        self.prefix, self.entry_point = prefix, entry_point
        limits = JobLimits(math.ceil(timeout), 4 * timeout + 1, memory << 20)
        self.isolation, self._sandbox = _start(isolation, limits)
        self._read = lru_cache(maxsize=4096)(read_tests)
        self._fault = lru_cache(maxsize=4096)(self._try_tests)
        self._verdicts = Memo[tuple[Verdict, str]]()

    def __call__(self, problem: Problem, text: str) -> Grade:
        try:
            prefix = _text(problem.metadata, self.prefix)
            entry_point = _text(problem.metadata, self.entry_point)
            tests = self._read(problem.reference, entry_point)
        except DataError as error:
            return Grade(Verdict.UNSCORED, reason=f"reference of {problem.id}: {error}")
        wanted: frozenset[str] = frozenset()
        if isinstance(tests, Asserts):
            try:
                wanted, fault = tests.wanted, self._fault(tests)
            except VerifierError as error:
                return Grade(Verdict.UNSCORED, reason=str(error))
            if fault:
                return Grade(Verdict.UNSCORED, reason=f"reference of {problem.id}: {fault}")
        code = extract_code(text, wanted, prefix)
        if not code.strip():
            return Grade(Verdict.FAIL, reason="no code")
        if len(code) > MOST_TEXT:
            return Grade(Verdict.FAIL, reason=f"more than {MOST_TEXT} characters of code")
        try:
            whole = _with_types(prefix + code)
            verdict, reason = self._verdicts.recall(
                (problem.reference, entry_point, whole), lambda: self._run(whole, tests)
            )
        except VerifierError as error:
            return Grade(Verdict.UNSCORED, code, str(error))
        return Grade(verdict, code, reason)

    def __reduce__(self) -> tuple[type[CodeVerifier], tuple[float, int, Isolation, str, str]]:
        """A copy in another process starts a sandbox of its own, of the same kind."""
        settings = (self.timeout, self.memory, self.isolation, self.prefix, self.entry_point)
        return type(self), settings

    def close(self) -> None:
        """End the sandbox now; it also ends with the verifier. The next call starts a new one."""
        self._sandbox.stop()

    def _try_tests(self, tests: Asserts) -> str:
        """What is wrong with tests whatever the code, empty for nothing.

        They run on stand-ins that leave when they are called. What fails before that, does so with
        every code. (A TypeError may come of a stand-in where the tests expect a constant.)
        """
        code = "\n".join(f"def {name}(*a, **k): raise SystemExit" for name in sorted(tests.wanted))
        reply = self._sandbox.ask(_job(code, tests)) or {}
        kind, detail = reply.get("kind"), str(reply.get("detail"))
        if kind in ("time limit", "memory"):
            return f"the tests break their limits without any code ({kind}: {detail})"
        own = kind == "exception" and reply.get("untouched") and not detail.startswith("TypeError")
        return f"the tests fail without any code ({detail})" if own else ""

    def _run(self, code: str, tests: Tests) -> tuple[Verdict, str]:
        if isinstance(tests, Asserts):
            return self._ask(_job(code, tests))
        for number, case in enumerate(tests, 1):
            verdict, reason = self._ask({"code": code, "stdin": case.stdin, "stdout": case.stdout})
            if verdict is not Verdict.PASS:
                return verdict, f"case {number} of {len(tests)}: {reason}"
        return Verdict.PASS, ""

    def _ask(self, job: dict[str, Any]) -> tuple[Verdict, str]:
        reply = self._sandbox.ask(job)
        if reply is None:  # only what the code did can have silenced it
            return Verdict.FAIL, "killed: the sandbox did not answer"
        reason = ": ".join(str(part) for part in (reply["kind"], reply["detail"]) if part)
        if reply["verdict"] == "unscored":
            raise VerifierError(reason)
        return Verdict(reply["verdict"]), reason


def _with_types(code: str) -> str:
    """LeetCode's classes use the names of `typing` without importing them, as LeetCode does."""
    if "class Solution" not in code or "__future__" in code:
        return code
    return f"from typing import *\n{code}"


def _job(code: str, tests: Asserts) -> dict[str, Any]:
    given = {"tests": tests.tests, "entry_point": tests.entry_point, "as_json": tests.as_json}
    return {"code": code, **given}


def _text(metadata: Mapping[str, Any], column: str) -> str:
    value = metadata.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"column {column!r} must be text, got {value!r}")
    return value


def _start(isolation: Isolation | Literal["auto"], limits: JobLimits) -> tuple[Isolation, Sandbox]:
    """The first sandbox that works. Raises ConfigError with what each of them lacks."""
    faults = []
    for kind in ISOLATIONS if isolation == "auto" else (isolation,):
        try:
            return kind, Sandbox(kind, limits)
        except VerifierError as error:
            faults.append(f"{kind}: {error}")
    raise ConfigError(f"no sandbox for code works here ({'; '.join(faults)}); {_REMEDY}")
