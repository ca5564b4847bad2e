"""What a conformance check says: findings, what could not be checked, how often it errs."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pts.testing.statistics import FALSE_ALARM


@dataclass(frozen=True, slots=True)
class Finding:
    """One way in which an engine breaks the protocol.

    `check` names the rule (see `pts.testing.conformance`), `where` the sampling
    settings, the problem and the position, `cause` what most likely went wrong. Equal findings at
    other places are counted in `more`.
    """

    check: str
    where: str
    expected: str
    observed: str
    cause: str
    more: int = 0

    def __str__(self) -> str:
        others = f" (and {self.more} more like it)" if self.more else ""
        return (
            f"{self.check}: {self.where}{others}\n  expected: {self.expected}\n"
            f"  observed: {self.observed}\n  likely cause: {self.cause}"
        )


@dataclass(frozen=True, slots=True)
class ConformanceReport:
    """The result of `check_engine`: `ok`, or the findings. `print(report)` tells all of it."""

    engine: str
    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    """Names of the checks that ran to their end, once each."""
    unchecked: tuple[str, ...]
    """What could not be checked, and why."""
    tests: int
    """Statistical tests made. Each can raise a false alarm; see `false_alarm`."""
    false_alarm: float
    """Upper bound on the probability that a right engine gets a statistical finding."""

    @property
    def ok(self) -> bool:
        """True when nothing was found."""
        return not self.findings

    def __str__(self) -> str:
        head = f"{self.engine}: " + ("conforms" if self.ok else f"{len(self.findings)} findings")
        body = [head, *(str(finding) for finding in self.findings)]
        body.append(f"checked: {', '.join(self.checked) or 'nothing'}")
        body += [f"not checked: {reason}" for reason in self.unchecked]
        body.append(f"{self.tests} tests, false alarms in at most {self.false_alarm:.1g} of checks")
        return "\n".join(body)


@dataclass
class FindingCollector:
    """Collects findings while checks run; equal ones are merged."""

    findings: dict[tuple[str, str, str], Finding] = field(default_factory=dict)
    checked: dict[str, None] = field(default_factory=dict)
    unchecked: dict[str, None] = field(default_factory=dict)
    tests: int = 0
    seen: set[str] = field(default_factory=set)
    """Things that must occur somewhere for a rule to have been tried, such as "stopped"."""

    def add(self, check: str, where: str, expected: str, observed: str, cause: str) -> None:
        """Note a finding; one of the same check, settings and cause is only counted."""
        key = (check, where.partition(";")[0], cause)
        if key in self.findings:
            known = self.findings[key]
            self.findings[key] = dataclasses.replace(known, more=known.more + 1)
        else:
            self.findings[key] = Finding(check, where, expected, observed, cause)

    def skip(self, reason: str) -> None:
        """Note something that could not be checked."""
        self.unchecked[reason] = None

    @contextmanager
    def part(self, check: str, where: str) -> Iterator[None]:
        """Run a part of the checks: an exception of the engine ends it and becomes a finding."""
        try:
            yield
        except Exception as error:  # whatever the engine raises is what is reported
            told = f"{type(error).__name__}: {error}"
            origin = traceback.extract_tb(error.__traceback__)[-1]
            cause = f"raised in {Path(origin.filename).name}:{origin.lineno} ({origin.name})"
            self.add(check, where, "no exception", told, cause)
        else:
            self.checked[check] = None

    def report(self, engine: str) -> ConformanceReport:
        """The report on all that was collected."""
        return ConformanceReport(
            engine=engine,
            findings=tuple(self.findings.values()),
            checked=tuple(self.checked),
            unchecked=tuple(self.unchecked),
            tests=self.tests,
            false_alarm=min(1.0, self.tests * FALSE_ALARM),
        )


def clipped(values: object, length: int = 120) -> str:
    """A value's repr, cut to fit into a line."""
    text = repr(values)
    return text if len(text) <= length else text[: length - 1] + "…"
