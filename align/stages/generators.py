"""Answers of several sources to the questions of a stage: its policy, engines, chat endpoints.

What engines draw, and what endpoints reply, is journalled in the folder `answers-NAME` of the
stage: a killed one asks for the rest alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from align.context import StageContext
from align.data.chat import render_chats, special_token_faults
from align.data.preferences import Sampled
from align.judging.backends import ChatBackend, request_of
from align.judging.calls import Said
from align.judging.chat_answers import chat_answers
from align.judging.choice import Answered, Candidate
from align.judging.journal import CallJournal
from align.judging.settings import POLICY, GeneratorConfig
from align.models.load import load_tokenizer
from pts.engines.base import Engine
from pts.engines.registry import make_engine
from pts.types import Ids, Message, Problem, Verdict


def gather(
    context: StageContext, sampled: Sequence[Sampled], generators: Sequence[GeneratorConfig]
) -> tuple[list[Answered], dict[str, Any]]:
    """The answers to each question, the policy's first, then those of the generators in order.

    Answers that the length limit cut, or that are longer than it in the policy's tokens, are left
    out; so are those whose text stands there already, and those of generators that cannot be
    written in the policy's chat template, that the verifier cannot judge or that an endpoint
    refused. All are counted; `answers_by_source` tells of each source for how many it was asked,
    how many of them are left and how many of those are right.

    Raises:
        PTSError: a generator cannot be used.
    """
    counts = {"answers": 0, "answers_too_long": 0, "answers_identical": 0, "answers_unfit": 0}
    given = {POLICY: sum(len(question.answers) for question in sampled)}
    offered: list[list[Candidate | None]] = [
        [
            None if answer.truncated else Candidate(POLICY, answer.ids, answer.text, answer.right)
            for answer in question.answers
        ]
        for question in sampled
    ]
    for generator in generators:
        tokens = _generate(context, generator, sampled, offered, counts)
        given[generator.name] = len(sampled) * generator.samples
        counts["generator_calls"] = counts.get("generator_calls", 0) + given[generator.name]
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
    return found, {**counts, "answers_by_source": _by_source(found, given)}


def _by_source(answered: Sequence[Answered], given: Mapping[str, int]) -> dict[str, dict[str, int]]:
    left = [candidate for question in answered for candidate in question.candidates]
    return {
        name: {
            "asked": n,
            "left": sum(candidate.source == name for candidate in left),
            "right": sum(candidate.source == name and candidate.right for candidate in left),
        }
        for name, n in given.items()
    }


def _generate(
    context: StageContext,
    generator: GeneratorConfig,
    sampled: Sequence[Sampled],
    offered: Sequence[list[Candidate | None]],
    counts: dict[str, int],
) -> int:
    """Add a generator's answers (None for one that was cut) to those of each question; return its
    tokens."""
    problems = [question.problem for question in sampled if question.problem is not None]
    draw = _asked if generator.url else _drawn
    answers, tokens = draw(context, generator, problems, [q.prompt_ids for q in sampled])
    tokenizer = load_tokenizer(context.policy, context.recipe.model)
    for question, drawn, candidates in zip(sampled, answers, offered, strict=True):
        assert question.problem is not None
        for one in drawn:
            ids = one.ids
            if ids is None and not one.cut:
                ids = answer_ids(tokenizer, question.problem, question.prompt_ids, one.text)
            if one.cut or len(ids or ()) > context.recipe.sampling.max_new_tokens:
                candidates.append(None)
            elif ids and one.right is not None:
                candidates.append(Candidate(generator.name, ids, one.text, one.right))
            else:
                counts["answers_unfit"] += 1
    return tokens


@dataclass(frozen=True, slots=True)
class Drawn:
    """An answer of a generator."""

    text: str
    right: bool | None
    """None where the verifier could not judge it, or where there is none."""
    cut: bool = False
    ids: Ids | None = None
    """Where they are the policy's too."""


def _drawn(
    context: StageContext,
    generator: GeneratorConfig,
    problems: Sequence[Problem],
    prompts: Sequence[Ids],
) -> tuple[list[list[Drawn]], int]:
    """Answers of an engine to each problem, and their tokens."""
    from pts.runtime.sample import sample

    tokenizer = load_tokenizer(context.policy, context.recipe.model)
    engine = make_engine(generator.engine, context.recipe.sampling, **generator.options)
    try:
        found = sample(
            problems,
            engine,
            context.task.verifier,
            n=generator.samples,
            output=context.folder / f"answers-{generator.name}",
            seed=context.seed(f"answers {generator.name}"),
            progress=context.progress,
        )
        shared = same_vocabulary(engine, tokenizer)
        same = [
            shared and engine.encode(problem) == prompt
            for problem, prompt in zip(problems, prompts, strict=True)
        ]
        answers = [
            [
                Drawn(engine.decode(r.ids), r.success, r.truncated, r.ids if whole else None)
                for r in samples.rollouts
            ]
            for samples, whole in zip(found, same, strict=True)
        ]
    finally:
        if close := getattr(engine, "close", None):
            close()
    return answers, sum(samples.cost.tokens for samples in found)


def _asked(
    context: StageContext,
    generator: GeneratorConfig,
    problems: Sequence[Problem],
    prompts: Sequence[Ids],
) -> tuple[list[list[Drawn]], int]:
    """Answers of a chat endpoint to each problem, and their tokens as it counts them."""
    verifier = context.task.verifier
    asked = request_of(context.recipe.sampling)
    backend = ChatBackend(generator.url, generator.endpoint, asked)
    file = context.folder / f"answers-{generator.name}" / "calls.jsonl"
    with closing(backend), CallJournal(file) as journal:
        found = chat_answers(backend, journal, problems, generator.samples)

    def judged(problem: Problem, said: Said) -> Drawn:
        if said.end != "stop":
            return Drawn(said.text, None, said.end == "length")
        grade = verifier(problem, said.text)
        told = None if grade.verdict is Verdict.UNSCORED else grade.verdict is Verdict.PASS
        return Drawn(said.text, told)

    answers = [
        [judged(problem, said) for said in row]
        for problem, row in zip(problems, found, strict=True)
    ]
    return answers, sum(said.reply_tokens for row in found for said in row)


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
