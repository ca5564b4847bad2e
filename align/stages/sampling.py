"""Completions of the policy at hand, for the stages that learn from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.context import StageContext
from align.data.preferences import Answer, Sampled

if TYPE_CHECKING:
    from pts.engines.transformers.engine import TransformersEngine
    from pts.runtime.sample import ProblemSamples


def load_engine(context: StageContext) -> TransformersEngine:
    """The stage's policy, to be sampled as the recipe says."""
    from align.models.load import load_policy
    from pts.engines.transformers.engine import TransformersEngine

    model, tokenizer = load_policy(context.policy, context.recipe.model)
    return TransformersEngine(model, tokenizer, context.recipe.sampling)


def sample_answers(
    context: StageContext, engine: TransformersEngine, questions: int, samples: int
) -> list[Sampled]:
    """`samples` judged answers to each of `questions` train problems, in the problems' order.

    Rollouts are journalled in the stage's folder, and a killed run draws only the rest. A question
    whose answers could not be judged has none.
    """
    from pts.runtime.sample import sample

    found = sample(
        context.task.problems("train", questions, context.problem_seed),
        engine,
        context.task.verifier,
        n=samples,
        output=context.folder / "answers",
        seed=context.seed("answers"),
        progress=context.progress,
    )
    return [_answered(engine, samples) for samples in found]


def _answered(engine: TransformersEngine, found: ProblemSamples) -> Sampled:
    answers = (
        Answer(rollout.ids, rollout.success, rollout.truncated, engine.decode(rollout.ids))
        for rollout in found.rollouts
    )
    return Sampled(found.problem_id, found.prompt_ids, tuple(answers))
