"""Starts and ends the sandbox in which `CodeVerifier` runs code.

`isolation="bwrap"` is bubblewrap, with namespaces of its own for users, processes, network, mounts
and IPC: the code sees the standard library, four devices and an empty `/tmp` of limited size,
nothing else. `isolation="landlock"` needs no namespaces, for containers that forbid them: the
kernel's Landlock leaves the same files, to read, and no place to write. Both come on top of the
filter of system calls, the limits and the clean environment of `pts.verifiers.code.worker`.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import selectors
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pts.errors import VerifierError
from pts.files import parse, write_all

Isolation = Literal["bwrap", "landlock"]
START_SECONDS = 60.0
"""Allowed for the sandbox to start."""
GRACE_SECONDS = 5.0
"""Beyond the wall time of a job, before the whole sandbox is killed from outside."""
TMP_BYTES = 64 << 20
"""Size of the code's /tmp."""
REPLY_BYTES = 1 << 16
"""Longest reply that is read."""
PREFIX = "pts-code-"
"""Of the folders of sandboxes, in the folder for temporary files."""
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_PACKAGE = Path(__file__).parent
_PYTHON = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
_FILES = ("candidate", "harness", "lockdown", "tests", "wire", "worker")
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); pts = type(sys)('pts'); "
    "pts.__path__ = [sys.argv[1] + '/pts']; sys.modules['pts'] = pts; "
    "from pts.verifiers.code.worker import main"
)
"""Without pts/__init__.py, which imports installed packages: the sandbox has none."""


@dataclass(frozen=True, slots=True)
class JobLimits:
    """Of one run: CPU seconds (whole), wall seconds, bytes of address space of a process."""

    cpu: int
    wall: float
    memory: int


class Sandbox:
    """A server of jobs in isolation; it is started on demand and after anything irregular.

    Raises VerifierError when it cannot be started, with what the system said.
    """

    def __init__(self, isolation: Isolation, limits: JobLimits) -> None:
        self._isolation, self._limits = isolation, limits
        self._lock = threading.Lock()
        self._start()

    def ask(self, job: dict[str, Any]) -> dict[str, Any] | None:
        """The reply to a job; None when it never came and the sandbox was killed."""
        with self._lock:
            for _ in range(2):  # an idle server may have been killed since; a job is never rerun
                if not self.stop.alive:
                    self._start()
                if self._take(job):
                    break
                self.stop()
            else:
                raise VerifierError("the sandbox of the code verifier dies before it takes a job")
            reply = parse(self._line(self._limits.wall + GRACE_SECONDS))
            if reply is None or reply.get("last", True):
                self.stop()
            return reply

    def _start(self) -> None:
        numbers = [str(self._limits.cpu), str(self._limits.wall), str(self._limits.memory)]
        if self._isolation == "bwrap":
            command, root = _bubblewrap(), "/judge"
        else:
            command, root = [], str(_PACKAGE.parents[2])
            numbers += [path for path in (*_read_only(), *_DEVICES) if os.path.exists(path)]
        self._folder, held = _own_folder()
        code = f"{_START}; main(*sys.argv[1:])"
        try:
            self._process = subprocess.Popen(
                [*command, _PYTHON, "-S", "-s", "-P", "-B", "-c", code, root, *numbers],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self._folder,
                env=environment("/tmp" if self._isolation == "bwrap" else self._folder),
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            _remove(self._folder, held)
            raise VerifierError(f"{(command or [_PYTHON])[0]}: {error.strerror}") from error
        self.stop = weakref.finalize(self, _stop, self._process, self._folder, held)
        """Ends every process of the sandbox; a second call does nothing."""
        if self._line(START_SECONDS) != b"ready\n":
            assert self._process.stdin is not None
            assert self._process.stderr is not None
            self._process.stdin.close()
            self._process.kill()
            said = self._process.stderr.read(4096).decode(errors="replace").strip()
            self.stop()
            raise VerifierError(said.splitlines()[-1] if said else "it ended without a word")

    def _take(self, job: dict[str, Any]) -> bool:
        """Hand over a job; False when the server is no more."""
        assert isinstance(self._process.stdin, io.FileIO)
        frame = json.dumps(job).encode()
        try:
            write_all(self._process.stdin, b"J%08x" % len(frame) + frame)
        except OSError:
            return False
        return self._process.poll() is None

    def _line(self, seconds: float) -> bytes:
        """One line; shorter at the end of the stream, empty when time is up."""
        assert self._process.stdout is not None
        data, deadline = b"", time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not data.endswith(b"\n") and len(data) <= REPLY_BYTES:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    return b""
                chunk = os.read(self._process.stdout.fileno(), REPLY_BYTES)
                if not chunk:
                    break
                data += chunk
        return data


def environment(folder: str) -> dict[str, str]:
    """All environment variables of the sandbox. Hashes of text are the same in every run."""
    fixed = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "LANG": "C.UTF-8", "TZ": "UTC"}
    return {**fixed, "HOME": folder, "TMPDIR": folder, "PATH": "/usr/bin:/bin"}


