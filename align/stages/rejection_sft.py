"""Rejection sampling: SFT on the policy's own right answers, as ids exactly as they were sampled.

They are sampled here, or a search has drawn them before (`rollouts`). A `judge` may choose the
best one of each question (best of n), answers of other `generators` among them.

Right answers that stopped with another token than the end of turn (a base model's end of text, for
instance) are left out and counted: they would teach the wrong one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from align.context import StageContext, StageResult
from align.data.chat import ChatIds, answer_row
from align.data.preferences import Sampled, count_outcomes
from align.data.rollouts import answers_of, collect_answers
from align.errors import StageError
from align.judging.settings import JudgedConfig
from align.models.engines import load_engine
from align.settings import ChatTrainingConfig
from align.stages.generators import gather
from align.stages.judged import best_answers
from align.stages.sampling import decoder, sample_answers, searched_problems


class RejectionSFTConfig(JudgedConfig, ChatTrainingConfig):
    """SFT on the policy's own right answers (rejection sampling)."""

    num_problems: int = Field(400, ge=1, le=10**9)
    """Problems to sample."""
    samples: int = Field(6, ge=1, le=100_000)
    """Completions a problem; the right ones become rows."""
    max_per_question: int = Field(0, ge=0)
    """Rows at most of one question where `rollouts` gives them; 0 takes all."""
    match: tuple[str, ...] = ()
    """Stages whose generated tokens this one spends too, all together, within 2 %: it asks as many
    questions as that allows, whatever num_problems says."""
    judged_answers: int = Field(4, ge=2, le=100)
    """With a `judge`, answers of a question that it is shown at most, all in one call: the first of
    the policy and of each generator, then the second of each; the one with the highest mean of
    accuracy, style and detail becomes the row."""
    answers: Literal["right", "all"] = "right"
    """Answers that may become rows: the right ones, or all (as a control; or with a `judge`, which
    then chooses among all)."""
    max_length: int = Field(1024, ge=8)
    """Longer rows are dropped, counted and shown, never cut."""

    of_judge: ClassVar[tuple[str, ...]] = (*JudgedConfig.of_judge, "judged_answers")
    beside_judge: ClassVar[tuple[str, ...]] = ("max_per_question",)
    at_defaults: ClassVar[tuple[str, ...]] = (*ChatTrainingConfig.at_defaults, "answers")

    @property
    def kept(self) -> Literal["right", "all"]:
        """Rollouts that a search must have kept for this stage."""
        return self.answers

    @property
    def outcomes(self) -> tuple[bool, ...]:
        """Of answers that may become rows: whether they are right."""
        return (True,) if self.answers == "right" else (True, False)


def run(context: StageContext) -> StageResult:
    """Sample answers, or take those of a search, and train on the right ones.

    Raises:
        StageError: no right answer, or the validation of the rows found faults.
    """
    from align.training.launch import launched
    from align.training.record import begin

    done = begin(context, context.settings)
    if done is not None:
        return done
    rows, counts = _rows(context)
    return launched(train, context, rows, counts)


def train(
    context: StageContext,
    policy: Any,
    tokenizer: Any,
    rows: Sequence[ChatIds],
    counts: dict[str, Any],
) -> StageResult:
    """Train on right answers; `counts` told what they were drawn from."""
    from align.training.chat_rows import prepare, validate_rows
    from align.training.trl import train_sft

    config = context.settings
    new_tokens = prepare(policy, tokenizer)
    ended = [row for row in rows if row.ids[-1] == tokenizer.eos_token_id]
    if rows and not ended:
        raise _none_ended(context, tokenizer, rows)
    validated = validate_rows(tokenizer, ended, config.max_length)
    validated.metrics.update(counts, rows_other_stop=len(rows) - len(ended))
    return train_sft(
        context, config, policy, tokenizer, validated.rows, validated.metrics, new_tokens
    )


def _rows(context: StageContext) -> tuple[list[ChatIds], dict[str, Any]]:
    if context.settings.judge is not None:
        return _judged(context)
    return _drawn(context) if context.rollouts is None else _of_search(context)


