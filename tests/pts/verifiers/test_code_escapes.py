"""Hostile code: every attempt to get out, to stay, or to fake a pass ends as FAIL.

Each program returns "escaped" where it got what it wanted, which is what the tests ask for: a
PASS would be an escape. An attempt must do no harm where a guard is broken: signals are number 0,
bombs end by themselves, files are the test's own, and mounts have no place to go to.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pts.types import Grade, Problem, Verdict
from pts.verifiers.code.sandbox import Isolation
from pts.verifiers.code.verifier import CodeVerifier
from tests.pts.verifiers.code_isolation import make

ESCAPED = "assert f() == 'escaped'"
SECRET = "a-secret-of-the-user"
DENIED = "forbidden: PermissionError"


@pytest.fixture(scope="module", params=["bwrap", "landlock"])
def verifier(request: pytest.FixtureRequest) -> Iterator[CodeVerifier]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTS_TEST_SECRET", SECRET)
        made = make(request.param, timeout=2, memory=192)
        yield made
        made.close()


@pytest.fixture(scope="module", params=["bwrap", "landlock"])
def hasty(request: pytest.FixtureRequest) -> Iterator[CodeVerifier]:
    made = make(request.param, timeout=0.1, memory=192)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """No process of a job outlives it: what runs is the sandbox's own server, as before."""
    yield
    wait_until(lambda: not judged_processes())


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, judged_processes()
        time.sleep(0.02)


def judged_processes(owner: int = 0) -> list[int]:
    """Harnesses and processes of judged code under `owner` (this process): children of a server."""
    owner = owner or os.getpid()
    parents: dict[int, int] = {}
    servers: set[int] = set()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{entry}/stat").read_text()
            line = Path(f"/proc/{entry}/cmdline").read_text()
        except OSError:
            continue
        parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
        if "verifiers.code.worker" in line and "bwrap" not in line.split("\0")[0]:
            servers.add(int(entry))

    def above(pid: int) -> list[int]:
        return [pid, *above(parents[pid])] if pid in parents else []

    def judged(pid: int) -> bool:
        line = above(pid)
        return owner in line and len(servers & set(line[: line.index(owner)])) > 1

    return [pid for pid in servers if judged(pid)]


def judge(verifier: CodeVerifier, code: str, tests: str = ESCAPED) -> Grade:
    return verifier(Problem("q1", "", tests), code)


def attempt(body: str) -> str:
    return "def f():\n" + "".join(f"    {line}\n" for line in body.strip().splitlines())


