"""`merge_shards`: one run of the shards that searched its questions, its pairs selected anew.

    merge_shards("runs/all", ["runs/part-1", "runs/part-2", "runs/part-3", "runs/part-4"])

Lines of the shards are copied in the order of the problems. Then the run ends as a search does
(`pts.runtime.finish`): all proposed pairs, whichever shard they come from, are tested together.
Memory holds 8 bytes for each question, and what a selection does.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat
from operator import itemgetter
from pathlib import Path
from typing import Any

from pts.data.rollouts import ROLLOUTS
from pts.errors import ConfigError, DataError, PTSError
from pts.files import leading_text, output_fault, replacing, write_json
from pts.packing import unpack_numbers
from pts.runtime.finish import write_end
from pts.runtime.journal import FORMAT, Journal, differences
from pts.runtime.results import RESULT_HEAD, ROLLOUTS_HEAD, WRITTEN
from pts.runtime.run_folder import RunFolder, has_token_texts
from pts.runtime.shards import MANIFEST, IdsDigest, Shard, ShardManifest, read_manifest
from pts.runtime.summary import SearchRun, read_summary

MARK = "merge.json"
"""By this file a merge knows a folder that a merge has written."""
SHOWN = 5
"""Missing shards that are named one by one."""


@dataclass(frozen=True)
class Part:
    """The folder of a finished shard."""

    run: RunFolder
    shard: Shard
    manifest: ShardManifest
    seconds: float

    @property
    def path(self) -> Path:
        return self.run.path

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the journal is known by, apart from the shard."""
        return {name: value for name, value in self.run.fingerprint.items() if name != "shard"}

    def lines(self, name: str, head: bytes) -> Iterator[tuple[int, str]]:
        """Lines of a file of a question a line, `head` before its id, each with the question's
        position among all; those of questions that are no longer listed come last.

        Raises DataError unless the file holds the questions of the manifest in their order.
        """
        own = array("Q", unpack_numbers(self.manifest.positions))
        places, seen, ids = chain(own, repeat(self.manifest.questions)), 0, IdsDigest()
        with (self.path / name).open("rb") as file:
            for line, place in zip(file, places, strict=False):
                question = leading_text(line, head)
                try:
                    text = line.decode()
                except UnicodeDecodeError:
                    question = None
                if question is None:
                    raise DataError(
                        f"{self.path / name}, line {seen + 1}: damaged; restore the file, or "
                        "search this shard again in a new folder"
                    )
                if seen < len(own):
                    ids.add(question)
                seen += 1
                yield place, text
        if str(ids) != self.manifest.ids:
            raise DataError(
                f"{self.path / name}: its questions are not those that {MANIFEST} tells of, in "
                "their order; run the command of this shard again"
            )


def merge_shards(
    output: Path | str, shards: Iterable[Path | str], *, partial: bool = False
) -> SearchRun:
    """Make one run folder, `output`, of the folders of a run's shards, in any order.

    All proposed pairs are selected together, at the run's one false discovery rate. The files are
    those of a search that was not divided; the journal has its first line alone, so `search` can go
    on with more questions. The shards stay as they are. A merge may be repeated.

    With `partial` shards may be missing; the summary's `missing_shards` names them.

    Raises DataError for all that is wrong, a line each: folders that hold no finished shard, shards
    of other settings, policies, questions or numbers of shards, missing ones and those given twice,
    an `output` that holds something else.
    """
    folder = Path(output)
    parts, faults = _read([Path(path) for path in shards])
    missing = _missing(parts)
    if missing and not partial and not faults:
        faults.append(_lacking(missing))
    faults += [*_strange(parts), *_twice(parts), *_output_faults(folder, parts)]
    if faults or not parts:
        raise DataError("\n".join(faults or ["no shards were given; name their folders"]))
    parts.sort(key=lambda part: part.shard.index)
    first = parts[0]
    folder.mkdir(parents=True, exist_ok=True)
    told = {str(part.shard): str(part.path) for part in parts}
    write_json(folder / MARK, {"shards": told, "missing": missing})
    with Journal(folder / "journal.jsonl", first.settings):
        for name in ("summary.json", "pairs.jsonl", ROLLOUTS):
            (folder / name).unlink(missing_ok=True)
        if first.run.config.keep != "none":
            _copy(parts, folder, ROLLOUTS, ROLLOUTS_HEAD)
        _copy(parts, folder, "results.jsonl", RESULT_HEAD)
        policy = first.settings["policy_digest"]
        texts = {int(i): text for part in parts for i, text in part.run.stored_texts.items()}
        seconds = max(part.seconds for part in parts)
        summary = write_end(
            folder, first.run.config, policy, lambda ids: {i: texts[i] for i in ids}, seconds,
            missing,
        )  # fmt: skip
    return SearchRun(RunFolder(folder).records, summary, folder, 0)


