"""One call of `search`: where records go, what is finished already, the files of the run.

Questions are searched by an `Executor`: an engine in this process (`QuestionSearcher`) or workers
(`LeasingExecutor`). All else (the journal's lock, results, their order, pairs, totals) is here, in
one process, whoever searches. Nothing here grows with the number of questions but their ids and, in
the output folder, a few bytes for each.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sized
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pts.data.rollouts import ROLLOUTS, rollouts_line
from pts.errors import DataError, JournalError
from pts.files import asked_digest, output_fault
from pts.runtime.finish import select, write_end, write_token_texts
from pts.runtime.journal import Journal, has_header
from pts.runtime.progress import ProgressReporter
from pts.runtime.results import (
    WRITTEN,
    QuestionLines,
    Record,
    ResultFile,
    RolloutFile,
    read_records,
)
from pts.runtime.run_folder import has_token_texts
from pts.runtime.scheduler import Progress
from pts.runtime.searcher import EngineInfo, SearchSpec, fingerprint
from pts.runtime.shards import QuestionList, Shard
from pts.runtime.summary import Records, RunSummary, SearchRun, read_summary, used_ids
from pts.types import Problem, QuestionResult


class Executor(Protocol):
    """Who searches the questions: an engine in this process, or workers."""

    @property
    def engine_info(self) -> EngineInfo: ...

    def check(self, problems: Iterable[Problem]) -> None:
        """Raise DataError if any problem or completion cannot be searched."""

    def search(
        self,
        problems: Iterable[Problem],
        left: int | None,
        journal: Journal | None,
        on_progress: Callable[[Progress], None],
    ) -> Iterator[Record]:
        """Search the problems (`left` of them, if that is known)."""

    def token_texts(self, ids: set[int], *, interrupted: bool) -> dict[int, str]:
        """Texts of tokens; once `interrupted`, of those at hand."""


class RunSession:
    """One call of `search`."""

    def __init__(self, executor: Executor, spec: SearchSpec, shard: Shard | None = None) -> None:
        self._executor, self._spec, self._shard = executor, spec, shard
        self._questions = QuestionList(shard)
        self._file: ResultFile | None = None
        self._rollouts: RolloutFile | None = None
        self._journal: Journal | None = None
        self._memory: list[Record] = []
        self._order: dict[str, int] = {}
        self._asked: dict[str, str] = {}
        """Digests of the problems under way."""
        self._added = False
        self._sampled = 0

    def open(self, folder: Path, stack: ExitStack) -> None:
        """Take hold of a run folder: the lock first, then what earlier sessions left."""
        if fault := output_fault(folder, "journal.jsonl", WRITTEN):
            raise JournalError(f"{folder}: {fault}")
        folder.mkdir(parents=True, exist_ok=True)
        results, journal = folder / "results.jsonl", folder / "journal.jsonl"
        if results.exists() and results.stat().st_size and not has_header(journal):
            raise JournalError(
                f"{folder} holds results without the journal they came from, or without its first "
                "line; restore it, or use another output folder"
            )

        keep = self._spec.config.keep

        def finished() -> Collection[str]:
            self._file = stack.enter_context(closing(ResultFile(results)))
            if keep != "none":
                rollouts = RolloutFile(folder / ROLLOUTS, self._file)
                self._rollouts = stack.enter_context(closing(rollouts))
            return self._file.finished

        settings: dict[str, Any] = {"config": self._spec.config.model_dump(mode="json")}
        if self._shard is not None:
            settings["shard"] = str(self._shard)
        run = fingerprint(
            self._executor.engine_info, self._spec.verifier, self._spec.seed, **settings
        )
        self._journal = stack.enter_context(Journal(journal, run, finished, keep))

    def drive(self, problems: Iterable[Problem], progress: bool) -> None:
        """Search what is not finished; keep each record as soon as it is there."""
        left = None
        if isinstance(problems, Sized):
            done = self._file.finished if self._file is not None else frozenset[str]()
            if done or self._shard is not None:
                left = sum(self._questions.holds(p.id) and p.id not in done for p in problems)
            else:
                left = len(problems)
        try:
            with ProgressReporter(left, progress) as report:

                def watch(now: Progress) -> None:
                    self._sampled = now.tokens
                    report(now)

                asked = self._unfinished(problems)
                for record in self._executor.search(asked, left, self._journal, watch):
                    self._keep(record)
        except KeyboardInterrupt:
            self._keep_token_texts()
            raise
        came = self._questions.total
        if isinstance(problems, Sized) and came != len(problems):
            raise DataError(
                f"{len(problems)} problems were announced, {came} came: what has a "
                "length is iterated several times; give a list, or an iterator without a length"
            )

    def _unfinished(self, problems: Iterable[Problem]) -> Iterator[Problem]:
        for problem in self._questions.own(problems):
            if problem.id in self._order:
                raise DataError(f"two problems have the id {problem.id!r}; ids must be unique")
            self._order[problem.id] = len(self._order)
            digest = asked_digest(problem)
            if self._file is None or problem.id not in self._file.finished:
                self._asked[problem.id] = digest
                yield problem
            elif self._file.asked(problem.id) not in ("", digest):
                raise JournalError(
                    f"{self._file.path}: question {problem.id!r} has changed since it was searched "
                    "(prompt, reference, metadata or completions); restore it, give it another id, "
                    "or use another output folder"
                )

    def _keep(self, record: Record) -> None:
        record = dataclasses.replace(record, asked=self._asked.pop(record.result.problem_id))
        if self._file is None:
            self._memory.append(record)
            return
        if not self._added:  # what an earlier session wrote of the whole run holds no longer
            for name in ("summary.json", "pairs.jsonl"):
                self._file.path.with_name(name).unlink(missing_ok=True)
        self._added = True
        self._keep_rollouts(record.result)
        self._file.append(record)

    def _keep_rollouts(self, result: QuestionResult) -> None:
        """Put a question's rollouts on file, if they are kept; a kill may have come in between."""
        name, journal = result.problem_id, self._journal
        assert journal is not None
        if self._rollouts is not None and name not in self._rollouts.finished:
            policy, keep = self._executor.engine_info.policy_digest, self._spec.config.keep
            drawn = journal.drawn(name)
            line = rollouts_line(name, result.prompt_ids, policy, keep, drawn)
            self._rollouts.write(name, line)
        journal.forget(name)

    def end(self, seconds: float) -> SearchRun:
        """Put the results in order, select pairs, write the files that are written whole."""
        file = self._file
        if file is None:
            self._memory.sort(key=lambda record: self._order[record.result.problem_id])
            records: Records = self._memory
        else:
            folder, records = file.path.parent, read_records(file.path)
            stored = self._stored_summary(file)
            # The files of a finished run stay as they are: for some of its problems (a plan's
            # probe), or for all in the order that they have.
            some = stored is not None and len(self._order) < len(file.finished)
            moved = not some and sum(f.sort(self._order) for f in self._files) > 0
            if not some:
                self._questions.write(folder)
            if stored is not None and not moved:
                if not has_token_texts(folder):
                    self._keep_token_texts(interrupted=False)
                return SearchRun(records, stored, folder, self._sampled)
        config, policy = self._spec.config, self._executor.engine_info.policy_digest
        if file is None:
            totals, pairs = select(records, config, policy)
            selected = list(pairs)
            return SearchRun(records, totals.summary(seconds), None, self._sampled, selected)
        texts = partial(self._executor.token_texts, interrupted=False)
        summary = write_end(folder, config, policy, texts, seconds)
        return SearchRun(records, summary, folder, self._sampled)

    @property
    def _files(self) -> list[QuestionLines]:
        """What is put into the order of the problems at the end."""
        return [file for file in (self._file, self._rollouts) if file is not None]

    def _stored_summary(self, file: ResultFile) -> RunSummary | None:
        """That of a finished run to which this session has added nothing; it is written last."""
        if self._added:
            return None
        summary = read_summary(file.path.parent)
        whole = summary is not None and sum(summary.questions.values()) == len(file.finished)
        return summary if whole else None

    def _keep_token_texts(self, interrupted: bool = True) -> None:
        """Write the token texts; those that are at hand, for a report of an interrupted run."""
        if self._file is None:
            return
        ids = set[int]()
        for record in read_records(self._file.path):
            ids |= used_ids(record.result)
        path = self._file.path.with_name("token_texts.json")
        known: dict[int, str] = {}
        with suppress(OSError, ValueError, AttributeError):  # damaged: it is written anew
            old = json.loads(path.read_text(encoding="utf-8"))
            known = {int(i): text for i, text in old.items()}
        write_token_texts(
            path.parent, known | self._executor.token_texts(ids, interrupted=interrupted)
        )