def _bubblewrap() -> list[str]:
    """The command line that builds the sandbox around what follows it."""
    found = shutil.which("bwrap")
    if found is None:
        raise VerifierError("bwrap is not installed")
    words = [found, "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534"]
    words += ["--cap-drop", "ALL", "--new-session", "--hostname", "sandbox"]
    for path in _read_only():
        words += ["--ro-bind-try", path, path]
    for path in ("/lib", "/lib64"):
        if os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
        else:
            words += ["--ro-bind-try", path, path]
    for path in _packages():
        words += ["--size", "4096", "--tmpfs", path, "--remount-ro", path]
    for device in _DEVICES:
        words += ["--dev-bind", device, device]
    for name in _FILES:
        file = f"{name}.py"
        words += ["--ro-bind", str(_PACKAGE / file), f"/judge/pts/verifiers/code/{file}"]
    words += ["--size", str(TMP_BYTES), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    return [*words, "--remount-ro", "/", "--"]


def _read_only() -> list[str]:
    """The interpreter, its standard library and the system's shared libraries."""
    paths = ["/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo"]
    paths += [os.path.join(sys.base_prefix, "lib"), os.path.dirname(os.__file__), _PYTHON]
    paths += [sysconfig.get_config_var("DESTSHARED") or _PYTHON]
    return list(dict.fromkeys(paths))


def _packages() -> Iterator[str]:
    """Folders of installed packages inside of what is shown; they are covered up."""
    library = os.path.dirname(os.__file__)
    version = f"/usr/local/lib/python{sys.version_info.major}.{sys.version_info.minor}"
    for folder in (library, "/usr/lib/python3", version):
        for name in ("site-packages", "dist-packages"):
            path = os.path.join(folder, name)
            shown = any(path.startswith(f"{p}/") for p in _read_only())
            if shown and os.path.isdir(path):
                yield path


def _stop(process: subprocess.Popen[bytes], folder: str, held: int) -> None:
    """End the server by closing its input; its processes die with it."""
    assert process.stdin is not None
    with process:  # it closes the pipes and waits for the end
        process.stdin.close()
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    _remove(folder, held)


def _own_folder() -> tuple[str, int]:
    """A new folder, and the descriptor that holds the lock beside it."""
    try:
        _sweep()
        held, lock = _new_lock()
        folder = lock.removesuffix(".lock")
        try:
            os.mkdir(folder, 0o700)
        except OSError:
            _remove(folder, held)
            raise
    except OSError as error:
        place = error.filename or tempfile.tempdir or "$TMPDIR"
        raise VerifierError(
            f"no folder for the sandbox ({place}: {error.strerror}); set TMPDIR to a folder on a "
            "local disk with space that this user may write to"
        ) from error
    return folder, held


def _new_lock() -> tuple[int, str]:
    """A new file that this process holds, open, and its path."""
    while True:  # another's sweep may be faster than the lock, by microseconds
        held, lock = tempfile.mkstemp(".lock", PREFIX)
        try:
            if _hold(held, lock):
                return held, lock
        except OSError:  # a file system without locks
            os.unlink(lock)
            raise


def _hold(held: int, lock: str) -> bool:
    """Lock an open file; it is closed where another process holds it, or has removed it meanwhile.

    The system lets go of it when this process ends. Who holds the file that stands at its path
    owns the folder beside it.
    """
    owned = False
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        owned = os.path.samestat(os.fstat(held), os.stat(lock))
    except (BlockingIOError, FileNotFoundError):
        pass
    finally:
        if not owned:
            os.close(held)
    return owned


def _remove(folder: str, held: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.unlink(f"{folder}.lock")
    os.close(held)


def _sweep() -> None:
    """Remove what processes that were killed have left behind."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*.lock"):
        with contextlib.suppress(OSError):  # another user's, or gone
            held, lock = os.open(path, os.O_RDWR | os.O_CLOEXEC), str(path)
            if _hold(held, lock):
                _remove(lock.removesuffix(".lock"), held)
