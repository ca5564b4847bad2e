"""Take what evaluation sets ask out of training sources: files in, files out, one pass.

    decontaminate(["train.jsonl"], ["gsm8k.jsonl"], Path("clean"))

    OUTPUT/clean/NAME      the rows that stay, in the format and order of their source
    OUTPUT/removed.jsonl   each row that went: where it stood, why, and the row
    OUTPUT/partial.jsonl   the same of rows that stay although they have something in common
    OUTPUT/allowed.txt     the allow-list, one 13-gram a line
    OUTPUT/summary.json    counts by source and by evaluation set, and what was asked

The evaluation sets are held in memory, the sources stream. OUTPUT appears when everything is
written; a run that was killed leaves `.OUTPUT.unfinished`, and the same command begins anew.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from align.decontamination.index import EvaluationIndex, Finding, judged
from align.decontamination.sources import (
    Writer,
    clean_names,
    columns_of,
    evaluation_texts,
    json_line,
    rows_of,
)
from align.settings import DecontaminationConfig
from pts.errors import ConfigError
from pts.files import folder_fault, write_json
from pts.plain_text import read_text

FORMAT = 1
"""Of summary.json, removed.jsonl and partial.jsonl."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is taken out of what."""

    train: tuple[str, ...]
    against: tuple[str, ...]
    columns: tuple[str, ...] = ()
    """Columns of the sources that are looked at; all texts if empty."""
    eval_columns: tuple[str, ...] = ()
    """Columns of the evaluation sets that are looked for; all texts if empty."""
    allow_list: str | None = None
    """A text file; all 13-grams of its lines are allowed."""
    allow_from: tuple[str, ...] = ()
    """Sources from which common 13-grams are learnt."""


def decontaminate(
    request: Request, output: Path, config: DecontaminationConfig | None = None
) -> dict[str, Any]:
    """Write the clean rows of all sources and what was removed; return the summary.

    A finished folder of the same request is left as it is.

    Raises:
        ConfigError: the output folder cannot be used, or holds what another request made.
        DataError: a source cannot be read; the message names its place.
    """
    config, output = config or DecontaminationConfig(), Path(os.path.abspath(output))
    asked = {"format": FORMAT, **asdict(request), "settings": config.model_dump()}
    asked["files"] = _states(request)
    asked = json.loads(json.dumps(asked))
    if (finished := _finished(output, asked)) is not None:
        return finished
    with _unfinished(output) as folder:
        index = EvaluationIndex(evaluation_texts(request.against, request.eval_columns), config)
        _allow(index, request)
        counts = _filter(index, request, folder)
        with (folder / "allowed.txt").open("w", encoding="utf-8") as file:
            file.writelines(f"{text}\n" for text in index.allowed_texts())
        summary = {**counts, "sets": _sets(index, request, counts.pop("by_set")), "asked": asked}
        summary["allowed"] = index.allowed
        write_json(folder / "summary.json", summary)
    return summary


def _filter(index: EvaluationIndex, request: Request, folder: Path) -> dict[str, Any]:
    """Stream all sources into the folder; counts by source and by evaluation set."""
    (folder / "clean").mkdir()
    sources, by_set = [], dict.fromkeys(request.against, 0)
    with ExitStack() as stack:
        removed, partial = (
            stack.enter_context((folder / name).open("w", encoding="utf-8"))
            for name in ("removed.jsonl", "partial.jsonl")
        )
        for source, name in zip(request.train, clean_names(request.train), strict=True):
            count: dict[str, Any] = {"source": source, "clean": f"clean/{name}", "rows": 0}
            count |= {"13-gram": 0, "7-gram": 0, "partial": 0}
            with Writer(folder / "clean" / name, source) as writer:
                stream = judged(
                    rows_of(source, request.columns),
                    lambda row: [text for _, text in columns_of(row[1], request.columns)],
                    index,
                )
                for (number, row), finding in stream:
                    count["rows"] += 1
                    if finding is not None:
                        count[finding.kind] += 1
                        told = _told(source, number, finding)
                    if finding is None or finding.kind == "partial":
                        writer.write(number, row)
                        if finding is not None:
                            partial.write(json_line(told, source, number))
                    else:
                        by_set[finding.item.source] += 1
                        removed.write(json_line({**told, "row": _plain(row)}, source, number))
            sources.append(count)
    return {"sources": sources, "by_set": by_set}


def _told(source: str, number: int, finding: Finding) -> dict[str, Any]:
    return {"source": source, "number": number, **asdict(finding)}


def _plain(row: dict[str, Any]) -> Any:
    """A row with the text of what JSON cannot hold, which Parquet can (dates, NaN)."""
    return json.loads(json.dumps(row, default=str), parse_constant=str)


def _allow(index: EvaluationIndex, request: Request) -> None:
    if request.allow_list is not None:
        try:
            index.allow(read_text(Path(request.allow_list)).splitlines())
        except OSError as error:
            raise ConfigError(f"--allow-list: {request.allow_list}: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"--allow-list: {request.allow_list}: {error}") from None
    if request.allow_from:
        index.learn_allowed(
            [text for _, text in columns_of(row, ())]
            for source in request.allow_from
            for _, row in rows_of(source)
        )


def _sets(index: EvaluationIndex, request: Request, by_set: dict[str, int]) -> list[dict[str, Any]]:
    """Counts of each evaluation set: texts looked for, those that are too short, rows removed."""
    texts = dict.fromkeys(request.against, 0)
    for item in index.items:
        texts[item.source] += 1
    return [
        {
            "set": name,
            "texts": texts[name],
            "too_short": index.short.get(name, 0),
            "removed": by_set[name],
        }
        for name in texts
    ]


def _states(request: Request) -> dict[str, list[int]]:
    """Size and time of every file that is read: a changed one is another request."""
    named = (*request.train, *request.against, *request.allow_from, request.allow_list or "")
    files = {name: Path(name) for name in named if name and Path(name).is_file()}
    return {name: [file.stat().st_size, file.stat().st_mtime_ns] for name, file in files.items()}


def _finished(output: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of a folder that is there and was asked for in the same words."""
    if fault := folder_fault(output):
        raise ConfigError(f"--output: {output}: {fault}")
    if not output.exists() or not any(output.iterdir()):
        return None
    try:
        summary: dict[str, Any] = json.loads((output / "summary.json").read_bytes())
        same = summary["asked"] == asked
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"--output: {output}: holds files that this command did not write; give a new or an "
            "empty folder"
        ) from None
    if not same:
        raise ConfigError(
            f"--output: {output}: was made with other sources or settings, or the files have "
            "changed since; give another folder, or delete it"
        )
    return summary


@contextmanager
def _unfinished(output: Path) -> Iterator[Path]:
    """A new folder beside `output` that takes its place when the block ends without error."""
    folder = output.with_name(f".{output.name}.unfinished")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        _hold(lock, output)
        for path in folder.iterdir():  # left by a kill
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != ".lock":
                path.unlink()
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder)
            raise
        (folder / ".lock").unlink()
        os.replace(folder, output)


def _hold(lock: IO[str], output: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"--output: {output}: another process is writing it; wait for it"
        ) from None
