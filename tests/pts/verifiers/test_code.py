"""Honest code: what passes, what fails and why, and what cannot be judged."""

from __future__ import annotations

import gc
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pts.errors import ConfigError
from pts.types import Grade, Problem, Verdict
from pts.verifiers.code import sandbox as code_sandbox
from pts.verifiers.code.extract import extract_code
from pts.verifiers.code.verifier import CodeVerifier
from pts.verifiers.registry import make_verifier
from tests.pts.verifiers.code_isolation import available, make

PASS, FAIL, UNSCORED = Verdict.PASS, Verdict.FAIL, Verdict.UNSCORED


@pytest.fixture(scope="module")
def verifier() -> Iterator[CodeVerifier]:
    made = make(available())
    yield made
    made.close()


def judge(verifier: CodeVerifier, code: str, tests: str, **metadata: Any) -> Grade:
    return verifier(Problem("q1", "Write it.", tests, metadata), code)


HUMANEVAL_PROMPT = '''from typing import List


def below_zero(operations: List[int]) -> bool:
    """ Whether the balance ever falls below zero.
    >>> below_zero([1, 2, 3])
    False
    """
'''
HUMANEVAL_TEST = """

METADATA = {'author': 'jt', 'dataset': 'test'}


def check(candidate):
    assert candidate([]) == False
    assert candidate([1, 2, -3, 1, 2, -3]) == False
    assert candidate([1, 2, -4, 5, 6]) == True
"""
HUMANEVAL_BODY = """    balance = 0
    for step in operations:
        balance += step
        if balance < 0:
            return True
    return False
"""


def test_a_function_is_continued_from_its_prefix(verifier: CodeVerifier) -> None:
    columns = {"entry_point": "below_zero", "prefix": HUMANEVAL_PROMPT}
    assert judge(verifier, HUMANEVAL_BODY, HUMANEVAL_TEST, **columns).verdict is PASS
    said = judge(verifier, "    return False\n", HUMANEVAL_TEST, **columns)
    assert said.verdict is FAIL
    assert said.reason == "assertion: assert candidate([1, 2, -4, 5, 6]) == True"
    whole = f"```python\n{HUMANEVAL_PROMPT}{HUMANEVAL_BODY}```"
    assert judge(verifier, whole, HUMANEVAL_TEST, **columns).verdict is PASS


def test_the_prompt_is_not_judged(verifier: CodeVerifier) -> None:
    problem = Problem("q1", HUMANEVAL_PROMPT, HUMANEVAL_TEST, {"entry_point": "below_zero"})
    assert verifier(problem, HUMANEVAL_BODY).verdict is FAIL