def _drawn(context: StageContext) -> tuple[list[ChatIds], dict[str, Any]]:
    sampled, counts = _sample(context)
    which = context.settings.answers
    rows = answer_rows(sampled, which)
    if not rows:
        raise _none_right(context, len(sampled))
    answers = [answer for question in sampled for answer in question.answers]
    right = sum(answer.right for answer in answers)
    kept = right if which == "right" else len(answers)
    return rows, {**counts, "right_answers": right, "duplicates": kept - len(rows)}


def _sample(context: StageContext) -> tuple[list[Sampled], dict[str, Any]]:
    config = context.settings
    with load_engine(context) as engine:
        sampled, spent = sample_answers(context, engine, config.num_problems, config.samples)
    return sampled, {**count_outcomes(sampled), **spent}


def _judged(context: StageContext) -> tuple[list[ChatIds], dict[str, Any]]:
    """The best answer to each question, of the policy's (sampled here, or stored) and those of the
    generators."""
    config = context.settings
    sampled, counts = _sample(context) if context.rollouts is None else _stored(context)
    answered, offered = gather(context, sampled, config.generators)
    usable = any(c.right or config.answers == "all" for q in answered for c in q.candidates)
    if not usable:
        raise _none_right(context, len(sampled))
    best, told = best_answers(context, answered, config.judged_answers, config.answers)
    return best, {**counts, **offered, **told}


def _stored(context: StageContext) -> tuple[list[Sampled], dict[str, Any]]:
    """The answers of a search, as if they were sampled here."""
    config, run = context.settings, context.rollouts
    assert run is not None
    found = list(answers_of(run, config.purposes, decoder(context), config.outcomes))
    problems = searched_problems(context, {one.problem_id for one in found})
    sampled = [replace(one, problem=problems[one.problem_id]) for one in found]
    return sampled, {"questions": len(sampled), "generated_tokens": 0}


def _none_right(context: StageContext, questions: int) -> StageError:
    config = context.settings
    if context.rollouts is not None:
        return StageError(
            f"{context.rollouts}: holds no right answer drawn for {', '.join(config.purposes)}; "
            "take other purposes, or search more or easier problems"
        )
    return StageError(
        f"rejection_sft: no right answer among {config.samples} samples of each of "
        f"{questions} questions; raise rejection_sft.samples or take easier problems"
    )


def _none_ended(context: StageContext, tokenizer: Any, rows: Sequence[ChatIds]) -> StageError:
    stops = Counter(tokenizer.convert_ids_to_tokens(row.ids[-1]) for row in rows)
    found = ", ".join(f"{count:,} with {token}" for token, count in stops.most_common(3))
    which = "right answers" if context.settings.answers == "right" else "answers"
    return StageError(
        f"{context.entry.name}: none of {len(rows):,} {which} ended with {tokenizer.eos_token}, "
        f"the end of turn of model.chat_template, but {found}; they would teach to stop with the "
        "wrong token. Train an sft before this stage, or give the template that the policy knows"
    )


def _of_search(context: StageContext) -> tuple[list[ChatIds], dict[str, int]]:
    config, run = context.settings, context.rollouts
    assert run is not None
    found = collect_answers(
        run, config.purposes, config.max_per_question, context.seed("rows"), config.outcomes
    )
    if not found.rows:
        raise _none_right(context, found.questions)
    return found.rows, {
        "questions": found.questions,
        "duplicates": found.duplicates,
        "rows_above_limit": found.left_out,
        "generated_tokens": 0,
    }


def answer_rows(sampled: Sequence[Sampled], which: Literal["right", "all"]) -> list[ChatIds]:
    """A row for each distinct right answer of a question, or for each answer. A cut answer is never
    right."""
    rows = []
    for question in sampled:
        kept = (answer for answer in question.answers if answer.right or which == "all")
        distinct = dict.fromkeys(answer.ids for answer in kept)
        rows += [answer_row(question.prompt_ids, ids) for ids in distinct]
    return rows
