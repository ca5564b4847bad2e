"""One call of `search`: where records go, what is finished already, the files of the run.

Questions are searched by a `Crew`. All else (the journal's lock, results, their order, pairs,
totals) is here, in one process, whoever searches. Nothing here grows with the number of questions
but their ids and, in the output folder, a few bytes for each.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Iterator, Sized
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pts.api_crew import Crew
from pts.api_questions import Task, describe_verifier
from pts.api_summary import Records, SearchRun, Summary, Totals, used_ids
from pts.errors import DataError, JournalError
from pts.journal import Journal
from pts.pairs import Selection
from pts.runner_progress import Watch
from pts.store import Record, ResultFile, read_records, write_json, write_pairs
from pts.types import Problem

_SUMMARY = TypeAdapter(Summary)


class Session:
    """One call of `search`."""

    def __init__(self, crew: Crew, task: Task) -> None:
        self._crew, self._task = crew, task
        self._folder: Path | None = None
        self._file: ResultFile | None = None
        self._journal: Journal | None = None
        self._memory: list[Record] = []
        self._order: dict[str, int] = {}
        self._added = False

    def open(self, folder: Path, stack: ExitStack) -> None:
        """Take hold of a run folder: the lock first, then what earlier sessions left."""
        folder.mkdir(parents=True, exist_ok=True)
        results, journal = folder / "results.jsonl", folder / "journal.jsonl"
        if results.exists() and results.stat().st_size and not journal.exists():
            raise JournalError(
                f"{folder} holds results without the journal they came from; "
                "use another output folder"
            )

        def finished() -> Collection[str]:
            self._file = ResultFile(results)
            stack.callback(self._file.close)
            return self._file.finished

        self._journal = stack.enter_context(Journal(journal, self._fingerprint(), finished))
        self._folder = folder

    def _fingerprint(self) -> dict[str, Any]:
        facts = self._crew.facts
        return {
            "policy": facts.policy,
            "sampling": facts.sampling.model_dump(mode="json"),
            "config": self._task.config.model_dump(mode="json"),
            "verifier": describe_verifier(self._task.verifier),
            "seed": self._task.seed,
        }

    def drive(self, problems: Iterable[Problem], progress: bool) -> None:
        """Search what is not finished; keep each record as soon as it is there."""
        left = None
        if isinstance(problems, Sized):
            left = max(0, len(problems) - (len(self._file.finished) if self._file else 0))
        try:
            with Watch(left, progress) as watch:
                asked = self._unfinished(problems)
                for record in self._crew.search(asked, left, self._journal, watch):
                    self._keep(record)
        except KeyboardInterrupt:
            self._keep_pieces()
            raise

    def _unfinished(self, problems: Iterable[Problem]) -> Iterator[Problem]:
        for problem in problems:
            if problem.id in self._order:
                raise DataError(f"two problems have the id {problem.id!r}; ids must be unique")
            self._order[problem.id] = len(self._order)
            if self._file is None or problem.id not in self._file.finished:
                yield problem

    def _keep(self, record: Record) -> None:
        self._added = True
        if self._file is None:
            self._memory.append(record)
        else:
            self._file.append(record)

    def end(self, seconds: float) -> SearchRun:
        """Put the results in order, select pairs, write the files that are written whole."""
        records, sorted_now = self._sorted()
        stored = self._stored_summary() if not sorted_now else None
        if stored is not None:
            return SearchRun(records, stored, self._folder)
        totals = Totals()
        selection = Selection(self._task.config, self._crew.facts.policy)
        for record in records:
            totals.add(record)
            selection.see(record.result)
        pairs = totals.confirmed(selection.pick(record.result for record in records))
        if self._folder is None:
            selected = list(pairs)
            return SearchRun(records, totals.summary(seconds), None, selected)
        self._write_pieces(self._crew.pieces(totals.ids, interrupted=False))
        write_pairs(self._folder / "pairs.jsonl", pairs)
        summary = totals.summary(seconds)
        write_json(self._folder / "summary.json", dataclasses.asdict(summary))
        return SearchRun(records, summary, self._folder)

    def _sorted(self) -> tuple[Records, bool]:
        """The results in the order of the problems, and whether they had to be moved."""
        if self._file is None:
            self._memory.sort(key=lambda record: self._order[record.result.problem_id])
            return self._memory, True
        return read_records(self._file.path), self._file.sort(self._order)

    def _stored_summary(self) -> Summary | None:
        """That of a finished run to which this session has added nothing; it is written last."""
        if self._folder is None or self._file is None or self._added:
            return None
        try:
            summary = _SUMMARY.validate_json((self._folder / "summary.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return summary if sum(summary.questions.values()) == len(self._file.finished) else None

    def _keep_pieces(self) -> None:
        """Write the token texts that are at hand, for a report of an interrupted run."""
        if self._file is None or self._folder is None:
            return
        records = read_records(self._file.path)
        ids = set(chain.from_iterable(used_ids(record.result) for record in records))
        path = self._folder / "pieces.json"
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        known = {int(i): text for i, text in old.items()}
        self._write_pieces(known | self._crew.pieces(ids, interrupted=True))

    def _write_pieces(self, pieces: dict[int, str]) -> None:
        if self._folder is not None:
            texts = {str(i): pieces[i] for i in sorted(pieces)}
            write_json(self._folder / "pieces.json", texts)