COMPUTED = [
    ("def f(): return 'aé\\ud800'", "assert f() == 'aé\\ud800'"),
    ("def f(): return 2 ** 20000", "assert f() == 1 << 20000"),
    ("def f(): return -2 ** 63 - 1", "assert f() == -9223372036854775809"),
    ("def f(): return float('inf'), -0.5", "assert f() == (float('inf'), -0.5)"),
    ("def f(): return float('nan')", "x = f()\nassert x != x"),
    (
        "def f(): return b'\\x00\\xff', bytearray(b'a')",
        "assert f() == (b'\\x00\\xff', bytearray(b'a'))",
    ),
    ("def f(): return {1: [2, {3}], (4,): None}", "assert f() == {1: [2, {3}], (4,): None}"),
    (
        "def f(): return frozenset('ab'), 1j, range(3)",
        "assert f() == (frozenset('ab'), 1j, range(3))",
    ),
    ("def f(): return True", "assert f() is True"),
    ("def f(): return [1]", "assert isinstance(f(), list) and type(f()[0]) is int"),
    (
        "from collections import *\n"
        "def f(): return Counter('aab'), deque([1], 3), OrderedDict(a=1)",
        "from collections import *\nassert f() == (Counter('aab'), deque([1]), OrderedDict(a=1))",
    ),
    (
        "from collections import defaultdict\n"
        "def f():\n d = defaultdict(list)\n d[1].append(2)\n return d",
        "assert f() == {1: [2]}",
    ),
    (
        "from decimal import Decimal\nfrom fractions import Fraction\nimport datetime\n"
        "def f(): return Decimal('1.10'), Fraction(2, 6), datetime.date(2024, 2, 29)",
        "from decimal import Decimal\nfrom fractions import Fraction\nimport datetime\n"
        "assert f() == (Decimal('1.1'), Fraction(1, 3), datetime.date(2024, 2, 29))",
    ),
    (
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)",
        "assert f() == (1, 2) and f().y == 2",
    ),
    ("import enum\nclass E(enum.IntEnum):\n A = 3\ndef f(): return E.A", "assert f() == 3"),
    ("class S(str): pass\ndef f(): return S('a')", "assert f() == 'a'"),
    ("def f(n):\n for i in range(n): yield i", "assert list(f(3)) == [0, 1, 2]"),
    (
        "def f():\n n = 0\n while True:\n  yield n\n  n += 1",
        "g = f()\nassert (next(g), next(g)) == (0, 1)",
    ),
    ("def f(n): return lambda m: n + m", "assert f(1)(2) == 3 and callable(f(1))"),
    ("def f(g, xs): return [g(x) for x in xs]", "assert f(lambda x: x * 2, [1, 2]) == [2, 4]"),
    ("def f(g, xs): return list(map(g, xs))", "assert f(str, iter([1, 2])) == ['1', '2']"),
    ("def f(key): return sorted(['bb', 'a'], key=key)", "assert f(len) == ['a', 'bb']"),
    ("def f(xs, *, up): xs.sort(reverse=not up)", "a = [1, 2]\nf(a, up=False)\nassert a == [2, 1]"),
    ("def f(d): d['k'] = 1", "a = {}\nf(a)\nassert a == {'k': 1}"),
    ("def f(x=[], **kw): return kw", "assert f(a=1) == {'a': 1}"),
    (
        "import math\ndef f(): return math.pi, 1 / 3",
        "assert math.isclose(f()[0], 3.14159, abs_tol=1e-4)\nassert f()[1] == 1 / 3",
    ),
    ("def helper(x): return x\ndef f(x): return x", "assert helper(f(1)) == 1"),
    ("def f(): print('noise')\nf()", "assert f() is None"),
    ("def f(): return 1", "from solution import f as g\nassert g() == 1"),
    ("def f(): return 1", "def test_one():\n    assert f() == 1"),
    ("def f(): return 1", json.dumps(["assert f() == 1", "assert f() != 2"])),
    (
        "def f(a, b=0): return [a, b, None, True]",
        json.dumps({"fn_name": "f", "inputs": [[1, "é"]], "outputs": [[1, "é", None, True]]}),
    ),
]


IN_PLACE = [
    ("def f(m): m.sort()", "a = [2, 1]\nf(m=a)\nassert a == [1, 2]"),
    (
        "def f(p, q, *, r, s): p.append(q.pop() + r.pop())\n",
        "a, b, c, d = [1], [2], [3], [4]\nf(a, b, s=d, r=c)\n"
        "assert (a, b, c, d) == ([1, 5], [], [], [4])",
    ),
    (
        "def f(m):\n for row in m: row.reverse()",
        "row = [1, 2]\nm = [row]\nf(m)\nassert row == [2, 1] and m[0] is row",
    ),
    ("def f(m): m.reverse()", "a, b = [1], [2]\nm = [a, b]\nf(m)\nassert m[0] is b and b == [2]"),
    ("def f(m): m[0] = [9]", "a = [1]\nm = [a]\nf(m)\nassert m == [[9]] and a == [1]"),
    ("def f(t): t[0].append(1)", "a = []\nf((a, 2))\nassert a == [1]"),
    ("def f(d): d['k'].add(2)", "s = {1}\nf({'k': s})\nassert s == {1, 2}"),
    ("def f(a, b): a.append(1)\n", "a = []\nf(a, a)\nassert a == [1]"),
    ("def f(a, b): return a is b", "a = []\nassert f(a, a) and not f(a, [])"),
    ("def f(m): m[0][0] = 1", "m = [[0]] * 2\nf(m)\nassert m == [[1], [1]]"),
    ("def f(a, b):\n a.extend(b)\n return a", "a = [1]\nassert f(a, [2]) is a and a == [1, 2]"),
    ("def f(d, k): return d.setdefault(k, [])", "d = {'k': [1]}\nassert f(d, 'k') is d['k']"),
    ("def f(a): a.append(a)", "a = []\nf(a)\nassert a[0] is a"),
    ("def f(a, b): b.append(max(a))", "b = []\nf(iter([1, 2]), b)\nassert b == [2]"),
    (
        "def f(a, b): b.append(a['k'])",
        "from collections import defaultdict\n"
        "a, b = defaultdict(list, k=[1]), []\nf(a, b)\nassert b == [[1]]",
    ),
    (
        "class S:\n def __init__(self, n): self.n = n\n def put(self, xs): xs.append(self.n)",
        "a = [5]\nS(1).put(a)\nassert a == [5, 1]",
    ),
    (
        "def f(g, a):\n a.append(g([0]))\n return a",
        "def g(xs):\n b = []\n inner(b)\n return xs + b\n"
        "a = []\nassert f(g, a) is a and a == [[0, 7]]",
    ),
]


