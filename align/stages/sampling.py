"""Completions of the policy at hand, for the stages that learn from them; at a matched cost.

A stage with the setting `match` asks one question after another, in slices, until its generated
tokens reach those of the stages that it names. A slice is as large as all before it together, but
at most half of what the mean cost of a question so far leaves room for: so the sum ends within
about half a question of the budget. A stage that ends farther from it than `TOLERANCE` fails.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING

from align.context import StageContext, seed_of
from align.data.preferences import Answer, Sampled
from align.errors import StageError
from align.ledger import sampled_counts
from pts.runtime.results import RolloutCost
from pts.types import Ids, Problem

if TYPE_CHECKING:
    from pts.engines.base import Engine
    from pts.runtime.sample import ProblemSamples

TOLERANCE = 0.02
"""Of the budget: a stage that misses it by more does not match."""
POOL = 8
"""Problems that are looked through for those of a search at most, for each that it asked: under
`match` it draws them from a pool that is larger."""


def sample_answers(
    context: StageContext, engine: Engine, questions: int, samples: int
) -> tuple[list[Sampled], dict[str, int]]:
    """`samples` judged answers to each of `questions` train problems, and what they cost
    (the counts of `align.ledger`).

    Under the setting `match` it is the budget that decides how many questions are asked. Rollouts
    are journalled in the stage's folder, and a killed run draws only the rest. A question whose
    answers could not be judged has none.

    Raises:
        StageError: the cost cannot be matched.
    """
    from pts.runtime.sample import sample

    found: list[ProblemSamples] = []
    asked: list[Problem] = []

    def ask(problems: list[Problem]) -> int:
        asked[:] = problems
        found[:] = sample(
            problems,
            engine,
            context.task.verifier,
            n=samples,
            output=context.folder / "answers",
            seed=context.seed("answers"),
            progress=context.progress,
        )
        return _cost(found).tokens

    ask_problems(context, questions, ask)
    sampled = [_answered(engine, *one) for one in zip(found, asked, strict=True)]
    return sampled, sampled_counts(_cost(found), len(found))


def searched_problems(context: StageContext, wanted: Collection[str]) -> dict[str, Problem]:
    """The problems, by id, of the search whose rollouts the stage takes: rollouts keep ids alone.

    Raises:
        StageError: the task has them no more.
    """
    recipe = context.recipe
    name = recipe.rollouts_of(context.entry)
    entry = next(entry for entry in recipe.stages if entry.name == name)
    seed = seed_of(recipe.seed, entry.share or entry.name, "problems")
    size = int(getattr(entry.settings, "num_problems", 1))
    most, missing = POOL * max(size, len(wanted)), set(wanted)
    found = dict[str, Problem]()
    while missing:
        if size > most:
            raise StageError(
                f"{context.rollouts}: the task has no train problem {min(missing)!r} any more; "
                "restore its files, or search again"
            )
        found |= {problem.id: problem for problem in context.task.problems("train", size, seed)}
        missing, size = set(wanted) - found.keys(), 2 * size
    return found


def decoder(context: StageContext) -> Callable[[Ids], str]:
    """Text of stored answers, as an engine decodes them."""
    from align.models.load import load_tokenizer

    tokenizer = load_tokenizer(context.policy, context.recipe.model)
    return partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _cost(found: list[ProblemSamples]) -> RolloutCost:
    return sum((samples.cost for samples in found), RolloutCost())


def _answered(engine: Engine, found: ProblemSamples, problem: Problem) -> Sampled:
    answers = (
        Answer(rollout.ids, rollout.success, rollout.truncated, engine.decode(rollout.ids))
        for rollout in found.rollouts
    )
    return Sampled(found.problem_id, found.prompt_ids, tuple(answers), problem)


def ask_problems(
    context: StageContext, questions: int, ask: Callable[[list[Problem]], int]
) -> None:
    """Ask `questions` train problems at once; or, under `match`, so many as the budget allows.

    Args:
        ask: is given all problems so far, earlier ones first, and returns what they have spent all
            together (see `StageContext.budget`); what was asked before must cost nothing again.

    Raises:
        StageError: the task has too few problems, or a question costs too much to end within
            `TOLERANCE` of the budget.
    """
    if not getattr(context.settings, "match", ()):
        ask(context.task.problems("train", questions, context.problem_seed))
        return
    where, budget = f"{context.entry.name}.match", context.budget
    named = " and ".join(context.settings.match)
    counted = getattr(context.settings, "match_by", "generated_tokens").replace("_", " ")
    if not budget:
        raise StageError(f"{where}: {named} left no {counted} to match")
    pool, asked, spent, size = list[Problem](), 0, 0, 1
    while size:
        if asked + size > len(pool):
            known = {problem.id for problem in pool}
            more = context.task.problems("train", 2 * (asked + size), context.problem_seed)
            pool += [problem for problem in more if problem.id not in known]
        if asked == len(pool):
            raise StageError(
                f"{where}: {named} left {budget:,} {counted}, and the task's {asked:,} train "
                f"problems only {spent:,}; let a question spend more, or give more problems"
            )
        asked = min(asked + size, len(pool))
        spent = ask(pool[:asked])
        size = _next_slice(budget, spent, asked)
    if abs(spent - budget) > TOLERANCE * budget:
        raise StageError(
            f"{where}: got {spent:,} {counted} for the {budget:,} of {named}, more than "
            f"{TOLERANCE:.0%} off; a question costs {spent / asked:,.0f}: let it cost less, or "
            "match a stage that spends more"
        )


def _next_slice(budget: int, spent: int, asked: int) -> int:
    """Questions to ask next; none where one more would end farther from the budget.

    Never more than are left of the budget: of pairs a question makes one at most.
    """
    room = (budget - spent) * asked / max(1, spent)
    return 0 if room < 0.5 else max(1, min(asked, int(room / 2), budget - spent))
