"""Measure one policy on one set of problems: the numbers of a table row, and items to pair later.

    load = lambda sampling: TransformersEngine.load(folder, sampling)
    settings = EvalSettings(sampling, samples=8)
    evaluation = evaluate(load, problems, verifier, settings, Path("eval/sft"))
    write_evaluation(evaluation, Path("eval/sft"))

Rollouts are drawn by `pts.sample`: journalled in the folder, resumable, every prompt with its own
seeds, which are the same for all policies. The teacher-forced pass (entropy and KL) is not
journalled and runs again after a kill. Not covered: judging style, or anything that a verifier
cannot tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from align.errors import StageError
from align.evaluation.records import BestTemperature, EvalSummary, Evaluation, FamilyScores, Item
from align.evaluation.statistics import (
    mean_interval,
    pass_at_k,
    rate_interval,
    ratio_interval,
    wilson,
)
from pts.config import SamplingConfig
from pts.engines.base import Engine
from pts.runtime.sample import sample
from pts.types import Estimate, Ids, Problem, Rollout, TokenDistribution
from pts.verifiers.base import Verifier

Load = Callable[[SamplingConfig], Engine]
"""Loads the policy at hand, to be sampled as the settings say."""

_Completion = tuple[Ids, Ids]
"""Prompt and completion."""

DEV_SAMPLES = 2
"""Completions of each dev problem at each temperature above 0."""
TINY = 1e-300
"""Stands for a probability that underflowed to 0 in a divergence."""


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """What to measure."""

    sampling: SamplingConfig
    samples: int = 8
    seed: int = 0
    temperatures: tuple[float, ...] = ()
    """Grid for the best temperature; 0 is always tried. Empty: do not look for one."""
    scored: int = 200
    """Sampled completions, one a problem, on which entropy and KL are measured."""
    progress: bool = False


def evaluate(
    load: Load,
    problems: Sequence[Problem],
    verifier: Verifier,
    settings: EvalSettings,
    folder: Path,
    *,
    stage: str = "policy",
    score: Load | None = None,
    before: Load | None = None,
    dev: Sequence[Problem] = (),
) -> Evaluation:
    """Greedy and sampled accuracy, pass@k, lengths, entropy, KL and the best temperature.

    Args:
        score: loads the policy for the teacher-forced pass, if `load` is not to; `load` is not
            called after it.
        before: loads the stage before, for the KL; it must share the policy's tokenizer.
        dev: problems on which the best temperature is chosen; needed with `settings.temperatures`.

    Raises:
        StageError: fewer than two problems could be judged, or a grid without dev problems.
        JournalError: the folder holds the journal of another evaluation.
    """
    if settings.temperatures and not dev:
        raise StageError(f"{folder}: a temperature grid needs dev problems, got none")
    rollouts = _Rollouts(load, verifier, settings, folder)
    items, sampled = _measure(rollouts, problems)
    if len(items) < 2:
        raise StageError(
            f"{folder}: {len(items)} of {len(problems)} problems could be judged; check the "
            "verifier and the problems' references"
        )
    best = None
    if settings.temperatures:
        best, rates = _best_temperature(rollouts, problems, dev, items)
        items = [replace(item, best=rates.get(item.id)) for item in items]
    entropy, kl = _teacher_forced(settings, score or load, before, sampled)
    summary = EvalSummary(
        stage=stage,
        unscored=len(problems) - len(items),
        samples=settings.samples,
        temperature=settings.sampling.temperature,
        entropy=entropy,
        kl=kl,
        best=best,
        **_means(items),
    )
    return Evaluation(summary, tuple(items))


@dataclass(frozen=True)
class _Rollouts:
    """Samples the policy, one journal a condition."""

    load: Load
    verifier: Verifier
    settings: EvalSettings
    folder: Path

    def draw(
        self, name: str, problems: Sequence[Problem], engine: Engine, n: int
    ) -> dict[str, Sequence[Rollout]]:
        """`n` rollouts of each problem that could be judged, by id."""
        found = sample(
            problems, engine, self.verifier,
            n=n, output=self.folder / name, seed=self.settings.seed,
            progress=self.settings.progress,
        )  # fmt: skip
        return {samples.problem_id: samples.rollouts for samples in found if samples.rollouts}

    def engine(self, temperature: float) -> Engine:
        return self.load(self.settings.sampling.model_copy(update={"temperature": temperature}))


def _measure(
    rollouts: _Rollouts, problems: Sequence[Problem]
) -> tuple[list[Item], list[_Completion]]:
    """Items of the problems that could be judged, and one sampled completion of each."""
    settings, engine = rollouts.settings, rollouts.engine(0.0)
    greedy = rollouts.draw("greedy", problems, engine, 1)
    texts = {name: engine.decode(rollouts[0].ids) for name, rollouts in greedy.items()}
    engine = rollouts.load(settings.sampling)
    sampled = rollouts.draw("sampled", problems, engine, settings.samples)
    judged = [p for p in problems if p.id in greedy and p.id in sampled]
    items = [_item(p, greedy[p.id][0], texts[p.id], sampled[p.id]) for p in judged]
    return items, [(engine.encode(p), sampled[p.id][0].ids) for p in judged]


def _item(problem: Problem, greedy: Rollout, text: str, sampled: Sequence[Rollout]) -> Item:
    return Item(
        id=problem.id,
        family=str(problem.metadata.get("family", "all")),
        question=question_of(problem),
        reference=problem.reference,
        greedy=greedy.success,
        greedy_length=greedy.length,
        greedy_truncated=greedy.truncated,
        greedy_text=text,
        samples=len(sampled),
        passed=sum(rollout.success for rollout in sampled),
        truncated=sum(rollout.truncated for rollout in sampled),
        length=sum(rollout.length for rollout in sampled) / len(sampled),
    )


def question_of(problem: Problem) -> str:
    """What a reader is shown as the question: the last turn, or the text's last question."""
    if isinstance(problem.prompt, str):
        return problem.prompt.rpartition("Question: ")[2].removesuffix("Answer:").strip()
    return problem.prompt[-1].content


