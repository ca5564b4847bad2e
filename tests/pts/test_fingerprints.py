from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace

from pts.files import asked_digest, plain, rollouts_digest
from pts.types import Problem

PROBLEM = Problem("a", "1+1=", "2", {"tags": frozenset({"sum", "easy", "short"}), "level": 1})


def test_sets_objects_and_functions_say_the_same_in_every_process() -> None:
    code = (
        "from tests.pts.test_fingerprints import PROBLEM, asked_digest, plain, rollouts_digest\n"
        "print(asked_digest(PROBLEM), rollouts_digest(PROBLEM, (1,)), plain((object(), len)))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(told) == 1


def test_other_content_is_another_problem() -> None:
    changes = [{"prompt": "1+2="}, {"reference": "3"}, {"metadata": {}}, {"completions": ((1,),)}]
    digests = {asked_digest(replace(PROBLEM, **change)) for change in changes}  # type: ignore[arg-type]
    assert len(digests | {asked_digest(PROBLEM)}) == 5
    assert asked_digest(replace(PROBLEM, id="b")) == asked_digest(PROBLEM)
    assert rollouts_digest(PROBLEM, (1,)) != rollouts_digest(PROBLEM, (2,))


def test_plain_values_stay_as_they_are() -> None:
    assert plain(("a", 1, 2.5, None, [True])) == ("a", 1, 2.5, None, [True])
    assert plain({"b": {2, 1}, "a": re.compile("x+")}) == [("a", "x+"), ("b", [1, 2])]
