"""What each stage will ask, draw and train on: counts that depend on no device.

counts = {}
for entry in recipe.stages:
    counts[entry.name] = count(recipe, entry, assumed.at(entry.name, entry.kind), counts)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from align.context import StageEntry
from align.controls.cliffs import CANDIDATES, ROLLOUTS
from align.errors import RecipeError
from align.planning.assumptions import Assumptions, capped
from align.planning.difficulty import Difficulty

if TYPE_CHECKING:
    from align.pipeline.recipe import Recipe

CONTROL_ROLLOUTS = {"uncertain": 48, "uniform": 48, "coin": 0}
"""Rollouts of a control arm's two siblings together, after the one that gives the position."""
CONTROL_PAIRS = 0.5
"""Pairs of a control arm by its questions: others have no position, or a tie."""
CLIFFS = CLIFF_PAIRS = 1 / 6
"""Of one completion, where cliffs are looked for: six questions of the soft world gave one pair."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one stage, or of one evaluation."""

    questions: float = 0
    rollouts: float = 0
    most_rollouts: float = 0
    """Of a search: what its settings allow at most; else as `rollouts`."""
    generated: float = 0
    """Sampled tokens."""
    kept: float = 0
    """Questions that a search's filter keeps."""
    pairs: float = 0
    rows: float = 0
    """Chats, answers or pairs in the training data."""
    steps: int = 0
    """Of the optimiser."""
    trained: float = 0
    """Tokens that carry loss, times the passes over them, as a manifest counts them."""
    passed: float = 0
    """Tokens that go forward and backward, prompts included."""
    scored: float = 0
    """Tokens that go forward alone: under the reference, or in an evaluation."""
    length: float = 0
    """Tokens of a sequence that is trained on or sampled, on average, its prompt included."""
    longest: float = 0
    """Those of the longest one that the settings allow."""
    sides: int = 1
    """Sequences of a row: two of a full-length pair."""
    held: float = 0
    """Tokens of the answers in a forward pass that token DPO is held along, at most."""


def count(
    recipe: Recipe, entry: StageEntry, told: Assumptions, before: Mapping[str, Counts]
) -> Counts:
    """The counts of a stage after those before it.

    Raises:
        RecipeError: the stage's rows, or a kind that was added from outside, cannot be counted.
    """
    if entry.kind not in KINDS:
        raise RecipeError(f"{entry.name}: a plan knows no stage of kind {entry.kind!r}")
    return KINDS[entry.kind](recipe, entry, told, before)


def count_evaluation(recipe: Recipe, told: Assumptions) -> Counts:
    """One evaluation: a greedy answer and `samples` others to each problem, the grid of
    temperatures, and the teacher-forced pass on 200 answers."""
    config, answer = recipe.evaluate, told.answer(recipe.sampling.max_new_tokens)
    grid = len({0.0, *config.temperatures}) if config.temperatures else 0
    rollouts = config.problems * (1 + config.samples)
    rollouts += config.dev_problems * (1 + 2 * (grid - 1)) if grid else 0
    rollouts += config.problems * config.samples if grid else 0  # at the best of them
    scored = min(200, config.problems) * (told.prompt_tokens + answer)
    longest = told.prompt_tokens + recipe.sampling.max_new_tokens
    return Counts(
        config.problems, rollouts, rollouts, rollouts * answer, scored=2 * scored,
        length=told.prompt_tokens + answer, longest=longest,
    )  # fmt: skip


def _sft(recipe: Recipe, entry: StageEntry, told: Assumptions, _: Mapping[str, Counts]) -> Counts:
    config: Any = entry.settings
    rows = _of_sources(entry) if config.only_sources else config.num_examples
    chat = min(told.chat_tokens, config.max_length)
    found = Counts(rows=rows, longest=config.max_length)
    return _trained(config, found, chat, chat * told.loss_share)