ANYWHERE = {
    "connect": (
        "import socket\nsocket.create_connection(('127.0.0.1', 1))\nreturn 'escaped'",
        DENIED,
    ),
    "resolve a name": (
        "import socket\nsocket.getaddrinfo('localhost', 80, type=socket.SOCK_STREAM)\n"
        "socket.gethostbyname('example.com')\nreturn 'escaped'",
        "exception: gaierror|forbidden",
    ),
    "datagrams": (
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nreturn 'escaped'",
        DENIED,
    ),
    "a socket of the system": (
        "import socket\nsocket.socket(socket.AF_UNIX).connect('/run/docker.sock')\n"
        "return 'escaped'",
        DENIED,
    ),
    "system calls by number": (
        "import ctypes, platform\nlibc = ctypes.CDLL(None)\n"
        "socket, clone = (41, 56) if platform.machine() == 'x86_64' else (198, 220)\n"
        "calls = [(socket + other, 2, 1, 0) for other in (0, 0x40000000)]\n"
        "calls += [(clone, 17, 0, 0, 0, 0), (435, 0, 0), (425, 1, 0)]\n"
        "return 'escaped' if any(libc.syscall(*call) != -1 for call in calls) else 'no'",
        "assertion",
    ),
    "capabilities": (
        "import ctypes, struct\nlibc = ctypes.CDLL(None)\n"
        "found = ctypes.create_string_buffer(24)\n"
        "if libc.capget(struct.pack('Ii', 0x20080522, 0), found) == -1: return 'no'\n"
        "return 'escaped' if any(found.raw) else 'no'",
        "assertion",
    ),
    "read the memory of the tests": (
        "import ctypes, os\nlibc = ctypes.CDLL(None)\n"
        "buffer = ctypes.create_string_buffer(8)\n"
        "Span = ctypes.c_size_t * 2\n"
        "ours, theirs = Span(ctypes.addressof(buffer), 8), Span(id(None), 8)\n"
        "read = libc.process_vm_readv(os.getppid(), ctypes.byref(ours), 1,\n"
        "                             ctypes.byref(theirs), 1, 0)\n"
        "return 'escaped' if read != -1 else 'no'",
        "assertion",
    ),
    "a child that answers": (
        "import os\nif os.fork() == 0:\n    return 'escaped'\nos._exit(0)",
        DENIED,
    ),
    "raise the hard limit": (
        "import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (1 << 20, 1 << 20))\n"
        "return 'escaped'",
        "exception: ValueError|forbidden",
    ),
    "fork bomb": (
        "import os\nfor _ in range(3):\n    if os.fork() == 0: os._exit(0)\nreturn 'escaped'",
        DENIED,
    ),
    "daemonise": (
        "import os\nif os.fork() == 0:\n    os.setsid()\n    os._exit(0)\nreturn 'escaped'",
        DENIED,
    ),
    "own session": ("import os\nos.setsid()\nreturn 'escaped'", DENIED),
    "start a program": (
        "import subprocess\nsubprocess.run(['/bin/sh', '-c', 'true'])\nreturn 'escaped'",
        "forbidden|exception: FileNotFoundError",
    ),
    "become a program": (
        "import os, sys\nos.execv(sys.executable or '/bin/sh', ['sh'])\nreturn 'escaped'",
        DENIED,
    ),
    "shell": (
        "import os\nreturn 'escaped' if os.system('true') == 0 else 'no'",
        "assertion",
    ),
    # Signal 0 asks for the right to kill and kills nothing: a sandbox that fails this test must not
    # take the machine with it.
    "kill the parent": ("import os\nos.kill(os.getppid(), 0)\nreturn 'escaped'", DENIED),
    "kill everything": ("import os\nos.kill(-1, 0)\nreturn 'escaped'", DENIED),
    "kill its group": ("import os\nos.killpg(0, 0)\nreturn 'escaped'", DENIED),
    "limit the parent": (
        "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU)\n"
        "return 'escaped'",
        DENIED,
    ),
    "raise its limits": (
        "import resource\nfor which in (resource.RLIMIT_AS, resource.RLIMIT_CPU):\n"
        "    resource.setrlimit(which, (-1, -1))\nreturn 'escaped'",
        "exception: ValueError|forbidden",
    ),
    "trace the parent": (
        "import ctypes, os\nlibc = ctypes.CDLL(None)\n"
        "traced = libc.ptrace(16, os.getppid(), 0, 0)\n"
        "return 'escaped' if traced == 0 else 'no'",
        "assertion",
    ),
    "new namespaces": (
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "flags = (0x10000000, 0x20000, 0x20000000, 0x40000000)\n"
        "return 'escaped' if 0 in [libc.unshare(flag) for flag in flags] else 'no'",
        "assertion",
    ),
    "mount": (
        "import ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "libc.mount(b'none', b'/no/such/place', b'tmpfs', 0, None)\n"
        "return 'escaped' if ctypes.get_errno() != errno.EPERM else 'no'",
        "assertion",
    ),
    "become root": ("import os\nos.setuid(0)\nreturn 'escaped'", DENIED),
    "memory outside the limit": (
        "import os\nfd = os.memfd_create('x')\nos.write(fd, b'x')\nreturn 'escaped'",
        DENIED,
    ),
    "leave its parent's death unnoticed": (
        "import ctypes\nreturn 'escaped' if ctypes.CDLL(None).prctl(1, 0) == 0 else 'no'",
        "assertion",
    ),
    "make a device": (
        "import os, stat\nos.mknod('disk', 0o600 | stat.S_IFBLK, os.makedev(8, 0))\n"
        "return 'escaped'",
        DENIED,
    ),
    "memory bomb": (
        "data = [bytearray(1 << 24) for _ in range(32)]\nreturn 'escaped'",
        "memory: Memory",
    ),
    "zip bomb": (
        "import zlib\npacked = zlib.compress(bytes(1 << 27), 9)\n"
        "data = [zlib.decompress(packed) for _ in range(4)]\nreturn 'escaped'",
        "memory|exception: error|time limit",
    ),
    "map memory": (
        "import mmap\nheld = mmap.mmap(-1, 1 << 34)\nreturn 'escaped'",
        "exception: OSError|memory",
    ),
    "endless recursion": (
        "import sys\nsys.setrecursionlimit(10 ** 9)\n"
        "def deeper(x): return [*map(deeper, [x])]\nreturn deeper(1)",
        "killed: SIGSEGV|memory|time limit",
    ),
    "crash": ("import ctypes\nctypes.string_at(0)\nreturn 'escaped'", "killed: SIGSEGV"),
    "kill itself": ("import os\nos.kill(os.getpid(), 9)", "killed: SIGKILL"),
    "raise SystemExit": ("raise SystemExit(0)", "exited early: SystemExit: 0"),
    "exit at once": ("import os\nos._exit(0)", "exited early: status 0"),
    "raise KeyboardInterrupt": ("raise KeyboardInterrupt", "exception: KeyboardInterrupt"),
    "raise GeneratorExit": ("raise GeneratorExit", "exception: GeneratorExit"),
    "raise StopIteration": ("raise StopIteration('escaped')", "exception: StopIteration"),
    "print the verdict": (
        "import json, os\n"
        "for fd in (0, 1, 2, *range(4, 64)):\n"
        "    try: os.write(fd, json.dumps({'verdict': 'pass'}).encode() + b'\\n')\n"
        "    except OSError: pass",
        "assertion",
    ),
    "forge a reply": (
        "import json, os, struct\n"
        "frame = json.dumps({'ok': ['builtin', 'NotImplemented'], 'verdict': 'pass'}).encode()\n"
        "os.write(3, struct.pack('>I', len(frame)) + frame)",
        "assertion",
    ),
    "a huge frame": (
        "import os, struct\nos.write(3, struct.pack('>I', 2 ** 32 - 1))\nos._exit(0)",
        "exited early",
    ),
    "an object that equals everything": (
        "class Yes:\n    def __eq__(self, other): return True\n"
        "    def __ne__(self, other): return False\n    def __hash__(self): return 0\nreturn Yes()",
        "assertion",
    ),
    "text that equals everything": (
        "class Yes(str):\n    def __eq__(self, other): return True\n    __hash__ = str.__hash__\n"
        "return Yes('no')",
        "assertion",
    ),
    "patched builtins": (
        "import builtins\nbuiltins.AssertionError = None\nbuiltins.str = lambda *a: 'escaped'\n"
        "builtins.isinstance = builtins.all = lambda *a: True\nreturn 'no'",
        "assertion|exception|exited early",
    ),
    "patched type slots": (
        "import ctypes, gc\n"
        "slots = gc.get_referents(str.__dict__)[0]\n"
        "slots['__eq__'] = lambda a, b: True\n"
        "ctypes.pythonapi.PyType_Modified(ctypes.py_object(str))\nreturn 'no'",
        "assertion|exception|exited early|killed",
    ),
    "import the project": (
        "import pts.verifiers.code.verifier\nreturn 'escaped'",
        "exception: ModuleNotFoundError: No module named 'pts'",
    ),
    "import installed packages": (
        "import numpy\nreturn 'escaped'",
        "exception: ModuleNotFoundError: No module named 'numpy'",
    ),
    "read the environment": (
        "import os\nfor value in os.environ.values():\n"
        f"    if {SECRET!r} in value: return 'escaped'",
        "assertion",
    ),
}
"""What neither sandbox allows: body of `f`, and the reason that the verdict must have."""


