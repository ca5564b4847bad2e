"""Stage 3: DPO on full-length pairs, judged by the verifier or by a judge that reads: sampled from
the stage before (and from further generators), or taken from the rollouts of a search; or on pairs
of data sets."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from align.context import StageContext, StageResult
from align.data.preferences import (
    PreferencePair,
    Sampled,
    build_pairs,
    count_outcomes,
    limited,
    write_preferences,
)
from align.data.rollouts import answers_of, continuation_pairs
from align.errors import StageError
from align.judging.choice import JudgedPair, choose_pairs, draw_comparisons, write_judged
from align.judging.settings import JudgedConfig, JudgedPairsConfig
from align.models import adapters
from align.models.engines import load_engine
from align.settings import MixtureConfig
from align.stages.generators import gather
from align.stages.judged import ask_judge, no_data
from align.stages.sampling import decoder, sample_answers
from pts.data.rollouts import read_rollouts
from pts.engines.digest import model_digest

if TYPE_CHECKING:
    from datasets import Dataset

PAIRS = "pairs.jsonl"


class FullDPOConfig(JudgedConfig, MixtureConfig):
    """Stage 3: DPO on full-length pairs: sampled and judged, or of data sets."""

    num_problems: int = Field(400, ge=1, le=10**9)
    """Problems to sample."""
    samples: int = Field(6, ge=2, le=100_000)
    """Completions a question."""
    match: tuple[str, ...] = ()
    """Stages whose generated tokens this one spends too, all together, within 2 %: it asks as many
    questions as that allows, whatever num_problems says."""
    pairs_per_question: int = Field(1, ge=1, le=100_000)
    """Right/wrong pairs at most of one question."""
    pairs_of: Literal["answers", "continuations"] = "answers"
    """Of `rollouts`: whole `answers` of a question, or `continuations` of the prefixes of the
    search's confirmed pairs, a right one after the better token against a wrong one after the
    other."""
    judged_pairs: JudgedPairsConfig = JudgedPairsConfig()
    """With a `judge`, which answers are compared and how pairs are made of its scores."""
    max_pairs: int = Field(0, ge=0)
    """Pairs at most in all; 0 keeps all."""
    beta: float = Field(0.3, gt=0)
    """Strength of the pull towards the reference."""
    nll_weight: float = Field(0.0, ge=0)
    """Weight of the negative log-likelihood of the chosen completions, a mean over the batch's
    tokens, against displacement (Pang et al. 2024)."""
    style_weight: float = Field(0.0, ge=0)
    """Weight of the rule-based style and detail scores (1-5) in choosing among right answers."""
    reference: str = "start"
    """`start`: the policy that this stage starts from; else the folder of a
    model, or of an adapter."""
    strict: bool = True
    """Refuse pairs that were sampled from another policy than the reference."""
    with_sampled: bool = False
    """Train on sampled pairs (or those of `rollouts`) beside the pairs of `sources`, instead of on
    the latter alone."""
    max_length: int = Field(1024, ge=8)
    """Of pairs of sources, tokens of the prompt with the longer side: what is longer is dropped,
    or cut where `too_long` says so; counted and shown."""

    row_kind: ClassVar[Literal["chats", "pairs"]] = "pairs"
    of_sources: ClassVar[tuple[str, ...]] = (
        *MixtureConfig.of_sources,
        "with_sampled",
        "max_length",
    )
    instead: ClassVar[tuple[str, ...]] = (
        *("rollouts", "purposes", "num_problems", "samples", "match", "pairs_per_question"),
        *("pairs_of", "max_pairs", "style_weight", "strict"),
        *("judge", "generators", "judged_pairs"),
    )
    of_judge: ClassVar[tuple[str, ...]] = (*JudgedConfig.of_judge, "judged_pairs")
    beside_judge: ClassVar[tuple[str, ...]] = ("rollouts", "pairs_per_question", "style_weight")

    @property
    def only_sources(self) -> bool:
        """Whether all the stage's data come from its sources."""
        return bool(self.sources) and not self.with_sampled

    @model_serializer(mode="wrap")
    def _without_idle_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return self._without_judge(MixtureConfig._without_idle_keys(self, handler))


def run(context: StageContext) -> StageResult:
    """Sample (or take rollouts), pair, train; or train on the pairs of sources, or on both.

    Raises:
        StageError: no question with both right and wrong answers, or a reference other than the
            sampled policy under `strict`.
    """
    from align.training import loop as training
    from align.training.launch import launched
    from align.training.record import begin
    from align.training.trl import pair_rows, with_reference

    config = context.settings
    done = begin(context, config)
    if done is not None:
        return done
    none: tuple[list[PreferencePair], dict[str, Any]] = ([], {})
    pairs, metrics = none if config.only_sources else collect(context)
    policy, tokenizer = training.load_trainable(context.policy, context.recipe.model, config)
    sampled = [(pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) for pair in pairs]
    rows = pair_rows(sampled, context.rows.file if context.rows else None)
    reference = None
    if config.reference != "start":
        named = adapters.whole(Path(config.reference), context.recipe.model)
        reference, _ = training.load_trainable(named, context.recipe.model, config)
    known = with_reference(context, config, policy, tokenizer, rows, reference)
    loss_tokens = sum(len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)
    if context.rows is not None:
        loss_tokens += context.rows.total("trained_tokens")
        metrics["pairs"] = len(rows)
        metrics["sources"] = {name: dict(counts) for name, counts in context.rows.counts.items()}
    return launched(train, context, known, loss_tokens, metrics, loaded=(policy, tokenizer))