def _rejection(
    recipe: Recipe, entry: StageEntry, told: Assumptions, before: Mapping[str, Counts]
) -> Counts:
    config: Any = entry.settings
    answer = told.answer(recipe.sampling.max_new_tokens)
    hard = Difficulty(told.solve_a, told.solve_b)
    if config.rollouts:
        made = before[config.rollouts]
        right = made.rollouts * hard.mean * told.distinct_share
        each = 1 if config.judge is not None else config.max_per_question or math.inf
        most = each * made.questions
        drawn = Counts(made.questions, rows=min(right, most))
    else:
        drawn = _sampled(entry, answer, config.samples, before)
        right = hard.mean * config.samples * told.distinct_share
        each = min(right, 1.0) if config.judge is not None else right
        drawn = replace(drawn, rows=drawn.questions * each)
    longest = min(config.max_length, told.prompt_tokens + recipe.sampling.max_new_tokens)
    return _trained(config, replace(drawn, longest=longest), told.prompt_tokens + answer, answer)


def _search(
    recipe: Recipe, entry: StageEntry, told: Assumptions, before: Mapping[str, Counts]
) -> Counts:
    config: Any = entry.settings
    answer = told.answer(recipe.sampling.max_new_tokens)
    each = _of_question(config, told, answer)
    questions = config.num_problems
    if config.match:
        by_pairs = config.match_by == "pairs"
        wanted = sum(
            before[name].pairs if by_pairs else before[name].generated for name in config.match
        )
        questions = wanted / ((each.pairs if by_pairs else each.generated) or 1)
    numbers = ("rollouts", "most_rollouts", "generated", "kept", "pairs")
    total = {name: questions * getattr(each, name) for name in numbers}
    whole = told.prompt_tokens + recipe.sampling.max_new_tokens
    return Counts(questions, **total, length=told.prompt_tokens + answer, longest=whole)


def _of_question(config: Any, told: Assumptions, answer: float) -> Counts:
    """A search of one question, on average."""
    search = config.search
    if config.pairs_from == "cliffs":
        before, others = ROLLOUTS * answer, ROLLOUTS * CANDIDATES * CLIFFS
        tokens = answer * (1 + before * told.search_share + others * told.confirm_share)
        return Counts(1, 1 + before + others, 1 + before + others, tokens, pairs=CLIFF_PAIRS)
    if config.pairs_from != "search":
        rollouts = CONTROL_ROLLOUTS[config.pairs_from]
        tokens = answer * (1 + rollouts * told.confirm_share)
        return Counts(1, 1 + rollouts, 1 + rollouts, tokens, pairs=CONTROL_PAIRS)
    hard = Difficulty(told.solve_a, told.solve_b)
    kept, filtered = hard.kept(search), hard.filter_rollouts(search)
    if search.method == "branch":
        path, most_path = capped(told.path_rollouts, search.max_rollouts), search.max_rollouts
    else:  # three pivotal tokens, each found by halving the answer
        path = 3 * math.log2(max(2.0, answer)) * search.bisect_rollouts
        most_path = search.bisect_rollouts * answer
    searched = search.paths * path
    proposed = min(told.proposals, search.max_pairs)
    confirm = proposed * 2 * capped(told.confirm_rollouts, search.confirm_rollouts)
    most = search.filter_rollouts + kept * (
        search.paths * most_path + 2 * search.max_pairs * search.confirm_rollouts
    )
    tokens = filtered + kept * (searched * told.search_share + confirm * told.confirm_share)
    return Counts(
        questions=1,
        rollouts=filtered + kept * (searched + confirm),
        most_rollouts=most,
        generated=tokens * answer,
        kept=kept,
        pairs=kept * proposed * told.confirmed,
    )