@pytest.mark.parametrize("name", ANYWHERE)
def test_attempt(verifier: CodeVerifier, name: str) -> None:
    body, reason = ANYWHERE[name]
    said = judge(verifier, attempt(body))
    assert said.verdict is Verdict.FAIL
    assert re.match(reason, said.reason), said.reason


PROJECT = str(Path(__file__))
FILES = {
    "one big file": (
        "with open('big', 'wb') as file:\n    for _ in range(20): file.write(bytes(1 << 20))\n"
        "return 'escaped'",
        r"output: \[Errno 27\] File too large",
    ),
    "read the shadow file": ("return open('/etc/shadow').read() and 'escaped'", "exception: FileN"),
    "read the project": (f"return open({PROJECT!r}).read() and 'escaped'", "exception: FileN"),
    "list the home": (
        f"import os, sys\nfound = os.listdir({str(Path.home())!r})\n"
        "return 'no' if all(name in os.__file__ for name in found) else 'escaped'",
        "exception: FileNotFoundError|assertion",
    ),
    "read other processes": ("import os\nos.listdir('/proc')\nreturn 'escaped'", "exception: File"),
    "write to the memory of the tests": (
        "import os\nopen(f'/proc/{os.getppid()}/mem', 'r+b')\nreturn 'escaped'",
        "exception: FileN",
    ),
    "read the environment of the tests": (
        "import os\nopen(f'/proc/{os.getppid()}/environ')\nreturn 'escaped'",
        "exception: FileN",
    ),
    "read its own memory map": ("open('/proc/self/maps')\nreturn 'escaped'", "exception: FileN"),
    "write to the root": (
        "open('/pts-escape', 'w')\nreturn 'escaped'",
        "forbidden: OSError.*Read-only",
    ),
    "write to the library": (
        "import os\nopen(os.path.dirname(os.__file__) + '/pts-escape', 'w')\nreturn 'escaped'",
        "forbidden: ",
    ),
    "write compiled modules": (
        "import os\nos.mkdir(os.path.dirname(os.__file__) + '/pts-escape')\nreturn 'escaped'",
        "forbidden: ",
    ),
    "write over the judge": (
        "open('/judge/pts/verifiers/code/worker.py', 'w')\nreturn 'escaped'",
        "forbidden: ",
    ),
    "change the library's mode": (
        "import os\nos.chmod(os.__file__, os.stat(os.__file__).st_mode & 0o7777)\nreturn 'escaped'",
        "forbidden: ",
    ),
    "a database outside": (
        "import sqlite3\nsqlite3.connect('/pts-escape').execute('create table t (a)')\n"
        "return 'escaped'",
        "exception: OperationalError",
    ),
    "follow a link out": (
        "import os\nos.symlink('/etc/passwd', 'link')\nopen('link').read()\nreturn 'escaped'",
        "exception: FileNotFoundError",
    ),
    "climb out of the folder": (
        "import os\nos.symlink('/', 'up')\nopen('up/../../../pts-escape', 'w')\nreturn 'escaped'",
        "forbidden: ",
    ),
    "many files": (
        "for n in range(10):\n    with open(f'f{n}', 'wb') as file: file.write(bytes(1 << 23))",
        "forbidden: OSError: .*No space left",
    ),
    "open a disk": (
        "import os\nfound = set(os.listdir('/dev'))\n"
        "return 'no' if found <= {'null', 'zero', 'random', 'urandom'} else 'escaped'",
        "assertion",
    ),
    "fill the device folder": ("open('/dev/x', 'w')\nreturn 'escaped'", "forbidden: "),
}
"""Attempts on files, and the reason in bubblewrap; Landlock may also say that it is forbidden."""


