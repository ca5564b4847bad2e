"""What the stages with a judge share: further answers, the judge itself, and what both have cost.

The calls are journalled in the stage's folder (`judge/calls.jsonl`), answers of generators in
`answers-NAME`: a killed stage asks and draws only the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from align.context import StageContext
from align.data.chat import ChatIds, answer_row, render_chats, special_token_faults
from align.data.preferences import Sampled
from align.errors import StageError
from align.judging.backends import open_backend
from align.judging.choice import Answered, Candidate, best_of
from align.judging.journal import CallJournal
from align.judging.judge import PromptedJudge
from align.judging.orders import BothOrders, judge_both, with_accuracy
from align.judging.prompt import Case, conversation_of
from align.judging.settings import GeneratorConfig
from align.judging.vices import vices
from align.models.load import load_tokenizer
from pts.engines.base import Engine
from pts.engines.registry import make_engine
from pts.types import Ids, Message, Problem

CALLS = Path("judge", "calls.jsonl")
POLICY = "policy"
"""Names the stage's own policy as a source of answers."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What a judge says of cases: in both orders, and the figures of it."""

    found: list[BothOrders]
    figures: dict[str, Any]
    """Calls, tokens and vices, for the metrics."""

    def reasons(self) -> str:
        """The commonest reason why answers are UNSCORED; empty if none is."""
        said = [both.reason for both in self.found if not both.scored]
        return max(said, key=said.count) if said else ""


def ask_judge(
    context: StageContext, cases: Sequence[Case], right: Sequence[Sequence[bool]]
) -> Judged:
    """Ask the stage's judge about cases, in both orders.

    Args:
        right: the verifier's word on each reply of each case, for `accuracy: verifier`.

    Raises:
        PTSError: the judge cannot be asked; the same command goes on.
    """
    config = context.settings.judge
    backend = open_backend(config, context.recipe.model)
    with closing(backend), CallJournal(context.folder / CALLS) as journal:
        judge = PromptedJudge(backend, journal, config.attempts, context.progress)
        found = judge_both(judge, cases)
        figures = {"cases": len(cases), **judge.counts, **vices(cases, found)}
    if config.accuracy == "verifier":
        found = [with_accuracy(both, told) for both, told in zip(found, right, strict=True)]
    return Judged(found, figures)


def gather(
    context: StageContext, sampled: Sequence[Sampled], generators: Sequence[GeneratorConfig]
) -> tuple[list[Answered], dict[str, int]]:
    """The answers to each question, the policy's first, then those of the generators in order.

    Answers that the length limit cut, or that are longer than it in the policy's tokens, are left
    out; so are those whose text stands there already, and those of generators that cannot be
    written in the policy's chat template. All are counted.

    Raises:
        PTSError: a generator cannot be used.
    """
    counts = {"answers": 0, "answers_too_long": 0, "answers_identical": 0, "answers_unfit": 0}
    offered: list[list[Candidate | None]] = [
        [
            None if answer.truncated else Candidate(POLICY, answer.ids, answer.text, answer.right)
            for answer in question.answers
        ]
        for question in sampled
    ]
    for generator in generators:
        tokens = _generate(context, generator, sampled, offered, counts)
        counts["generator_tokens"] = counts.get("generator_tokens", 0) + tokens
    found = []
    for question, candidates in zip(sampled, offered, strict=True):
        assert question.problem is not None
        whole = [candidate for candidate in candidates if candidate is not None]
        distinct = {candidate.text: candidate for candidate in reversed(whole)}
        kept = tuple(c for c in whole if distinct[c.text] is c)
        counts["answers"] += len(candidates)
        counts["answers_too_long"] += len(candidates) - len(whole)
        counts["answers_identical"] += len(whole) - len(kept)
        found.append(Answered(question.problem, question.prompt_ids, kept))
    counts["answers"] += counts["answers_unfit"]
    return found, counts