def _means(items: Sequence[Item]) -> dict[str, Any]:
    """The parts of a summary that follow from the items."""
    families = sorted({item.family for item in items})
    k = np.array([item.samples for item in items])
    solved = pass_at_k(k, [item.passed for item in items], int(k.min()))
    return {
        "problems": len(items),
        **_accuracies(items),
        "pass_at_k": rate_interval(solved),
        "length": mean_interval([item.length for item in items]),
        "unfinished": rate_interval([item.truncated / item.samples for item in items]),
        "families": {
            name: FamilyScores(**_accuracies([i for i in items if i.family == name]))
            for name in families
        },
    }


def _accuracies(items: Sequence[Item]) -> dict[str, Estimate]:
    return {
        "greedy": wilson(sum(item.greedy for item in items), len(items)),
        "sampled": rate_interval([item.passed / item.samples for item in items]),
    }


def _best_temperature(
    rollouts: _Rollouts, problems: Sequence[Problem], dev: Sequence[Problem], items: Sequence[Item]
) -> tuple[BestTemperature, dict[str, float]]:
    """Choose on dev, measure on `problems`: rates by problem id."""
    tried = {
        temperature: _on_dev(rollouts, dev, temperature)
        for temperature in sorted({0.0, *rollouts.settings.temperatures})
    }
    best = choose_temperature(tried)
    if best == 0:
        rates = {item.id: float(item.greedy) for item in items}
    elif best == rollouts.settings.sampling.temperature:
        rates = {item.id: item.passed / item.samples for item in items}
    else:
        rates = _rates(rollouts, f"at-{best:g}", problems, best, rollouts.settings.samples)
    on_dev = tuple((t, rate_interval(list(of_dev.values()))) for t, of_dev in tried.items())
    return BestTemperature(best, rate_interval(list(rates.values())), on_dev), rates


def choose_temperature(tried: Mapping[float, Mapping[str, float]]) -> float:
    """The lowest temperature that is within one standard error of the best one.

    Of a few hundred problems the best of many temperatures is partly the luckiest; the rule
    (Breiman et al. 1984) takes the simplest that cannot be told from it. The error is that of the
    paired difference.

    Args:
        tried: success rates by temperature and problem.
    """
    means = {t: float(np.mean(list(rates.values()))) for t, rates in tried.items()}
    best = max(sorted(tried), key=means.__getitem__)
    for temperature in sorted(tried):
        shared = [name for name in tried[best] if name in tried[temperature]]
        gaps = np.array([tried[best][name] - tried[temperature][name] for name in shared])
        if len(gaps) > 1 and gaps.mean() <= gaps.std(ddof=1) / math.sqrt(len(gaps)):
            return temperature
    return best


def _on_dev(rollouts: _Rollouts, dev: Sequence[Problem], temperature: float) -> dict[str, float]:
    n = DEV_SAMPLES if temperature else 1
    return _rates(rollouts, f"dev-{temperature:g}", dev, temperature, n)


def _rates(
    rollouts: _Rollouts, name: str, problems: Sequence[Problem], temperature: float, n: int
) -> dict[str, float]:
    drawn = rollouts.draw(name, problems, rollouts.engine(temperature), n)
    if not drawn:
        raise StageError(f"{rollouts.folder}: the verifier could judge no problem of {name}")
    return {key: sum(o.success for o in outs) / len(outs) for key, outs in drawn.items()}


def _teacher_forced(
    settings: EvalSettings, load: Load, before: Load | None, sampled: Sequence[_Completion]
) -> tuple[Estimate, Estimate | None]:
    """Entropy and KL a token, on completions spread evenly over the problems."""
    softmax = {
        "temperature": settings.sampling.temperature or 1.0,
        "top_k": 0,
        "top_p": 1,
        "min_p": 0,
    }
    plain = settings.sampling.model_copy(update=softmax)
    chosen = sampled[:: max(1, len(sampled) // settings.scored)][: settings.scored]
    policy, earlier = load(plain), before(plain) if before else None
    totals = np.array([_divergence(policy, earlier, *pair) for pair in chosen])
    lengths = [len(ids) for _, ids in chosen]
    entropy = ratio_interval(totals[:, 0], lengths)
    return entropy, ratio_interval(totals[:, 1], lengths) if before else None


def _divergence(
    policy: Engine, before: Engine | None, prompt: Ids, completion: Ids
) -> tuple[float, float]:
    """Sums over the tokens of a completion: entropy of the policy, KL to the stage before."""
    rows = policy.score(prompt, completion)
    entropy = sum(float(special.entr(row.probs).sum()) for row in rows)
    if before is None:
        return entropy, 0.0
    pairs = zip(rows, before.score(prompt, completion), strict=True)
    return entropy, sum(kl_divergence(row, other) for row, other in pairs)


def kl_divergence(row: TokenDistribution, other: TokenDistribution) -> float:
    """KL(row || other) in nats, over one vocabulary."""
    dense = np.full(int(max(row.ids.max(), other.ids.max())) + 1, TINY)
    dense[other.ids] = other.probs
    return float(special.rel_entr(row.probs, dense[row.ids]).sum())
