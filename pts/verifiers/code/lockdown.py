"""What model-written code may not ask of the kernel, whatever else isolates it.

    Lock([]).close()                   the filter of system calls, no capabilities
    Lock(["/usr/lib", ...]).close()    and no files but these, to read (Landlock)

Refused for good, and inherited by every thread: new processes and programs, sockets, signals and
limits for other processes, tracing, namespaces and mounts, shared memory outside the address
space, and the rarely audited interfaces (bpf, io_uring, keyrings, perf). Threads are allowed. A
refused call fails with EPERM or EACCES, which Python raises as PermissionError. The filter is
classic BPF over `struct seccomp_data` (Linux, Documentation/userspace-api/seccomp_filter.rst);
the numbers come from asm/unistd_64.h and asm-generic/unistd.h, those of Landlock from
linux/landlock.h (Documentation/userspace-api/landlock.rst).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator, Sequence

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH values of the machines whose system calls are known here."""

_REFUSED = """
    # processes and programs
    fork 57 -, vfork 58 -, execve 59 221, execveat 322 281, setsid 112 157, setpgid 109 154
    # network
    socket 41 198, connect 42 203, bind 49 200, listen 50 201, accept 43 202, accept4 288 242
    # other processes: memory, signals, scheduling
    ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271,
    process_madvise 440 440, process_mrelease 448 448, kcmp 312 272, rt_sigqueueinfo 129 138,
    rt_tgsigqueueinfo 297 240, pidfd_open 434 434, pidfd_send_signal 424 424,
    pidfd_getfd 438 438, setpriority 141 140, sched_setscheduler 144 119,
    sched_setparam 142 118, ioprio_set 251 30, sched_setattr 314 274, sched_setaffinity 203 122,
    migrate_pages 256 238, move_pages 279 239
    # namespaces, mounts, devices
    unshare 272 97, setns 308 268, mount 165 40, umount2 166 39, move_mount 429 429,
    open_tree 428 428, fsopen 430 430, fsconfig 431 431, fsmount 432 432, fspick 433 433,
    mount_setattr 442 442, pivot_root 155 41, chroot 161 51, mknod 133 -, mknodat 259 33,
    open_by_handle_at 304 265, name_to_handle_at 303 264, quotactl 179 60, quotactl_fd 443 443
    # memory that no address-space limit counts
    memfd_create 319 279, memfd_secret 447 447, shmget 29 194, shmat 30 196, shmctl 31 195,
    msgget 68 186, msgsnd 69 189, semget 64 190, mq_open 240 180, mq_unlink 241 181
    # identity and privileges
    setuid 105 146, setgid 106 144, setreuid 113 145, setregid 114 143, setresuid 117 147,
    setresgid 119 149, setgroups 116 159, capset 126 91, personality 135 92
    # interfaces with a long record of kernel bugs
    bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, io_uring_setup 425 425,
    io_uring_enter 426 426, io_uring_register 427 427, keyctl 250 219, add_key 248 217,
    request_key 249 218, modify_ldt 154 -, fanotify_init 300 262
"""
"""System calls refused whatever their arguments: numbers on x86-64 and on ARM64 (-: has none)."""
_REFUSED_WITH_FILES = """
    truncate 76 45, chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -,
    fchown 93 55, lchown 94 -, fchownat 260 54, utime 132 -, utimes 235 -, futimesat 261 -,
    utimensat 280 88, setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, removexattr 197 14,
    lremovexattr 198 15, fremovexattr 199 16, setxattrat 463 463, removexattrat 466 466,
    file_setattr 469 469
"""
"""Changes to files that Landlock does not stop, refused where the files of the system are seen."""

_CLONE, _CLONE3 = (56, 220), (435, 435)
_OWN_PID_ONLY = ((62, 129), (200, 130), (234, 131))
"""kill, tkill, tgkill."""
_PRLIMIT, _FCNTL, _IOCTL, _PRCTL = (302, 261), (72, 25), (16, 29), (157, 167)
_CLONE_THREAD = 0x10000
_SIGNAL_OWNERS = ((_FCNTL, (8, 15)), (_IOCTL, (0x8901, 0x8902)))
"""F_SETOWN, F_SETOWN_EX, FIOSETOWN, SIOCSPGRP: they choose who is sent a descriptor's signals."""
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_LOAD, _JUMP_EQUAL, _JUMP_SET, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE = 0, 4
_ANY_PID = 0x7FFFFFFF
"""Stands for the process's own number until it is known; no process has it."""
_CAPABILITY_VERSION = 0x20080522
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_FILE_RIGHTS = [(1 << bits) - 1 for bits in (13, 14, 15, 15, 16)]
"""All rights to files that versions 1 to 5 of Landlock know; later versions added none."""

_Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, constant (`struct sock_filter`)."""


def supported() -> bool:
    """Whether this machine's system calls are known."""
    return platform.machine() in ARCHITECTURES


def program(machine: str, pid: int, refused: str) -> bytes:
    """The filter for a machine and the one process (`pid`) that may be sent signals."""
    which = list(ARCHITECTURES).index(machine)
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    allow = (_RETURN, 0, 0, _ALLOW)
    code: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_AT_LEAST, 0, 1, 0x40000000),  # the x32 interface has numbers of its own
        refuse,
    ]

    def when(numbers: tuple[int | None, int | None], *body: _Instruction) -> None:
        number = numbers[which]
        if number is not None:
            code.extend([(_JUMP_EQUAL, 0, len(body), number), *body])

    for numbers in _numbers(refused):
        when(numbers, refuse)
    when(_CLONE3, (_RETURN, 0, 0, _ERRNO | errno.ENOSYS))  # its flags lie in memory; use clone
    when(_CLONE, _argument(0), (_JUMP_SET, 1, 0, _CLONE_THREAD), refuse, allow)
    for numbers in _OWN_PID_ONLY:
        when(numbers, _argument(0), (_JUMP_EQUAL, 1, 0, pid), refuse, allow)
    when(_PRLIMIT, _argument(0), (_JUMP_EQUAL, 1, 0, 0), refuse, allow)
    for numbers, (one, other) in _SIGNAL_OWNERS:
        tests = ((_JUMP_EQUAL, 1, 0, one), (_JUMP_EQUAL, 0, 1, other))
        when(numbers, _argument(1), *tests, refuse, allow)
    when(_PRCTL, _argument(0), (_JUMP_EQUAL, 0, 1, _PR_SET_PDEATHSIG), refuse, allow)
    code.append(allow)
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def _numbers(table: str) -> Iterator[tuple[int | None, int | None]]:
    lines = [line for line in table.splitlines() if "#" not in line]
    for entry in filter(str.strip, ",".join(lines).split(",")):
        _, first, second = entry.split()
        yield None if first == "-" else int(first), None if second == "-" else int(second)


def _argument(index: int) -> _Instruction:
    """Load the lower half of a system call's argument (both machines are little-endian)."""
    return (_LOAD, 0, 0, 16 + 8 * index)


class Lock:
    """What a process may no longer do. `readable` are the only files and folders that it may see.

    Nothing can be written then. Without any, files are not restricted here.
    """

    def __init__(self, readable: Sequence[str]) -> None:
        self._readable = readable
        refused = f"{_REFUSED},{_REFUSED_WITH_FILES}" if readable else _REFUSED
        self._filter = program(platform.machine(), _ANY_PID, refused)

    def close(self) -> None:
        """Lock this process down for good. Raises OSError where the kernel refuses."""
        control(_PR_SET_NO_NEW_PRIVS, 1)
        if self._readable:
            _landlock(self._readable)
        _checked("capset", _libc.capset(struct.pack("Ii", _CAPABILITY_VERSION, 0), bytes(24)))
        own = struct.pack("I", os.getpid())
        text = self._filter.replace(struct.pack("I", _ANY_PID), own)
        body = ctypes.create_string_buffer(text, len(text))
        head = struct.pack("HxxxxxxP", len(text) // 8, ctypes.addressof(body))
        buffer = ctypes.create_string_buffer(head)
        control(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(buffer))


def _landlock(readable: Sequence[str]) -> None:
    version = _syscall(_CREATE_RULESET, None, 0, 1)
    handled = _FILE_RIGHTS[min(version, len(_FILE_RIGHTS)) - 1]
    rules = _syscall(_CREATE_RULESET, struct.pack("Q", handled), 8, 0)
    for path in readable:
        place = os.open(path, os.O_PATH)
        rights = _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0)
        rights |= _WRITE_FILE if path == os.devnull else 0
        _syscall(_ADD_RULE, rules, 1, struct.pack("=Qi", rights, place), 0)
        os.close(place)
    _syscall(_RESTRICT_SELF, rules, 0)
    os.close(rules)


def control(option: int, value: int, extra: int = 0) -> None:
    """prctl(2). Raises OSError with its error number."""
    words = [ctypes.c_ulong(word) for word in (value, extra, 0, 0)]
    _checked(f"prctl({option})", _libc.prctl(option, *words))


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(f"Landlock ({number})", _libc.syscall(ctypes.c_long(number), *words))


def _checked(name: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


_libc = ctypes.CDLL(None, use_errno=True)
