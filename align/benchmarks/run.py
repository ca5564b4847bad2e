"""Measure a model on benchmarks: items that can be compared, and a summary with intervals.

    OUTPUT/NAME/samples_NAME.jsonl   a line a question, in the form of lm-evaluation-harness'
                                     --log_samples (read by `align compare`, and by others)
    OUTPUT/NAME/summary.json         means with intervals, by stratum too
    OUTPUT/NAME/task.json            what was asked of whom; another question or policy is refused

The same command goes on after a kill: answers come from `pts.sample`'s journal, log-likelihoods
from `likelihoods.jsonl`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.benchmarks.likelihood import continuations, loglikelihoods, scoring_engine
from align.benchmarks.questions import Question, build_questions, reference_text
from align.benchmarks.rows import Row
from align.benchmarks.scores import MAIN, SCORES, Score
from align.benchmarks.settings import Benchmark
from align.errors import RecipeError, StageError
from align.evaluation.statistics import mean_interval
from pts.config import SamplingConfig
from pts.engines.base import Engine
from pts.errors import ConfigError, did_you_mean
from pts.files import complete_lines, dumps, replacing, write_json
from pts.runtime.sample import sample
from pts.types import Estimate, Grade, Problem, Verdict
from pts.verifiers.base import Verifier
from pts.verifiers.registry import VERIFIERS, make_verifier

if TYPE_CHECKING:
    from align.models.engines import Load

CHUNK = 32
"""Questions whose log-likelihoods are written together."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Scores of one question: by name, one value a sample."""

    question: Question
    scores: Mapping[str, tuple[float, ...]]
    answers: tuple[str, ...]
    """What was written, or the choice that was likeliest."""


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """Means over the questions, with intervals clustered by question."""

    name: str
    questions: int
    unscored: int
    main: str
    scores: Mapping[str, Estimate]
    strata: Mapping[str, Estimate]
    """Of the main score."""


def run_benchmark(
    benchmark: Benchmark,
    load: Load,
    output: Path,
    progress: bool = True,
    questions: Sequence[Question] | None = None,
    asked_of: Mapping[str, Any] | None = None,
) -> BenchmarkResult:
    """Ask all questions of a benchmark, score the answers, write the files.

    Args:
        benchmark: what is asked, and how it is scored.
        load: gives the policy, see `align.models.engines.policy_engines`.
        output: folder of the benchmark's own folder.
        progress: draw bars.
        questions: made of the benchmark's rows unless given.
        asked_of: what decides numbers beside policy and questions: the engine, if it is another
            than transformers.

    Raises:
        StageError: the folder holds another benchmark's or another policy's results.
        RecipeError, DataError: the benchmark's rows or templates are wrong.
        MissingExtra: its data or its checks need a package that is not installed.
    """
    questions = build_questions(benchmark) if questions is None else questions
    folder = output / benchmark.name
    folder.mkdir(parents=True, exist_ok=True)
    choice = benchmark.kind == "choice"
    engine = scoring_engine(load) if choice else load(_sampling(benchmark))
    _check_folder(folder, benchmark, engine, questions, asked_of or {})
    if choice:
        measured = _choose(benchmark, engine, questions, folder)
        main, unscored = "acc", 0
    else:
        measured = _generate(benchmark, engine, questions, folder, progress)
        main, unscored = MAIN.get(benchmark.score, "passed"), len(questions) - len(measured)
    if len(measured) < 2:
        raise StageError(f"{folder}: {len(measured)} questions have a score; a mean needs 2")
    result = _summary(benchmark, measured, main, unscored)
    _write(folder, benchmark, measured, result)
    return result


def _sampling(benchmark: Benchmark) -> SamplingConfig:
    return SamplingConfig(
        temperature=benchmark.temperature, max_new_tokens=benchmark.max_new_tokens
    )


def _check_folder(
    folder: Path,
    benchmark: Benchmark,
    engine: Engine,
    questions: Sequence[Question],
    asked_of: Mapping[str, Any],
) -> None:
    task = {
        "benchmark": json.loads(benchmark.model_dump_json()),
        "policy_digest": engine.policy_digest,
        "questions": [question.digest for question in questions],
        **asked_of,
    }
    file = folder / "task.json"
    if not file.is_file():
        write_json(file, task)
        return
    known = json.loads(file.read_text())
    if known != task:
        keys = {*task, *known}
        changed = sorted(key for key in keys if known.get(key) != task.get(key))
        raise StageError(
            f"{folder}: holds results of other {' and '.join(changed)}; give another --output, or "
            "delete the folder"
        )


def _choose(
    benchmark: Benchmark, engine: Engine, questions: Sequence[Question], folder: Path
) -> list[Measured]:
    """Log-likelihoods of all choices: `acc` takes the largest, `acc_norm` the largest a byte."""
    file = folder / "likelihoods.jsonl"
    known: dict[str, list[float]] = {}
    if file.is_file():
        for _, _, line in complete_lines(file):
            row = json.loads(line)
            known[row["id"]] = row["likelihoods"]
    left = [question for question in questions if question.id not in known]
    with file.open("a", encoding="utf-8") as out:
        for start in range(0, len(left), CHUNK):
            some = left[start : start + CHUNK]
            pairs = [continuations(engine, question, benchmark.joint) for question in some]
            flat = [pair for several in pairs for pair in several]
            scores = iter(loglikelihoods(engine, flat))
            for question, several in zip(some, pairs, strict=True):
                known[question.id] = [next(scores) for _ in several]
                row = {"id": question.id, "likelihoods": known[question.id]}
                out.write(dumps(row) + "\n")
            out.flush()
    return [_chosen(question, known[question.id]) for question in questions]