def train(
    context: StageContext,
    policy: Any,
    tokenizer: Any,
    rows: Dataset,
    loss_tokens: int,
    metrics: dict[str, Any],
) -> StageResult:
    """Train on pairs whose log-probabilities under the reference are known."""
    from align.training import loop as training
    from align.training.trl import dpo_trainer

    config = context.settings
    trainer = dpo_trainer(context, config, config.beta, config.nll_weight, policy, tokenizer, rows)
    fitted = training.fit(trainer, context, tokenizer, loss_tokens)
    files = [] if config.only_sources else [PAIRS]
    return training.finish(context, trainer.model, tokenizer, {**metrics, **fitted}, files)


def collect(
    context: StageContext,
) -> tuple[Sequence[PreferencePair] | Sequence[JudgedPair], dict[str, Any]]:
    """Pairs (also written to pairs.jsonl) and the counts behind them."""
    if context.settings.judge is not None:
        return _judged(context)
    pairs, counts = _drawn(context) if context.rollouts is None else _of_search(context)
    if not pairs and context.rollouts is not None:
        raise StageError(
            f"{context.rollouts}: makes no pairs; take other purposes or pairs_of, or search more "
            "problems that the policy solves sometimes but not always"
        )
    if not pairs:
        raise StageError(
            f"full_dpo: none of {counts['questions']} questions has both right and wrong answers "
            f"({counts['questions_all_right']} all right, {counts['questions_all_wrong']} all "
            "wrong); raise full_dpo.samples or change the problems' difficulty"
        )
    write_preferences(context.folder / PAIRS, pairs)
    return pairs, {**counts, **_describe(pairs)}


def _drawn(context: StageContext) -> tuple[list[PreferencePair], dict[str, int]]:
    sampled, policy, counts = _sample(context)
    return _of_answers(context, sampled, policy), counts


def _sample(context: StageContext) -> tuple[list[Sampled], str, dict[str, int]]:
    """Answers of the stage's policy, its digest, and the counts."""
    config = context.settings
    with load_engine(context) as engine:
        if config.reference != "start":
            _check_reference(context, engine.policy_digest)
        sampled, spent = sample_answers(context, engine, config.num_problems, config.samples)
        return sampled, engine.policy_digest, {**count_outcomes(sampled), **spent}


def _judged(context: StageContext) -> tuple[list[JudgedPair], dict[str, Any]]:
    """Pairs by a judge's scores, of the policy's answers and those of the generators."""
    config = context.settings
    sampled, _, counts = _sample(context)
    answered, offered = gather(context, sampled, config.generators)
    drawn = draw_comparisons(answered, config.judged_pairs.comparisons, context.seed("comparisons"))
    right = [(one.first.right, one.second.right) for one in drawn]
    judged = ask_judge(context, [one.case for one in drawn], right)
    pairs, made = choose_pairs(
        drawn, judged.found, config.judged_pairs, config.max_pairs, context.seed("pairs")
    )
    if not pairs:
        raise no_data(context, {**offered, **made}, judged)
    write_judged(context.folder / PAIRS, pairs)
    chosen = dict(Counter(pair.chosen.source for pair in pairs))
    told = {**made, **_lengths(pairs), "chosen_by_source": chosen, **judged.metrics()}
    return pairs, {**counts, **offered, **told}


def _of_search(context: StageContext) -> tuple[list[PreferencePair], dict[str, int]]:
    config, rollouts, decode = context.settings, context.rollouts, decoder(context)
    assert rollouts is not None
    policy = next((question.policy_digest for question in read_rollouts(rollouts)), "")
    _check_reference(context, policy)
    if config.pairs_of == "continuations":
        assert context.pairs is not None
        found, without = continuation_pairs(rollouts, context.pairs, config.purposes, decode)
        pairs = limited(found, config.max_pairs, context.seed("pairs"))
        questions = len({pair.problem_id for pair in found})
        counts = {"questions": questions, "pairs_without_continuations": without}
    else:
        sampled = list(answers_of(rollouts, config.purposes, decode))
        pairs, counts = _of_answers(context, sampled, policy), count_outcomes(sampled)
    return pairs, {**counts, "generated_tokens": 0}


def _of_answers(
    context: StageContext, sampled: Sequence[Sampled], policy: str
) -> list[PreferencePair]:
    config = context.settings
    return build_pairs(
        sampled,
        policy,
        per_question=config.pairs_per_question,
        limit=config.max_pairs,
        style_weight=config.style_weight,
        seed=context.seed("pairs"),
    )


def _describe(pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    n = len(pairs)
    return {
        "pairs": n,
        "pairs_rejected_truncated": sum(pair.rejected_truncated for pair in pairs),
        **_lengths(pairs),
        "chosen_score_mean": sum(pair.chosen_scores.mean for pair in pairs) / n,
        "rejected_score_mean": sum(pair.rejected_scores.mean for pair in pairs) / n,
    }


def _lengths(pairs: Sequence[PreferencePair] | Sequence[JudgedPair]) -> dict[str, float]:
    return {
        "chosen_tokens_mean": sum(len(pair.chosen_ids) for pair in pairs) / len(pairs),
        "rejected_tokens_mean": sum(len(pair.rejected_ids) for pair in pairs) / len(pairs),
    }


def _check_reference(context: StageContext, sampled: str) -> None:
    """The reference should be the policy that the pairs are sampled from."""
    config, drawn = context.settings, context.rollouts
    start = config.reference == "start"
    reference = context.policy
    if not start:
        reference = adapters.whole(Path(config.reference), context.recipe.model)
    if model_digest(reference) == sampled:
        return
    source = f"the rollouts {drawn}" if drawn is not None else f"{context.policy}, which the pairs"
    message = (
        f"full_dpo.reference: {reference} is another policy than {source} are sampled from; "
        f"{'start from that one' if start else 'use start'}, or set full_dpo.strict=false"
    )
    if config.strict:
        raise StageError(message)
    warnings.warn(message, stacklevel=2)