def _token_dpo(
    recipe: Recipe, entry: StageEntry, told: Assumptions, before: Mapping[str, Counts]
) -> Counts:
    config: Any = entry.settings
    pairs = before[recipe.pairs_of(entry)].pairs
    pairs = min(pairs, config.max_pairs or math.inf)
    answer = told.answer(recipe.sampling.max_new_tokens)
    # A pair stands in the middle of its answer, on average, and needs nothing behind.
    row = told.prompt_tokens + answer / 2
    longest = told.prompt_tokens + recipe.sampling.max_new_tokens
    found = _trained(config, Counts(pairs=pairs, rows=pairs, longest=longest), row, 2)
    found = replace(found, scored=pairs * row)
    if not config.kl_weight:
        return found
    answers = found.steps * config.gradient_accumulation * config.kl_batch_size
    kept = before[recipe.rollouts_of(entry)]
    known = kept.questions * told.solve_a / (told.solve_a + told.solve_b) * 8
    return replace(
        found,
        passed=found.passed + answers * (told.prompt_tokens + answer),
        trained=found.trained + answers * answer,
        scored=found.scored + known * (told.prompt_tokens + answer),
        held=config.kl_batch_size * longest,
    )


def _full_dpo(
    recipe: Recipe, entry: StageEntry, told: Assumptions, before: Mapping[str, Counts]
) -> Counts:
    config: Any = entry.settings
    answer = told.answer(recipe.sampling.max_new_tokens)
    hard = Difficulty(told.solve_a, told.solve_b)
    longest = told.prompt_tokens + recipe.sampling.max_new_tokens
    drawn, sourced = Counts(), 0.0
    if config.sources:
        sourced, longest = _of_sources(entry), max(longest, config.max_length)
    if config.rollouts and not config.only_sources:
        made = before[config.rollouts]
        pairs = made.pairs if config.pairs_of == "continuations" else made.kept
        drawn = Counts(made.questions, pairs=pairs * config.pairs_per_question)
    elif not config.only_sources:
        drawn = _sampled(entry, answer, config.samples, before)
        each = hard.mixed(config.samples) * config.pairs_per_question
        if config.judge is not None:
            each = config.judged_pairs.comparisons
        drawn = replace(drawn, pairs=drawn.questions * each)
    pairs = min(drawn.pairs, config.max_pairs or math.inf) + sourced
    row = 2 * (told.prompt_tokens + answer)
    drawn = replace(drawn, pairs=pairs, rows=pairs, longest=longest, sides=2)
    return replace(_trained(config, drawn, row, 2 * answer), scored=pairs * row)


def _sampled(
    entry: StageEntry, answer: float, samples: int, before: Mapping[str, Counts]
) -> Counts:
    """`samples` answers to each question; under `match`, to as many as that allows."""
    config: Any = entry.settings
    questions = config.num_problems
    if config.match:
        questions = sum(before[name].generated for name in config.match) / (samples * answer)
    rollouts = questions * samples
    return Counts(questions, rollouts, rollouts, rollouts * answer)


def _trained(config: Any, data: Counts, row: float, loss: float) -> Counts:
    """The counts with the training on `data.rows` rows of so many tokens each."""
    batches = math.ceil(round(data.rows) / config.batch_size)
    epoch = max(1, math.ceil(batches / config.gradient_accumulation))
    steps = config.max_steps or math.ceil(epoch * config.epochs)
    rows = data.rows * steps / epoch
    return replace(
        data, steps=steps, trained=rows * loss, passed=rows * row, length=row / data.sides
    )


def _of_sources(entry: StageEntry) -> float:
    """Rows that are drawn of a stage's sources, as far as the recipe tells."""
    config: Any = entry.settings
    limits = [source.limit for source in config.sources]
    if config.num_rows:
        return float(config.num_rows)
    if not all(limits):
        raise RecipeError(
            f"{entry.name}.num_rows: got 0, all rows of its sources, which a plan does not read; "
            "give num_rows, or a limit of each source (`align data` counts the rows)"
        )
    return float(sum(limits))


KINDS: dict[str, Callable[[Recipe, StageEntry, Assumptions, Mapping[str, Counts]], Counts]] = {
    "sft": _sft,
    "rejection_sft": _rejection,
    "pts": _search,
    "token_dpo": _token_dpo,
    "full_dpo": _full_dpo,
}
"""What counts a stage of each kind."""
