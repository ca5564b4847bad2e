"""The sandboxed server behind `CodeVerifier`: one job a frame in, one JSON line out.

    python -S -s -P -B -c "…; main()"     run by `pts.verifiers.code.sandbox`, never by hand

For every job the server forks a harness, which forks the process of the judged code before it
reads the job: neither this server nor that process ever holds a test. Both children put a seccomp
filter on themselves before they run anything that is not ours. A job that left files behind, or
did not end by itself, is the last of its server: the next one gets a fresh sandbox.
"""

from __future__ import annotations

import ast
import gc
import json
import os
import resource
import select
import signal
import site
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO, NoReturn

from pts.verifiers.code.candidate import Candidate
from pts.verifiers.code.lockdown import Lock, control
from pts.verifiers.code.tests import failure, kind_of, run_tests
from pts.verifiers.code.wire import Channel, ChannelClosed, exactly

FILE_BYTES = 16 << 20
"""Largest file (and so the longest output) of the judged code."""
OPEN_FILES = 64
TASKS = 1024
"""Processes and threads of the sandbox's user (the kernel does not count those of root)."""
BROKEN = 70
"""Exit status of a harness that failed by itself."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(root: str, cpu: str, wall: str, memory: str, *readable: str) -> None:
    """Serve jobs until standard input ends.

    `root` is the import path to be taken away again, `memory` is in bytes. `readable` are the only
    files and folders that a job may see, see `lockdown.Lock`; none: bubblewrap hides the rest.
    """
    for name in [n for n in sys.modules if n == "pts" or n.startswith("pts.")]:
        del sys.modules[name]
    sys.path[:] = [path for path in sys.path if path != root]
    site.setquit()  # exit() and quit(), which -S leaves out
    control(_PR_SET_CHILD_SUBREAPER, 1)
    lock = Lock(readable)
    _prove_it_locks(lock, bool(readable))
    gc.freeze()
    os.write(1, b"ready\n")
    clean = True
    while clean and os.read(0, 1) == b"J":
        reply = _serve(int(cpu), float(wall), int(memory), lock)
        clean = not reply.pop("irregular", False) and not os.listdir(".")
        os.write(1, json.dumps({**reply, "last": not clean}).encode() + b"\n")


def _prove_it_locks(lock: Lock, files: bool) -> None:
    """Raises OSError where the kernel takes no restrictions or does not obey them."""
    child = os.fork()
    if child == 0:
        try:
            lock.close()
        except OSError as error:
            os.write(2, f"{error}\n".encode())
            os._exit(1)
        attempts: list[Callable[[], Any]] = [os.fork, socket.socket]
        if files:
            attempts += [lambda: os.listdir("/proc"), lambda: os.mkdir("folder")]
        os._exit(0 if all(map(_refused, attempts)) else 2)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 1:
        sys.exit(1)
    if status != 0:
        raise OSError("the kernel does not restrict processes as it was told (seccomp, Landlock)")


def _refused(attempt: Callable[[], Any]) -> bool:
    try:
        attempt()
    except PermissionError:
        return True
    return False


def _serve(cpu: int, wall: float, memory: int, lock: Lock) -> dict[str, Any]:
    """One job in a harness of its own."""
    results, report = os.pipe()
    harness = os.fork()
    if harness == 0:
        _child(lambda: _harness(report, cpu, memory, lock))
    os.close(report)
    with open(results, "rb", buffering=0) as stream:
        text = _read_until(stream, time.monotonic() + wall)
    status, used = _end(harness)
    if text is None:
        return {**failure("time limit", f"more than {wall:g} s"), "irregular": True}
    if status == BROKEN << 8:
        return {"verdict": "unscored", "kind": "sandbox", "detail": "the harness failed"}
    try:
        return dict(json.loads(text))
    except ValueError:
        return {**_death(status, used, cpu), "irregular": True}


def _read_until(stream: BinaryIO, deadline: float) -> bytes | None:
    """All there is, or None when time is up. Ends everything when the verifier is gone."""
    data, waiting = b"", select.poll()
    waiting.register(stream, select.POLLIN)
    waiting.register(0, 0)  # only its hang-up is told
    while (left := deadline - time.monotonic()) > 0:
        ready = dict(waiting.poll(left * 1000))
        if 0 in ready:
            sys.exit()  # the children go with this process
        if ready:
            chunk = stream.read(1 << 16)
            if not chunk:
                return data
            data += chunk
    return None


def _end(harness: int) -> tuple[int, resource.struct_rusage]:
    """Kill the harness's group and reap it whole; the harness's status and what it used."""
    os.killpg(harness, signal.SIGKILL)
    _, status, used = os.wait4(harness, 0)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return status, used


def _child(work: Callable[[], None]) -> NoReturn:
    try:
        work()
    except BaseException:
        os._exit(BROKEN)
    os._exit(0)


def _harness(report: int, cpu: int, memory: int, lock: Lock) -> None:
    """Fork the judged code's process, then read the job, run it and report."""
    os.setpgid(0, 0)
    control(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _limit(cpu, memory)
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryFile(dir=".") as given, tempfile.TemporaryFile(dir=".") as printed:
        candidate = os.fork()
        if candidate == 0:
            _child(lambda: _candidate(theirs, given.fileno(), printed.fileno(), lock))
        theirs.close()
        standard_input = partial(os.read, 0)
        size = int(exactly(standard_input, 8), 16)
        job = json.loads(exactly(standard_input, size))
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):  # what the tests print must not reach the verifier
            os.dup2(nothing, descriptor)
        lock.close()
        try:
            if "stdin" in job:
                reply = _program(job, ours, candidate, given, printed, cpu)
            else:
                tree = ast.parse(job["tests"])
                reply = run_tests(tree, job["code"], job["entry_point"], job["as_json"], ours)
        except ChannelClosed:
            _, status, used = os.wait4(candidate, 0)
            reply = _death(status, used, cpu)
        except MemoryError:
            reply = failure("memory", "the tests ran out of memory")
    os.write(report, json.dumps(reply).encode())