@pytest.mark.parametrize(("code", "tests"), IN_PLACE)
def test_arguments_are_changed_in_place(verifier: CodeVerifier, code: str, tests: str) -> None:
    """As Python itself would: the same tests pass with the code in front of them."""
    code += "\ndef inner(b): b.append(7)\n"
    exec(code + tests, {})
    said = judge(verifier, code, tests)
    assert said.verdict is PASS, said.reason


@pytest.mark.parametrize(("code", "tests"), COMPUTED)
def test_values_arrive_as_they_were_returned(verifier: CodeVerifier, code: str, tests: str) -> None:
    said = judge(verifier, code, tests)
    assert said == Grade(PASS, code), said.reason


CLASSES = [
    (
        "class V:\n"
        " def __init__(self, x): self.x = x\n"
        " def __add__(self, o): return V(self.x + o.x)\n"
        " def __eq__(self, o): return self.x == o.x\n"
        " def __lt__(self, o): return self.x < o.x\n",
        "a, b = V(1), V(2)\n"
        "assert a + b == V(3) and a != b and sorted([b, a])[0].x == 1\n"
        "a.x = 5\nassert a.x == 5 and a + b == V(7)\nassert isinstance(a, V)\n"
        "assert not isinstance(3, V)",
    ),
    (
        "class Stack(list):\n def push(self, x): self.append(x)",
        "s = Stack()\ns.push(1)\ns.push(2)\nassert s.pop() == 2 and len(s) == 1 and s[0] == 1",
    ),
    (
        "class E(ValueError): pass\ndef f(x):\n if x < 0: raise E('low', x)",
        "try:\n    f(-1)\n    assert False\n"
        "except E as error:\n    assert error.args == ('low', -1)",
    ),
    (
        "def f(x): raise ValueError(x)",
        "try:\n    f(-1)\n    assert False\nexcept ValueError:\n    pass",
    ),
    (
        "def f(x): return {}[x]",
        "try:\n    f('k')\nexcept KeyError as error:\n    assert error.args == ('k',)\n"
        "else:\n    assert False",
    ),
    (
        "class N:\n def __init__(self, v): self.v, self.next = v, None\n"
        "def total(n):\n t = 0\n while n: t, n = t + n.v, n.next\n return t",
        "a = N(1)\na.next = N(2)\nassert total(a) == 3 and a.next is a.next",
    ),
    (
        "class C:\n def __enter__(self): return 7\n def __exit__(self, *a): pass\n"
        " @property\n def p(self): return 2\n @classmethod\n def make(cls): return cls()",
        "with C.make() as x:\n    assert x == 7\nassert C().p == 2",
    ),
]


@pytest.mark.parametrize(("code", "tests"), CLASSES)
def test_objects_are_used_where_they_are(verifier: CodeVerifier, code: str, tests: str) -> None:
    assert judge(verifier, code, tests).reason == ""