@pytest.mark.parametrize("name", FILES)
def test_attempt_on_files(verifier: CodeVerifier, name: str) -> None:
    body, reason = FILES[name]
    if verifier.isolation == "landlock":
        reason += f"|{DENIED}|exception: FileNotFoundError"
    said = judge(verifier, attempt(body))
    assert said.verdict is Verdict.FAIL
    assert re.match(reason, said.reason), said.reason


def test_nothing_of_the_host_listens_to_the_code(verifier: CodeVerifier) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        body = f"import socket\nsocket.create_connection(('127.0.0.1', {port}))\nreturn 'escaped'"
        assert re.match(DENIED, judge(verifier, attempt(body)).reason)


def test_the_folder_is_new_for_every_run(verifier: CodeVerifier) -> None:
    if verifier.isolation == "landlock":
        pytest.skip("with Landlock nothing can be written")
    body = "import os\nold = os.listdir('.')\nopen('left', 'w').close()\nreturn old or 'clean'"
    for n in range(3):
        said = judge(verifier, f"{attempt(body)}# {n}", "assert f() == 'clean'")
        assert said.reason == ""


SEARCH = """
import gc, sys
def f():
    needle, seen, frame = sum([987000, 654]), [], sys._getframe(1)
    while frame:
        seen += [*frame.f_locals.values(), *frame.f_globals.values(), frame.f_code.co_consts]
        frame = frame.f_back
    for value in [*gc.get_objects(), *seen]:
        if type(value) in (list, tuple) and needle in value:
            return True
        if type(value) is str and str(needle) in value:
            return True
    return False
"""


