"""A run as plain text: a line for each question, or one question with its tokens and pairs.

Model text is shown with control characters escaped, so it cannot steer a terminal.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from typing import Any

from pts.errors import DataError, did_you_mean, printable
from pts.runtime.run_folder import RunFolder
from pts.types import (
    CandidatePair,
    CompletionResult,
    Estimate,
    Ids,
    PivotalStep,
    PivotalToken,
    QuestionResult,
    TokenPair,
)

BARS = "▁▂▃▄▅▆▇█"

PairKey = tuple[str, Ids, int, int]
"""What a proposed pair and the selected one that came of it share: question, prefix, tokens."""


def overview(folder: RunFolder) -> Iterator[str]:
    """A line for each finished question: status, p(success), pivotal units, pairs, its id."""
    yield f"{'status':<10} {'solved':>6} {'pivotal':>7} {'proposed':>8} {'pairs':>5}  question"
    for row in rows(folder):
        yield (
            f"{row['status']:<10} {row['solved'].mean:>6.2f} {row['pivotal']:>7} "
            f"{row['proposed']:>8} {row['pairs']:>5}  {_line(row['problem_id'])}"
        )
    if lacking := (folder.summary or {}).get("missing_shards"):
        yield f"missing shards: {_line(', '.join(map(str, lacking)))}"


def rows(folder: RunFolder) -> Iterator[dict[str, Any]]:
    """Of each finished question: its id, status, p(success), and how many pivotal units, proposed
    and selected pairs it has."""
    kept = Counter(pair.problem_id for pair in folder.each_pair)
    for record in folder.records:
        result = record.result
        yield {
            "problem_id": result.problem_id,
            "status": result.status,
            "solved": result.solved,
            "pivotal": sum(len(path.tokens) + len(path.steps) for path in result.paths),
            "proposed": sum(len(path.pairs) for path in result.paths),
            "pairs": kept[result.problem_id],
        }


def selected_pairs(folder: RunFolder, of: Set[str]) -> dict[PairKey, TokenPair]:
    """The selected pairs of these questions."""
    return {
        (pair.problem_id, pair.prompt_ids, pair.chosen, pair.rejected): pair
        for pair in folder.each_pair
        if pair.problem_id in of
    }


def pair_key(result: QuestionResult, path: CompletionResult, pair: CandidatePair) -> PairKey:
    """The key of a proposed pair."""
    prefix = result.prompt_ids + path.ids[: pair.position]
    return result.problem_id, prefix, pair.chosen, pair.rejected


def question(folder: RunFolder, problem_id: str) -> Iterator[str]:
    """One question in full. Raises DataError if the run has no result of that id."""
    return _question(folder, result_of(folder, problem_id))


def result_of(folder: RunFolder, problem_id: str) -> QuestionResult:
    """The result of a question. Raises DataError if the run has none of that id."""
    ids = []
    for record in folder.records:
        if record.result.problem_id == problem_id:
            return record.result
        ids.append(record.result.problem_id)
    raise DataError(f"{folder.path}: no question {problem_id!r}{did_you_mean(problem_id, ids)}")


def _question(folder: RunFolder, result: QuestionResult) -> Iterator[str]:
    yield _line(result.problem_id)
    seen = result.filtered
    early = ", stopped early" if seen.stopped else ""
    yield (
        f"{result.status}, p(success) {_interval(result.solved)} by the filter: "
        f"{seen.passed} of {seen.drawn} rollouts passed{early}"
    )
    if result.reason:
        yield f"set aside: {printable(result.reason)}"
    yield "\nPrompt"
    yield _indent(printable(folder.text(result.prompt_ids)))
    selected = selected_pairs(folder, {result.problem_id})
    for number, path in enumerate(result.paths, 1):
        yield f"\nAnswer {number}: {path.verdict.value}, search stopped: {path.stopped}"
        yield _indent(_marked(folder, path))
        yield from _path(folder, result, path, selected)


def _path(
    folder: RunFolder,
    result: QuestionResult,
    path: CompletionResult,
    selected: Mapping[PairKey, TokenPair],
) -> Iterator[str]:
    if path.curve:
        yield f"\n  p(success) along it  {curve_line(path)}"
    for pivot in (*path.tokens, *path.steps, *path.undecided):
        if isinstance(pivot, PivotalStep):
            text = repr(folder.text(pivot.ids))
            yield f"\n  pivotal {text} at {pivot.start} to {pivot.end - 1}: {_change(pivot)}"
            places = range(pivot.start, pivot.end)
            drawn = [(s, n) for at in places for *_, s, n in path.siblings.get(at, ())]
            passed, total = sum(s for s, _ in drawn), sum(n for _, n in drawn)
            yield f"    left within it: passed {passed}/{total}"  # of what went on elsewhere
            continue
        text = repr(folder.token_text(pivot.token))
        yield f"\n  pivotal {text} at {pivot.position}: {_change(pivot)}"
        for other, prob, passed, n in path.siblings.get(pivot.position, ()):
            text = repr(folder.token_text(other))
            yield f"    sibling {text:<16} π {prob:.2f}  passed {passed}/{n}"
    for pair in path.pairs:
        chosen, rejected = pair.confirm_chosen, pair.confirm_rejected
        kept = selected.get(pair_key(result, path, pair))
        gain = kept.expected_gain if kept else pair.expected_gain
        confirmed = "confirmed" if kept else "not confirmed"
        interval = f" [{kept.gap.low:+.2f}, {kept.gap.high:+.2f}]" if kept else ""
        yield (
            f"\n  pair at {pair.position} ({pair.criterion}, {confirmed}): "
            f"{folder.token_text(pair.chosen)!r} {chosen.successes}/{chosen.n} over "
            f"{folder.token_text(pair.rejected)!r} {rejected.successes}/{rejected.n}, gap "
            f"{kept.gap.mean if kept else pair.gap:+.2f}{interval}, expected_gain {gain:+.2f}, "
            f"p-value {pair.pvalue:.2g}"
        )


def _change(pivot: PivotalToken | PivotalStep) -> str:
    undecided = "" if pivot.decided else " (undecided)"
    return (
        f"q {pivot.prob:.2f}, p {_interval(pivot.before)} -> {_interval(pivot.after)}, "
        f"Δ {pivot.delta.mean:+.2f} [{pivot.delta.low:+.2f}, {pivot.delta.high:+.2f}] "
        f"by {pivot.delta.method}{undecided}"
    )


def curve_line(path: CompletionResult, width: int = 60) -> str:
    """The curve as one line of bars, p at the start and the end."""
    columns = min(width, len(path.ids) + 1)
    ends = [at * (columns - 1) / max(1, len(path.ids)) for at in path.curve_at]
    known = [path.curve[bisect_right(ends, column) - 1].mean for column in range(columns)]
    bars = "".join(BARS[min(7, int(p * 8))] for p in known)
    return f"{path.curve[0].mean:.2f} {bars} {path.curve[-1].mean:.2f}"


def _marked(folder: RunFolder, path: CompletionResult) -> str:
    """The answer, each reported token or step in brackets with its change of p."""
    ends = {token.position: (token.position + 1, token.delta.mean) for token in path.tokens}
    ends |= {step.start: (step.end, step.delta.mean) for step in path.steps}
    said, at = "", 0
    while at < len(path.ids):
        end, delta = ends.get(at, (at + 1, None))
        text = printable(folder.text(path.ids[at:end]))
        said += text if delta is None else f"⟦{text} {delta:+.2f}⟧"
        at = end
    return said


def _interval(estimate: Estimate) -> str:
    return f"{estimate.mean:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _line(text: str) -> str:
    """Text as one line of a table."""
    return printable(text).replace("\n", "\\n")


def _indent(text: str) -> str:
    return "\n".join("  " + line for line in text.split("\n"))