WRONG = [
    ("def f(): return 2", "assert f() == 1", "assertion: assert f() == 1"),
    ("def f(): return [1]", "assert f() == (1,)", r"assertion: assert f\(\) == \(1,\)"),
    ("def f(): return 1 / 0", "assert f() == 1", "exception: ZeroDivisionError: division by zero"),
    ("def f(:", "assert f() == 1", "exception: SyntaxError: .*line 1"),
    ("x = undefined", "assert x", "exception: NameError: name 'undefined' is not defined"),
    ("def g(): return 1", "assert f() == 1", "missing: the code defines nothing that the tests"),
    ("def g(): return 1", "assert g() and f()", "exception: NameError: .*'f'.* the tests"),
    ("def f(): return 1", "assert True", "missing: the code defines nothing that the tests"),
    ("def f(): return None", "assert f()[0] == 1", "exception: TypeError: .* the tests"),
    ("def f(): assert False", "assert f() == 1", "exception: AssertionError"),
    ("import numpy", "assert numpy", "exception: ModuleNotFoundError: No module named 'numpy'"),
    ("def f(): return []", "for x in f():\n    assert x > 0", "no assertion .* was reached"),
    ("def f():\n l = []\n l.append(l)\n return l", "assert f() == 1", "exception: RecursionError"),
    ("def f(): return 'a' * (9 << 20)", "assert f() == 1", "exception: ValueError: .* 8 MiB"),
    ("\x00", "assert f() == 1", "exception: (ValueError|SyntaxError): .*null bytes"),
    ("def f(): return '\ud800'", "assert f() == 1", "exception: UnicodeEncodeError"),
    ("I cannot do this.", "assert f() == 1", "exception: SyntaxError"),
    ("", "assert f() == 1", "no code"),
    ("```python\n```", "assert f() == 1", "no code"),
]


@pytest.mark.parametrize(("code", "tests", "reason"), WRONG)
def test_wrong_code_fails_with_its_reason(
    verifier: CodeVerifier, code: str, tests: str, reason: str
) -> None:
    said = judge(verifier, code, tests)
    assert said.verdict is FAIL
    assert reason in said.reason or re.search(reason, said.reason), said.reason


def test_a_missing_function_is_told(verifier: CodeVerifier) -> None:
    said = judge(verifier, "def g(): pass", HUMANEVAL_TEST, entry_point="below_zero")
    assert (said.verdict, said.reason) == (FAIL, "missing: the code defines no 'below_zero'")


@pytest.mark.parametrize(
    ("reference", "metadata", "reason"),
    [
        ("assert f( == 1", {}, "do not compile"),
        ("", {}, "hold no assertion"),
        ("print(f())", {}, "hold no assertion"),
        ("import numpy\nassert f() == numpy.ones(1)", {}, "import numpy"),
        (HUMANEVAL_TEST, {}, "no entry point"),
        ("assert f() == 1", {"entry_point": 3}, "'entry_point' must be text"),
        ("assert f() == 1", {"prefix": ["x"]}, "'prefix' must be text"),
        ('{"inputs": ["1"], "outputs": []}', {}, "1 inputs, but 0 outputs"),
        ('{"inputs": [], "outputs": []}', {}, "no cases"),
        ('{"fn_name": "f", "inputs": [1], "outputs": [1]}', {}, "list of a call's arguments"),
        ('{"fn_name": "f()", "inputs": [[1]], "outputs": [1]}', {}, "fn_name must be the name"),
        ('{"inputs": [1], "outputs": ["2"]}', {}, "must be text"),
        ("[1, 2]", {}, "JSON tests are"),
        ("class N: pass\nassert f(N()) == 1", {}, "the tests pass a N to the code"),
        ("(" * 5000, {}, "do not compile"),
        ("assert f(object()) == 1", {}, "the tests pass a object to the code"),
    ],
)
def test_broken_tests_are_unscored(
    verifier: CodeVerifier, reference: str, metadata: dict[str, Any], reason: str
) -> None:
    said = judge(verifier, "def f(x=0): return 1", reference, **metadata)
    assert said.verdict is UNSCORED
    assert reason in said.reason


def test_broken_tests_are_found_without_code(verifier: CodeVerifier) -> None:
    assert judge(verifier, "", "assert f( == 1").verdict is UNSCORED


PROGRAM = "import sys\nn = int(input())\nprint(n * 2)\nsys.stdout.write(sys.stdin.read())\n"