def test_the_tests_are_not_in_reach_of_the_code(verifier: CodeVerifier) -> None:
    tests = "hidden = [987654]\nassert f() is False"
    assert judge(verifier, SEARCH, tests).reason == ""
    assert judge(verifier, SEARCH + "x = [987654]", tests).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    "definition",
    [
        "class f:\n    def __init__(self): pass\n    def __eq__(self, other): return True",
        "class F:\n    def __sub__(self, other): return 0.0\n    __rsub__ = __sub__\n"
        "    def __abs__(self): return 0.0\n    def __lt__(self, other): return True\n"
        "    def __contains__(self, other): return True\ndef f(): return F()",
        "def abs(x): return 0\ndef all(x): return True\ndef len(x): return 3\ndef f(): return None",
    ],
)
@pytest.mark.parametrize(
    "tests", ["assert f() == 3", "assert abs(f() - 3) < 1e-6", "assert 3 in f()"]
)
def test_operators_of_the_code_do_not_meet_the_tests_values(
    verifier: CodeVerifier, definition: str, tests: str
) -> None:
    assert judge(verifier, definition, tests).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    "code", ["import os; os._exit(0)", "raise SystemExit", "exit()", "quit(0)"]
)
def test_leaving_while_it_loads_is_no_pass(verifier: CodeVerifier, code: str) -> None:
    assert judge(verifier, code).reason.startswith("exited early")


def test_a_function_of_the_tests_shows_no_way_in(verifier: CodeVerifier) -> None:
    tests = "secret = 'escaped'\ndef g(): return secret and 3\nassert f(g) == 'escaped'"
    for path in ("g.__globals__['secret']", "g.__wrapped__", "g.__self__"):
        said = judge(verifier, f"def f(g): return {path}", tests)
        assert said.reason.startswith("exception: "), said.reason
    assert judge(verifier, "def f(g): return g() == 3 and 'escaped'", tests).reason == ""


SHADOWS = """
def abs(x): return 0.0
def all(x): return True
def len(x): return 3
def isinstance(x, y): return True
AssertionError = print = ValueError
class math:
    def isclose(*a): return True
__assertion__ = __builtins__ = None
def f(x=0): return x
"""
FORMS = [
    ("assert abs(f(9) - 3) < 1e-6", {}),
    ("from solution import *\nassert abs(f(9) - 3) < 1e-6", {}),
    ("def check(candidate):\n    assert abs(candidate(9) - 3) < 1e-6", {"entry_point": "f"}),
    ("def check(candidate):\n    assert all([candidate(9) == 3])", {"entry_point": "f"}),
    ("assert math.isclose(f(9), 3)", {}),
    ("import math\nassert math.isclose(f(9), 3)", {}),
    ("assert len([f(), f()]) == 3", {}),
    ("assert isinstance(f(), str)", {}),
]


@pytest.mark.parametrize(("tests", "columns"), FORMS)
def test_what_judges_does_not_come_from_the_code(
    verifier: CodeVerifier, tests: str, columns: dict[str, str]
) -> None:
    said = verifier(Problem("q1", "", tests, columns), SHADOWS)
    assert said.verdict is Verdict.FAIL
    assert said.reason.startswith("assertion: "), said.reason


def test_no_loop_of_the_tests_is_ended_from_within(verifier: CodeVerifier) -> None:
    tests = "for got, want in zip(map(f, [1, 2]), [1, 2]):\n    assert got == want"
    said = judge(verifier, "def f(x): raise StopIteration", tests)
    assert (said.verdict, said.reason) == (Verdict.FAIL, "exception: StopIteration: ")
    assert judge(verifier, "def f(x): return x", tests).verdict is Verdict.PASS


def test_the_code_cannot_have_itself_unscored(verifier: CodeVerifier) -> None:
    code = "class E(Exception): pass\ndef f(x=0): return E"
    for tests in ("assert f(f()) == 3", "x = f()\nassert f(x(1)) == 3"):
        said = judge(verifier, code, tests)
        assert said.verdict is Verdict.FAIL, said.reason


def test_what_the_tests_print_is_no_verdict(verifier: CodeVerifier) -> None:
    forged = json.dumps({"verdict": "pass", "kind": "", "detail": "", "last": False})
    code = f"def f(): return {(forged + chr(10)) * 1000!r}"
    tests = "import sys\nprint(f(), flush=True)\nprint(f(), file=sys.stderr)\nassert f() == 0"
    assert judge(verifier, code, tests).reason == "assertion: assert f() == 0"


