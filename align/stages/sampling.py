"""Completions of the policy at hand, for the stages that learn from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.context import StageContext
from align.data.preferences import Answer, Sampled
from pts.algorithm.requests import SearchRoutine
from pts.runtime.journal import Journal
from pts.runtime.progress import ProgressReporter
from pts.runtime.scheduler import run
from pts.types import Rollout, RolloutQuery

if TYPE_CHECKING:
    from pts.engines.transformers.engine import TransformersEngine


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

    Rollouts are journalled in the stage's folder, and a killed run draws only the rest. The
    problems are drawn with another seed than the search's. A question whose answers could not be
    judged has none.
    """
    seed = context.seed("answers")
    problems = context.task.problems("train", questions, seed)
    fingerprint = {
        "policy_digest": engine.policy_digest,
        "sampling": engine.sampling.model_dump(mode="json"),
        "samples": samples,
        "seed": seed,
    }
    found: dict[str, Sampled] = {}
    with (
        Journal(context.folder / "answers.journal.jsonl", fingerprint) as journal,
        ProgressReporter(len(problems), context.progress) as watch,
    ):
        finished = run(
            ((problem, _ask(samples)) for problem in problems),
            engine,
            context.task.verifier,
            seed=seed,
            journal=journal,
            on_skip=lambda about: [],
            on_progress=watch,
        )
        for done in finished:
            answers = tuple(_answer(engine, rollout) for rollout in done.result)
            found[done.problem.id] = Sampled(done.problem.id, engine.encode(done.problem), answers)
    return [found[problem.id] for problem in problems]


def _ask(samples: int) -> SearchRoutine[list[Rollout]]:
    """Whole completions: the purpose "filter" is the one whose rollouts keep all their ids."""
    [rollouts] = yield [RolloutQuery((), samples, "filter")]
    return [rollout for rollout in rollouts if isinstance(rollout, Rollout)]


def _answer(engine: TransformersEngine, rollout: Rollout) -> Answer:
    return Answer(rollout.ids, rollout.success, rollout.truncated, engine.decode(rollout.ids))