def test_programs_are_judged_by_what_they_print(verifier: CodeVerifier) -> None:
    cases = {"inputs": ["1\nrest\n", "2"], "outputs": ["2\nrest", "4  \n\n"]}
    assert judge(verifier, PROGRAM, json.dumps(cases)).verdict is PASS


PROGRAMS = [
    ("print(3)", "case 1 of 2: output: line 1: '3', expected '2'"),
    ("print(2)", "case 2 of 2: output: line 1: '2', expected '4'"),
    ("print(2)\nprint(2)", "case 1 of 2: output: 2 lines printed, 1 expected"),
    ("print(int('x'))", "case 1 of 2: exception: ValueError: invalid literal"),
    ("import sys\nprint(2)\nsys.exit(3)", "case 1 of 2: exited early: status 3"),
    ("for _ in range(1000): print('x' * 100000)", "case 1 of 2: output: [Errno 27] File too large"),
    ("import os\nos.abort()", "case 1 of 2: killed: SIGABRT"),
]


@pytest.mark.parametrize(("code", "reason"), PROGRAMS)
def test_wrong_programs(verifier: CodeVerifier, code: str, reason: str) -> None:
    cases = json.dumps({"inputs": ["1", "2"], "outputs": ["2", "4"]})
    said = judge(verifier, code, cases)
    assert said.verdict is FAIL
    assert said.reason.startswith(reason), said.reason


def test_a_program_ends_as_usual(verifier: CodeVerifier) -> None:
    code = (
        "import atexit, sys, threading\n"
        "def main():\n    sys.stdout.write('a')\n"
        "atexit.register(print, 'z')\n"
        "threading.Thread(target=main).start()\n"
        "if __name__ == '__main__':\n    quit()\n"
    )
    assert judge(verifier, code, json.dumps({"inputs": [""], "outputs": ["az"]})).reason == ""


def test_runs_are_repeatable(verifier: CodeVerifier) -> None:
    code = "import random\ndef f(): return random.random(), hash('a'), list({'a', 'b', 'c'})"
    tests = "assert f() == 0, f()"
    failed = [judge(verifier, f"{code}\n# {n}\nassert 0, f()", tests).reason for n in range(2)]
    assert failed[0] == failed[1]
    assert failed[0].startswith("exception: AssertionError: (0.")
    seeded = "import random\nrandom.seed(0)\nassert f()[0] == random.random()"
    assert judge(verifier, code, seeded).verdict is PASS


def test_equal_questions_are_asked_once(
    verifier: CodeVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = judge(verifier, "def f(): return 41", "assert f() == 41")
    monkeypatch.setattr(verifier, "_sandbox", None)
    assert judge(verifier, "def f(): return 41", "assert f() == 41") == first


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1\n", "x = 1\n"),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```python\nx = 1\n```\n```python\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\n```\nRun:\n```bash\nls\n```", "x = 1\n"),
        ("```\nx = 1\n```\n```\nx = 2\n```", "x = 2\n"),
        ("```Python title=a\nx = 1\n```", "x = 1\n"),
        ("```py\nx = 1", "x = 1"),
        ("~~~python\nx = 1\n~~~", "x = 1\n"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("1. So:\n   ```python\nx = 1\n   ```", "x = 1\n"),
        ("```python\r\nx = 1\r\n```", "x = 1\r\n"),
        ("a ``` b", "a ``` b"),
        ("```python", ""),
    ],
)
def test_extraction(text: str, code: str) -> None:
    assert extract_code(text) == code


def test_it_works_in_threads(verifier: CodeVerifier) -> None:
    said: dict[int, Verdict] = {}

    def ask(n: int) -> None:
        said[n] = judge(verifier, f"def f(): return {n}", f"assert f() == {n}").verdict

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(1000, 1004)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(said.values()) == {PASS}
    assert len(said) == 4


def test_a_killed_sandbox_is_started_again() -> None:
    verifier = make(available())
    sandbox = verifier._sandbox
    sandbox._process.kill()
    sandbox._process.wait()
    assert judge(verifier, "def f(): return 1", "assert f() == 1").verdict is PASS
    verifier.close()
    assert judge(verifier, "def f(): return 2", "assert f() == 2").verdict is PASS
    verifier.close()


