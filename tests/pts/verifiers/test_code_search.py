"""A whole search whose rollouts are judged by unit tests in the sandbox."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pts.runtime.search import search
from pts.types import Problem
from tests.pts.scripted import ScriptedEngine, judge_odd, problems
from tests.pts.slow_search import CONFIG
from tests.pts.verifiers.code_isolation import available, make

PREFIX = "class Spell:\n    def __getattr__(self, name): return name\n\ndef f(): return Spell()."
ODD = "assert f().count('a') % 2 == 1"


def test_a_search_by_unit_tests_is_the_search_by_the_rule_that_they_test(tmp_path: Path) -> None:
    """The engine's completions are words of a, b and c, which end the prefix's last line."""
    asked = [Problem(p.id, p.prompt, ODD, {"prefix": PREFIX}) for p in problems(3)]
    verifier = make(available())
    judged = search(asked, ScriptedEngine(4), verifier, CONFIG, output=tmp_path / "run")
    expected = search(problems(3), ScriptedEngine(4), judge_odd, CONFIG)
    assert judged.pairs == expected.pairs
    assert list(judged.results) == list(expected.results)
    assert replace(judged.summary, seconds=0.0) == replace(expected.summary, seconds=0.0)
    verifier.close()
    again = search(asked, ScriptedEngine(4), make(available()), CONFIG, output=tmp_path / "run")
    assert list(again.results) == list(expected.results)