def _copy(parts: Sequence[Part], folder: Path, name: str, head: bytes) -> None:
    """Write the file of all parts, in the order of the problems."""
    placed = heapq.merge(*(part.lines(name, head) for part in parts), key=itemgetter(0))
    with replacing(folder / name) as out:
        out.writelines(line for _, line in placed)


def _read(paths: Sequence[Path]) -> tuple[list[Part], list[str]]:
    """The parts that can be read, and what is wrong with the others."""
    parts, faults = list[Part](), list[str]()
    for path in paths:
        try:
            parts.append(_part(path))
        except PTSError as error:
            faults.append(str(error))
    return parts, faults


def _part(path: Path) -> Part:
    run = RunFolder(path)
    if run.format != FORMAT:
        raise DataError(
            f"{path}: its journal has format {run.format!r}, this version reads {FORMAT}; merge "
            "with the version that searched it"
        )
    if "shard" not in run.fingerprint:
        raise DataError(
            f"{path}: holds no shard; search with --shard, in an --output of its own for each"
        )
    try:
        shard = Shard.parse(str(run.fingerprint["shard"]))
    except ConfigError as error:
        raise DataError(f"{path}/journal.jsonl, line 1: {error}; restore the file") from None
    manifest, summary = read_manifest(path), read_summary(path)
    if summary is None or manifest is None:
        raise DataError(
            f"{path}: shard {shard} is not finished; run its command again, or leave it out and "
            "give --partial"
        )
    if not has_token_texts(path):
        raise DataError(
            f"{path}: token_texts.json is missing or damaged; run the shard's command again, which "
            "writes it"
        )
    if run.config.keep != "none" and not (path / ROLLOUTS).is_file():
        raise DataError(f"{path}: no {ROLLOUTS}; restore it, or search this shard again")
    return Part(run, shard, manifest, summary.seconds)


def _strange(parts: Sequence[Part]) -> Iterator[str]:
    """In what parts differ from the first one."""
    for part in parts[1:]:
        first = parts[0]
        for name, old, new in differences("", first.settings, part.settings):
            yield (
                f"{part.path}: {name} is {new!r}, but {old!r} in {first.path}; leave one of them "
                "out, or search it again with equal settings"
            )
        if part.shard.count != first.shard.count:
            yield (
                f"{part.path}: shard {part.shard}, but {first.path} is shard {first.shard}; merge "
                "shards of one division"
            )
        mine, theirs = part.manifest, first.manifest
        if mine.digest != theirs.digest:
            yield (
                f"{part.path}: searched another list of questions ({mine.questions:,}) than "
                f"{first.path} ({theirs.questions:,}); give all shards the same --problems and run "
                "their commands again"
            )


def _twice(parts: Sequence[Part]) -> Iterator[str]:
    """Shards that stand in two folders."""
    first = dict[Shard, Part]()
    for part in parts:
        other = first.setdefault(part.shard, part)
        if other is not part:
            yield f"{part.path}: shard {part.shard}, as {other.path} is; leave one of them out"


def _missing(parts: Sequence[Part]) -> list[str]:
    """The shards of the first one's division that are not there."""
    if not parts:
        return []
    count, there = parts[0].shard.count, {part.shard.index for part in parts}
    return [str(Shard(i, count)) for i in range(1, count + 1) if i not in there]


def _lacking(missing: Sequence[str]) -> str:
    more = f" and {len(missing) - SHOWN:,} more" if len(missing) > SHOWN else ""
    return (
        f"missing: shard {', '.join(missing[:SHOWN])}{more}; search with --shard, or give "
        "--partial to do without"
    )


def _output_faults(folder: Path, parts: Sequence[Part]) -> Iterator[str]:
    """Why the merged run cannot be written to the folder."""
    for part in parts:
        if folder.resolve() == part.path.resolve():
            yield f"{folder}: is one of the shards; give another --output"
            return
    if fault := output_fault(folder, MARK, (*WRITTEN, "results.jsonl", "journal.jsonl")):
        yield f"{folder}: {fault}"
        return
    journal = folder / "journal.jsonl"
    if journal.is_file():
        with journal.open("rb") as file:
            if file.readline() and file.readline():
                yield f"{folder}: has been searched since it was merged; give another --output"