def _generate(
    context: StageContext,
    generator: GeneratorConfig,
    sampled: Sequence[Sampled],
    offered: Sequence[list[Candidate | None]],
    counts: dict[str, int],
) -> int:
    """Add a generator's answers (None for one that was cut) to those of each question; return its
    tokens."""
    from pts.runtime.sample import sample

    tokenizer = load_tokenizer(context.policy, context.recipe.model)
    engine = make_engine(generator.engine, context.recipe.sampling, **generator.options)
    try:
        drawn = sample(
            [question.problem for question in sampled if question.problem is not None],
            engine,
            context.task.verifier,
            n=generator.samples,
            output=context.folder / f"answers-{generator.name}",
            seed=context.seed(f"answers {generator.name}"),
            progress=context.progress,
        )
        shared = same_vocabulary(engine, tokenizer)
        for question, samples, candidates in zip(sampled, drawn, offered, strict=True):
            problem, prompt = question.problem, question.prompt_ids
            assert problem is not None
            same = shared and engine.encode(problem) == prompt
            for rollout in samples.rollouts:
                text = engine.decode(rollout.ids)
                ids = rollout.ids if same else answer_ids(tokenizer, problem, prompt, text)
                if rollout.truncated or len(ids) > context.recipe.sampling.max_new_tokens:
                    candidates.append(None)
                elif ids:
                    candidates.append(Candidate(generator.name, ids, text, rollout.success))
                else:
                    counts["answers_unfit"] += 1
    finally:
        if close := getattr(engine, "close", None):
            close()
    return sum(samples.cost.tokens for samples in drawn)


def same_vocabulary(engine: Engine, tokenizer: Any) -> bool:
    """Whether an engine's ids stand for the same tokens as those of a tokenizer."""
    own = getattr(engine, "tokenizer", None)
    return own is not None and bool(own.get_vocab() == tokenizer.get_vocab())


def answer_ids(tokenizer: Any, problem: Problem, prompt: Ids, text: str) -> Ids:
    """A text as the policy would have answered it, end of turn included; none where it holds a
    special token, or where the chat template does not go on from the prompt.
    """
    if special_token_faults(tokenizer, (Message("assistant", text),)):
        return ()
    if isinstance(problem.prompt, str):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return (*ids, tokenizer.eos_token_id)
    [row] = render_chats(tokenizer, [(*problem.prompt, Message("assistant", text))])
    if row.ids[: len(prompt)] != prompt:
        return ()
    behind = zip(row.ids[len(prompt) :], row.mask[len(prompt) :], strict=True)
    return tuple(token for token, flag in behind if flag)


def no_data(context: StageContext, counts: dict[str, Any], judged: Judged) -> StageError:
    """What a stage says when a judge leaves it nothing to train on."""
    why = f"; UNSCORED because: {reason}" if (reason := judged.reasons()) else ""
    told = ", ".join(f"{key.replace('_', ' ')} {n}" for key, n in counts.items() if n)
    return StageError(
        f"{context.entry.name}: the judge left nothing to train on ({told}){why}; read "
        f"{context.folder / CALLS}, or take another judge"
    )


def best_answers(
    context: StageContext, sampled: Sequence[Sampled], most: int, among: Literal["right", "all"]
) -> tuple[list[ChatIds], dict[str, Any]]:
    """A row of the best answer to each question by the judge's overall mean, the first drawn among
    equals; and the counts.

    Args:
        most: answers of a question that the judge is shown at most, those drawn first.
        among: the right ones alone, or all.

    A question with one such answer keeps it without a call; one whose answers are UNSCORED has
    none.

    Raises:
        StageError: no answer is left.
    """
    answered, counts = gather(context, sampled, ())
    shown = [(q, [c for c in q.candidates if c.right or among == "all"][:most]) for q in answered]
    several = [(q, offered) for q, offered in shown if len(offered) > 1]
    cases = [
        Case(conversation_of(q.problem.prompt), tuple(c.text for c in offered))
        for q, offered in several
    ]
    judged = ask_judge(context, cases, [[c.right for c in offered] for _, offered in several])
    best = [(q, offered[0]) for q, offered in shown if len(offered) == 1]
    told = {"questions_with_one_answer": len(best), "questions_tied": 0}
    for (question, offered), both in zip(several, judged.found, strict=True):
        if (found := best_of(both)) is not None:
            best.append((question, offered[found[0]]))
            told["questions_tied"] += found[1]
    told["questions_unscored_by_judge"] = len(several) - sum(both.scored for both in judged.found)
    if not best:
        raise no_data(context, {**counts, **told}, judged)
    rows = [answer_row(question.prompt_ids, answer.ids) for question, answer in best]
    return rows, {**counts, **told, "judge": judged.figures}
