"""`align compare`: damaged files of other tools, and pages that would overwrite them."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from align.cli import app
from align.compare.readers import read_results
from align.errors import CompareError
from tests.align.test_compare import line, log, sample, samples_file

HUGE = 10**400
"""A whole number of JSON that no float can hold."""
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("metrics", [None, 3, "acc", [["acc"]], {"acc": 1}, ["acc", "acc"]])
def test_metrics_are_a_list_of_names(metrics: object, tmp_path: Path) -> None:
    file = samples_file(tmp_path, line(0), line(1, metrics=metrics))
    said = f"{file}, line 2: metrics: must be a list of names, each once, got {json.dumps(metrics)}"
    with pytest.raises(CompareError, match=re.escape(said)):
        read_results(file)


def test_a_number_that_no_float_can_hold_is_no_score(tmp_path: Path) -> None:
    file = samples_file(tmp_path, line(0, acc=HUGE), line(1), line(2, acc=[1, -HUGE]))
    [reading] = read_results(file).values()
    assert (list(reading.items), reading.unscored) == (["1"], 2)
    values = [HUGE, "C", -HUGE, "9" * 401]
    [reading] = read_results(log(tmp_path, [*map(sample, range(4), values)])).values()
    assert (list(reading.items), reading.unscored) == (["1"], 3)


def archive(folder: Path, flag: int = 0, method: int = 0) -> Path:
    """A log of inspect_ai whose members say that they are encrypted, or packed by a method."""
    file = folder / "log.eval"
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("header.json", json.dumps({"status": "success", "eval": {"task": "t"}}))
        out.writestr("samples/1.json", json.dumps(sample(1, "C")))
    data = bytearray(file.read_bytes())
    for mark, place in ((b"PK\1\2", 8), (b"PK\3\4", 6)):  # of the directory, and before a member
        for found in re.finditer(mark, bytes(data)):
            data[found.start() + place] |= flag
            data[found.start() + place + 2] |= method
    file.write_bytes(data)
    return file


def test_archives_that_cannot_be_unpacked(tmp_path: Path) -> None:
    assert read_results(archive(tmp_path))
    for changes, why in (({"flag": 1}, "is encrypted"), ({"method": 99}, "not supported")):
        with pytest.raises(CompareError, match=rf"no log of inspect_ai that can be read .*{why}"):
            read_results(archive(tmp_path, **changes))


def test_json_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "deep.json"
    file.write_text(DEEP)
    with pytest.raises(CompareError, match=r"no log of inspect_ai that can be read .*recursion"):
        read_results(file)
    with pytest.raises(CompareError, match="no samples_"):
        read_results(tmp_path)
    samples_file(tmp_path, line(0))
    assert list(read_results(tmp_path)) == [("x_y", "acc")]
    endless = log(tmp_path, [sample(1, "C", epoch=7)])
    endless.write_text(endless.read_text().replace('"epoch": 7', '"epoch": 1e999'))
    with pytest.raises(CompareError, match="cannot convert float infinity"):
        read_results(endless)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (sample(1, "I"), "sample '1', epoch 1: stands twice; keep the samples of one run"),
        (sample(1, "I", 2, input="other"), "sample '1', epoch 2: is another question than"),
    ],
)
def test_what_is_wrong_with_samples_is_told_as_it_is(
    second: dict[str, Any], said: str, tmp_path: Path
) -> None:
    file = log(tmp_path, [sample(1, "C"), second])
    with pytest.raises(CompareError, match=re.escape(said)) as caught:
        read_results(file)
    assert str(caught.value).startswith(f"{file}, sample")
    assert "write it again" not in str(caught.value)


def test_a_page_overwrites_nothing_that_is_compared(tmp_path: Path) -> None:
    for side in "ab":
        (tmp_path / side).mkdir()
        samples_file(tmp_path / side, *(line(k, acc=k % 2) for k in range(4)))
    file = tmp_path / "b" / "samples_x_y.jsonl"
    before = file.read_text()
    page = tmp_path / "b" / "page.html"
    link = tmp_path / "link.jsonl"
    link.symlink_to(file)

    def told(b: Path, html: Path) -> tuple[int, str]:
        words = ["compare", str(tmp_path / "a"), str(b), "--html", str(html)]
        done = CliRunner().invoke(app, words)
        return done.exit_code, f"{done.exception}"

    for b, html in ((file, file), (file, link), (file, tmp_path / "b" / ".." / "b" / file.name)):
        assert told(b, html) == (1, f"--html: {html}: is what is compared; name another file")
    code, said = told(tmp_path / "b", file)
    assert (code, said.startswith(f"--html: {file}: ")) == (1, True)
    assert file.read_text() == before
    assert told(tmp_path / "b", page)[0] == 0
    assert told(tmp_path / "b", page)[0] == 0, "a page is written anew"