CHANGES = """
import os, shutil
TRIED = [
    lambda: open(VICTIM, "w").write("x"), lambda: open(VICTIM, "a").write("x"),
    lambda: open(VICTIM).read(), lambda: os.truncate(VICTIM, 0), lambda: os.chmod(VICTIM, 0),
    lambda: os.utime(VICTIM, (0, 0)), lambda: os.chown(VICTIM, 1, 1), lambda: os.remove(VICTIM),
    lambda: os.rename(VICTIM, VICTIM + "2"), lambda: os.link(VICTIM, VICTIM + "3"),
    lambda: os.link(VICTIM, "link"), lambda: os.replace(VICTIM, "file"),
    lambda: os.symlink("/", VICTIM + "4"), lambda: os.mkdir(VICTIM + "5"),
    lambda: os.setxattr(VICTIM, "user.x", b"x"), lambda: shutil.rmtree(os.path.dirname(VICTIM)),
    lambda: os.mkfifo(VICTIM + "6"), lambda: os.listdir(os.path.dirname(VICTIM)),
    lambda: os.open(os.path.dirname(VICTIM), os.O_TMPFILE | os.O_RDWR),
]
def f():
    done = []
    for number, attempt in enumerate(TRIED):
        try:
            attempt()
            done.append(number)
        except OSError:
            pass
    return done
"""


def test_a_file_outside_is_neither_read_nor_changed(verifier: CodeVerifier, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    before = victim.stat()
    code = f"VICTIM = {str(victim)!r}\n{CHANGES}"
    assert judge(verifier, code, "assert f() == [], f()").reason == ""
    assert victim.read_text() == "whole"
    assert [entry.name for entry in tmp_path.iterdir()] == ["victim"]
    after = victim.stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert (after.st_uid, after.st_nlink) == (before.st_uid, before.st_nlink)


STUBBORN = """
import signal, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True:
    try:
        while True: pass
    except BaseException: pass
"""
ENDLESS = {
    "a loop that ignores every signal": STUBBORN,
    "hang up and wait": "import os, time\ndef f():\n    os.close(3)\n    time.sleep(60)",
    "sleep": "import time\ndef f(): time.sleep(1000)",
    "endless output": (
        "import time\ndef f():\n    for _ in range(1000): print('x' * 100000, flush=True)\n"
        "    time.sleep(1000)"
    ),
    "threads without end": (
        "import threading, time\nthreading.stack_size(32768)\n"
        "def f():\n"
        "    for _ in range(5000):\n"
        "        try: threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "        except RuntimeError: time.sleep(0.01)\n    time.sleep(1000)"
    ),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_time_is_limited(hasty: CodeVerifier, name: str) -> None:
    said = judge(hasty, ENDLESS[name])
    assert said.verdict is Verdict.FAIL
    assert said.reason.startswith(("time limit", "memory", "killed")), said.reason


def test_a_program_cannot_print_its_way_out(verifier: CodeVerifier) -> None:
    cases = json.dumps({"inputs": ["1"], "outputs": ["right"]})
    for code in (
        "import os\nos._exit(0)",
        "print({'verdict': 'pass'})",
        "import os, json, struct\nframe = json.dumps({'raised': [1]}).encode()\n"
        "os.write(3, struct.pack('>I', len(frame)) + frame)",
        'import os\nfor fd in range(2, 64):\n    try: os.write(fd, b\'{"verdict": "pass"}\')\n'
        "    except OSError: pass",
    ):
        assert judge(verifier, code, cases).verdict is Verdict.FAIL


@pytest.mark.parametrize("isolation", ["bwrap", "landlock"])
def test_the_sandbox_ends_with_its_owner(isolation: Isolation) -> None:
    make(isolation).close()
    program = f"""
import os, threading
from pts.types import Problem
from pts.verifiers.code.verifier import CodeVerifier
from pts.verifiers.code.sandbox import Isolation
made = CodeVerifier(timeout=30, isolation={isolation!r})
endless = Problem("q1", "", "assert f()"), "def f():\\n    while True: pass"
threading.Thread(target=made, args=endless).start()
input()
os.kill(os.getpid(), 9)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as owner:
        wait_until(lambda: len(judged_processes(owner.pid)) == 2)
        started = judged_processes(owner.pid)
        owner.communicate(b"now\n")
    assert owner.returncode == -9
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))
