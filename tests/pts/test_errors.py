"""What the commands print: nothing that steers a terminal, and failures of the machine too."""

from __future__ import annotations

import errno
import sys

import pytest
import torch

from pts.cli import main as cli
from pts.errors import ConfigError, DataError, outside, printable, told


def test_what_is_told_cannot_steer_a_terminal() -> None:
    error = DataError("row 1: \x1b[31mred\u202eevil\nrow 2: ok")
    error.add_note("in \x07question")
    assert told(error) == (
        "2 errors:\n  row 1: \\x1b[31mred\\u202eevil\n  row 2: ok\n  in \\x07question"
    )
    assert told(ConfigError("one")) == "error:\n  one"
    assert printable("é 中\n\t") == "é 中\n\\t"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x/y"), "free some space on the disk"),
        (Exception("I/O error: No space left on device (os error 28)"), "free some space"),
        (OSError(errno.EFBIG, "File too large", "x"), "x: File too large; raise the limit"),
        (MemoryError(), "memory ran out"),
        (torch.OutOfMemoryError("CUDA out of memory"), "memory ran out"),
    ],
)
def test_failures_of_the_machine_have_a_remedy(error: Exception, message: str) -> None:
    said = outside(error)
    assert said is not None
    assert message in said
    assert said.endswith("The same command continues")


def test_faults_of_the_program_are_not_hidden() -> None:
    assert outside(ValueError("x")) is None
    assert outside(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None


def test_the_command_tells_them_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/\x1b[2J")

    monkeypatch.setattr(cli, "app", full)
    monkeypatch.setattr(sys, "argv", ["pts"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "error:\n  runs/\\x1b[2J: No space left on device; free some space on the disk. "
        "The same command continues\n"
    )
