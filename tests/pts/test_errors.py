"""What the commands print: nothing that steers a terminal, and failures of the machine too."""

from __future__ import annotations

import errno
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pts import SearchConfig, search
from pts.cli import main as cli
from pts.errors import ConfigError, DataError, outside, printable, told
from pts.report.text import overview, question
from pts.runtime.run_folder import RunFolder
from tests.pts.scripted import ScriptedEngine, judge_odd, problems
from tests.pts.slow_search import CONFIG


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
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "x"), "mend them"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "x/y"), "give another --output"),
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


def test_a_line_break_in_an_id_breaks_no_table(tmp_path: Path) -> None:
    (asked,) = problems(1)
    renamed = [replace(asked, id="a\nb")]
    search(renamed, ScriptedEngine(8), judge_odd, CONFIG, output=tmp_path, progress=False)
    folder = RunFolder(tmp_path)
    assert [line.split()[-1] for line in overview(folder)] == ["question", "a\\nb"]
    assert next(question(folder, "a\nb")) == "a\\nb"


def test_a_fault_of_all_problems_is_told_once() -> None:
    with pytest.raises(DataError) as caught:
        search(problems(3), ScriptedEngine(), judge_odd, SearchConfig(paths=0))
    first, *_ = problems(1)
    assert str(caught.value) == (
        f"problem {first.id!r}: has no completions, and paths = 0 searches none of the policy's "
        "own; give completions or set paths (so it is with 2 more problems)"
    )