def test_a_sandbox_that_cannot_start_again_is_unscored(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = make(available())
    verifier.close()
    monkeypatch.setattr(code_sandbox, "_START", "raise SystemExit('no such luck')")
    said = judge(verifier, "def f(): return 1", "assert f() == 1")
    assert (said.verdict, said.reason) == (UNSCORED, "no such luck")
    monkeypatch.undo()
    assert judge(verifier, "def f(): return 1", "assert f() == 1").verdict is PASS
    verifier.close()


def test_the_sandbox_goes_with_its_verifier() -> None:
    verifier = make(available())
    sandbox = verifier._sandbox
    process, folder = sandbox._process, Path(sandbox._folder)
    assert process.poll() is None
    del verifier, sandbox
    gc.collect()
    assert process.poll() is not None
    assert not folder.exists()


def test_a_copy_for_another_process_judges_alike(verifier: CodeVerifier) -> None:
    copy = pickle.loads(pickle.dumps(verifier))
    assert copy.isolation == verifier.isolation
    for code, verdict in (("def f(): return 1", PASS), ("def f(): return 2", FAIL)):
        assert judge(copy, code, "assert f() == 1").verdict is verdict
    copy.close()


def test_without_a_sandbox_nothing_runs_and_the_remedy_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=r"bwrap is not installed.*apt install bubblewrap"):
        CodeVerifier(isolation="bwrap")
    monkeypatch.setattr(code_sandbox, "_START", "raise SystemExit('no Landlock')")
    with pytest.raises(ConfigError, match=r"bwrap is not installed; landlock: no Landlock.*5\.13"):
        CodeVerifier()


def test_where_namespaces_are_forbidden_landlock_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("landlock").close()
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ConfigError, match="bwrap: No permissions"):
        CodeVerifier(isolation="bwrap")
    made = CodeVerifier()
    assert made.isolation == "landlock"
    assert judge(made, "def f(): return 1", "assert f() == 1").verdict is PASS
    made.close()


def test_every_bad_setting_is_told() -> None:
    with pytest.raises(ConfigError) as caught:
        CodeVerifier(timeout=0, memory=1, isolation="bwarp")  # type: ignore[arg-type]
    told = "\n".join(caught.value.problems)
    assert "timeout" in told
    assert "memory" in told
    assert "did you mean 'bwrap'" in told


def test_by_name() -> None:
    isolation = available()
    spec = f"code: timeout = 2.5,memory=256,isolation={isolation},prefix=start,entry_point=fn"
    made = make_verifier(spec)
    assert isinstance(made, CodeVerifier)
    assert (made.timeout, made.memory, made.isolation) == (2.5, 256, isolation)
    assert (made.prefix, made.entry_point) == ("start", "fn")
    made.close()


def test_bad_options_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        make_verifier("code:timout=5,memory=1.5,prefix,prefix=a,prefix=b")
    assert caught.value.problems == (
        "code: no option 'timout'; did you mean 'timeout'?",
        "code: memory must be a whole number, got '1.5'",
        "code: option 'prefix' needs a value, e.g. code:timeout=5,memory=512",
        "code: option 'prefix' is given twice",
    )


def test_the_settings_are_part_of_a_runs_fingerprint(verifier: CodeVerifier) -> None:
    from pts.runtime.described import describe_verifier

    told = describe_verifier(verifier)
    assert "memory=512" in told
    assert "timeout=5.0" in told
    assert f"isolation={verifier.isolation!r}" in told
    assert "object at" not in told


def test_it_is_loaded_only_when_asked_for() -> None:
    name = "pts.verifiers.code.verifier.verifier"
    code = f"import pts, sys; pts.make_verifier; assert {name!r} not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_a_killed_process_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    script = (
        "import os, signal\n"
        "from pts.verifiers.code.verifier import CodeVerifier\n"
        f"CodeVerifier(isolation={available()!r})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script], env=environment, check=False)
        time.sleep(0.2)  # the sandbox ends when its verifier is gone
        assert len(list(tmp_path.glob("pts-code-*.lock"))) == 1
        assert len([path for path in tmp_path.iterdir() if path.is_dir()]) <= 1
