"""Logs of inspect_ai: .json, and .eval (a zip archive); the package itself is not needed.

A scorer is a measure; one that gives several values (a mapping) is several. Epochs are samples of
an item. Letters count as inspect_ai's accuracy counts them: C and "yes" are 1, P is 0.5, I, N and
"no" are 0. Samples that ended in an error, or have no such value, are left out and counted.
"""

from __future__ import annotations

import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from align.compare.records import Key, Reading, Readings, ScoredItem, digest, score_of
from align.errors import CompareError

_LETTERS = {"c": 1.0, "p": 0.5, "i": 0.0, "n": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0}
_LETTERS |= {"false": 0.0}
_ZSTANDARD = 93
"""Number of that method in a zip archive; Python's own reader knows it from 3.14 on."""
_UNREADABLE = (
    OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, RuntimeError,
    ValueError, ArithmeticError, LookupError, TypeError, AttributeError,
)  # fmt: skip
"""What damaged JSON and archives raise; RuntimeError: encrypted, or nested too deeply."""
_LOCAL_HEADER = struct.Struct("<26x2H")


def read_log(file: Path) -> Readings:
    """All measures of one log.

    Raises:
        CompareError: it is no log of inspect_ai, is damaged, or has an item's epoch twice.
    """
    try:
        header, samples = _from_zip(file) if file.suffix == ".eval" else _from_json(file)
        task = str(header["eval"]["task"])
        return _readings(file, task, str(header.get("status", "success")), samples)
    except CompareError:
        raise
    except _UNREADABLE as error:
        raise CompareError(
            f"{file}: no log of inspect_ai that can be read ({type(error).__name__}: {error}); "
            "write it again, or convert it: inspect log convert"
        ) from None


def _from_json(file: Path) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    log = json.loads(file.read_bytes())
    return log, iter(log.get("samples") or ())


def _from_zip(file: Path) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        start = "header.json" if "header.json" in names else "_journal/start.json"
        header = json.loads(_content(file, archive, start))
    if start != "header.json":  # killed: what was written so far
        header["status"] = "started"
    held = sorted(name for name in names if name.startswith("samples/"))

    def samples() -> Iterator[dict[str, Any]]:
        with zipfile.ZipFile(file) as archive:
            for name in held:
                yield json.loads(_content(file, archive, name))

    return header, samples()


def _content(file: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    """What a member of the archive holds."""
    info = archive.getinfo(name)
    if info.compress_type != _ZSTANDARD:
        return archive.read(name)
    import pyarrow as pa

    with file.open("rb") as raw:
        raw.seek(info.header_offset)
        name_length, extra_length = _LOCAL_HEADER.unpack(raw.read(_LOCAL_HEADER.size))
        raw.seek(name_length + extra_length, 1)
        packed = raw.read(info.compress_size)
    with pa.CompressedInputStream(pa.BufferReader(packed), "zstd") as stream:
        return bytes(stream.read())


def _readings(file: Path, task: str, status: str, samples: Iterator[dict[str, Any]]) -> Readings:
    found: dict[Key, dict[str, dict[int, float]]] = {}
    about: dict[str, tuple[str, str]] = {}
    counts = 0
    scored: dict[Key, int] = {}
    for sample in samples:
        counts += 1
        name, epoch = str(sample["id"]), int(sample.get("epoch", 1))
        place = f"{file}, sample {name!r}, epoch {epoch}"
        content = digest(sample.get("input"), sample.get("target"))
        if about.setdefault(name, (content, place))[0] != content:
            raise CompareError(
                f"{place}: is another question than {about[name][1]}; give samples ids of their own"
            )
        for measure, value in _values(sample):
            items = found.setdefault((task, measure), {})
            epochs = items.setdefault(name, {})
            if epoch in epochs:
                raise CompareError(f"{place}: stands twice; keep the samples of one run")
            epochs[epoch] = value
            scored[(task, measure)] = scored.get((task, measure), 0) + 1
    remark = "" if status == "success" else f"{file}: the log is not finished (status {status})"
    blank = Reading(str(file), remark=remark)
    return {
        key: replace(
            blank,
            items={
                name: ScoredItem(tuple(epochs[k] for k in sorted(epochs)), *about[name])
                for name, epochs in items.items()
            },
            unscored=counts - scored[key],
        )
        for key, items in found.items()
    }


def _values(sample: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for scorer, score in (sample.get("scores") or {}).items():
        value = score["value"]
        several = value if isinstance(value, dict) else {"": value}
        for part, one in several.items():
            number = _number(one)
            if number is not None:
                yield f"{scorer}.{part}" if part else str(scorer), number


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        known = _LETTERS.get(value.lower())
        if known is not None:
            return known
        try:
            value = float(value)
        except ValueError:
            return None
    return score_of(value)