def _chosen(question: Question, likelihoods: Sequence[float]) -> Measured:
    bytes_ = [max(1, len(choice.encode())) for choice in question.choices]
    a_byte = [score / size for score, size in zip(likelihoods, bytes_, strict=True)]
    best, best_a_byte = (max(range(len(s)), key=s.__getitem__) for s in (likelihoods, a_byte))
    scores = {
        "acc": (float(best == question.gold),),
        "acc_norm": (float(best_a_byte == question.gold),),
    }
    return Measured(question, scores, (question.choices[best],))


class Unjudged:
    """Passes everything: a benchmark scores what is before its marks, a cut answer included."""

    def __call__(self, problem: Problem, text: str) -> Grade:
        return Grade(Verdict.PASS)


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first mark."""
    places = [place for mark in until if (place := text.find(mark)) >= 0]
    return text[: min(places)] if places else text


def judged(verifier: Verifier) -> Score:
    """A verifier as a score, `passed`; nothing where it could not judge."""

    def score(reference: Any, text: str, row: Row) -> dict[str, float]:
        grade = verifier(Problem("", "", reference_text(reference), row), text)
        if grade.verdict is Verdict.UNSCORED:
            return {}
        return {"passed": float(grade.verdict is Verdict.PASS)}

    return score


def score_of(benchmark: Benchmark) -> Score:
    """How written answers are scored.

    Raises:
        RecipeError: there is no such score, or every fault of its options.
        MissingExtra: its checks need a package that is not installed.
    """
    if benchmark.score in SCORES:
        return SCORES[benchmark.score]
    try:
        return judged(make_verifier(benchmark.score))
    except ConfigError as error:
        name, more = benchmark.score.partition(":")[0], ""
        if name not in VERIFIERS:
            more = f", or {', '.join(SCORES)}{did_you_mean(name, SCORES)}"
        place = f"{benchmark.name}.score"
        raise RecipeError(*(f"{place}: {problem}{more}" for problem in error.problems)) from None


def _generate(
    benchmark: Benchmark,
    engine: Engine,
    questions: Sequence[Question],
    folder: Path,
    progress: bool,
) -> list[Measured]:
    """Answers of every question, scored; without those that could not be judged."""
    score = score_of(benchmark)
    problems = [question.problem for question in questions]
    found = sample(
        problems, engine, Unjudged(), n=benchmark.samples,
        output=folder / "samples", seed=benchmark.seed, progress=progress,
    )  # fmt: skip
    measured = []
    for question, samples in zip(questions, found, strict=True):
        texts = tuple(cut(engine.decode(r.ids), benchmark.until) for r in samples.rollouts)
        by_sample = [dict(score(question.reference, text, question.row)) for text in texts]
        if not all(by_sample):
            continue  # a verdict that cannot be had
        for values, rollout in zip(by_sample, samples.rollouts, strict=True):
            values |= {"length": float(rollout.length), "cut": float(rollout.truncated)}
        scores = {name: tuple(values[name] for values in by_sample) for name in by_sample[0]}
        measured.append(Measured(question, scores, texts))
    return measured


def _summary(
    benchmark: Benchmark, measured: Sequence[Measured], main: str, unscored: int
) -> BenchmarkResult:
    def interval(some: Sequence[Measured], name: str) -> Estimate:
        return mean_interval([sum(m.scores[name]) / len(m.scores[name]) for m in some])

    strata: dict[str, list[Measured]] = {}
    for one in measured:
        strata.setdefault(one.question.stratum, []).append(one)
    several = benchmark.stratify and {k: s for k, s in strata.items() if len(s) > 1}
    return BenchmarkResult(
        benchmark.name,
        len(measured),
        unscored,
        main,
        {name: interval(measured, name) for name in measured[0].scores},
        {name: interval(some, main) for name, some in sorted((several or {}).items())},
    )


def _write(
    folder: Path, benchmark: Benchmark, measured: Sequence[Measured], result: BenchmarkResult
) -> None:
    with replacing(folder / f"samples_{benchmark.name}.jsonl") as file:
        for line in _lines(measured):
            file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
    write_json(folder / "summary.json", dataclasses.asdict(result))


def _lines(measured: Sequence[Measured]) -> Iterator[dict[str, Any]]:
    for one in measured:
        question = one.question
        prompt = question.prompt
        asked = prompt if isinstance(prompt, str) else [[m.role, m.content] for m in prompt]
        target = question.choices[question.gold] if question.choices else question.reference
        scores = {k: list(v) if len(v) > 1 else v[0] for k, v in one.scores.items()}
        yield {
            "doc_id": question.id,
            "doc": question.row,
            "target": target,
            "arguments": [[asked, choice] for choice in question.choices] or [[asked]],
            "filtered_resps": list(one.answers),
            "filter": "none",
            "metrics": list(one.scores),
            "doc_hash": question.digest,
            **scores,
        }