def _limit(cpu: int, memory: int) -> None:
    limits = [
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_NPROC, TASKS),
        (resource.RLIMIT_CORE, 0),
    ]
    for which, value in limits:
        above = 1 if which == resource.RLIMIT_CPU else 0  # the signal first, then the kill
        hard = resource.getrlimit(which)[1]
        ceiling = value + above if hard == resource.RLIM_INFINITY else min(value + above, hard)
        resource.setrlimit(which, (min(value, ceiling), ceiling))


def _candidate(connection: socket.socket, given: int, printed: int, lock: Lock) -> None:
    """Become the process of the judged code."""
    control(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    os.dup2(given, 0)
    os.dup2(printed, 1)
    os.dup2(os.open(os.devnull, os.O_RDWR), 2)
    os.dup2(connection.fileno(), 3)
    connection.detach()
    os.closerange(4, 1 << 16)
    lock.close()
    Candidate(socket.socket(fileno=3)).serve()


def _program(
    job: dict[str, Any],
    connection: socket.socket,
    candidate: int,
    given: BinaryIO,
    printed: BinaryIO,
    cpu: int,
) -> dict[str, Any]:
    """Run a whole program on an input and compare what it prints, line by line."""
    given.write(job["stdin"].encode())
    given.flush()
    given.seek(0)
    raised: Any = None
    channel = Channel(connection, lambda value: None, lambda tag, parts: None)
    try:
        channel.send({"do": "run", "code": job["code"]})
        raised = channel.receive().get("raised")
    except ChannelClosed:
        pass
    _, status, used = os.wait4(candidate, 0)
    if isinstance(raised, dict):
        return failure(*kind_of(str(raised.get("type")), str(raised.get("message"))))
    if status != 0:
        return _death(status, used, cpu)
    printed.seek(0)
    said, expected = _lines(printed.read().decode(errors="replace")), _lines(job["stdout"])
    if said == expected:
        return {"verdict": "pass", "kind": "", "detail": ""}
    at = next((i for i, (a, b) in enumerate(zip(said, expected)) if a != b), None)  # noqa: B905
    if at is None:
        return failure("output", f"{len(said)} lines printed, {len(expected)} expected")
    return failure("output", f"line {at + 1}: {said[at][:60]!r}, expected {expected[at][:60]!r}")


def _lines(text: str) -> list[str]:
    """Lines without trailing blanks, and no blank lines at the end."""
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _death(status: int, used: resource.struct_rusage, cpu: int) -> dict[str, Any]:
    """What the end of a process means, when it was not asked for."""
    if not os.WIFSIGNALED(status):
        return failure("exited early", f"status {os.waitstatus_to_exitcode(status)}")
    number = os.WTERMSIG(status)
    if number == signal.SIGXCPU or used.ru_utime + used.ru_stime >= cpu:
        return failure("time limit", f"{cpu} s of CPU time")
    return failure("killed", signal.Signals(number).name)
