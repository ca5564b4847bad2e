"""Scores of `search_tabular.py`: figures with their intervals, tables, targets met and missed.

With indifference margin = 0.05 around p_gap = 0.2 a report is false where the true |Δ| is below
0.15, a token must be found from 0.25 upwards, and what lies between counts neither way. "Before":
the tokens that the search reports. "After": the pairs that survive their fresh rollouts at a false
discovery rate of 0.05 over all paths of the shape, true if the siblings really differ by 0.15; a
token counts as found if a confirmed pair stands at its place (a path has four pairs at most).
Coverage is that of the intervals of Δ when the search stops: of all tokens with 1 - q >= p_gap that
it estimated (`branch`: all of them, those that got no rollout included), of the reported ones, and
of those whose true |Δ| lies within 0.02 of the gap.

Tokens and rollouts include the filter, screening and confirmation. Intervals are 95 %, clustered by
path: the standard error of a ratio of sums by the delta method, turned into the sample size of a
binomial with that error and then into Wilson's interval; where there is no variation, with the
number of paths that had something to count.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from pts.stats import Z95, benjamini_hochberg, wilson_bounds

P_GAP, ZONE, FDR = 0.2, 0.05, 0.05
NOMINAL = 0.95
NOTES = Path(__file__).with_name("search_tabular_notes.md")

Row: TypeAlias = dict[str, Any]
Figure: TypeAlias = tuple[float, float, float, int] | None
"""Value, its 95 % interval, and what was counted."""


def share(part: Sequence[float], whole: Sequence[float]) -> Figure:
    """Σ part / Σ whole, a proportion, with its interval over paths."""
    a, b = np.asarray(part, float), np.asarray(whole, float)
    if b.sum() == 0:
        return None
    value = float(a.sum() / b.sum())
    error = float(np.sqrt(((a - value * b) ** 2).sum()) / b.sum())
    n = value * (1 - value) / error**2 if error > 0 else float((b > 0).sum())
    return (value, *wilson_bounds(value * n, n), int(b.sum()))


def quotient(part: Sequence[float], whole: Sequence[float]) -> Figure:
    """Σ part / Σ whole of paired costs, with a normal interval over paths."""
    a, b = np.asarray(part, float), np.asarray(whole, float)
    if b.sum() == 0:
        return None
    value = float(a.sum() / b.sum())
    half = Z95 * float(np.sqrt(((a - value * b) ** 2).sum()) / b.sum())
    return value, value - half, value + half, len(a)


def report(found: dict[str, dict[str, list[Row]]]) -> dict[str, dict[str, Row]]:
    """Figures by shape and search."""
    return {
        shape: {name: figures(rows[name]) | costs(rows, name) for name in rows}
        for shape, rows in found.items()
    }


def figures(rows: Sequence[Row]) -> Row:
    counted: Callable[[str], list[float]] = lambda key: [row[key] for row in rows]  # noqa: E731
    reported = counted("reported")
    selected = confirmed(rows)
    return {
        "paths": len(rows),
        "without a pivot": sum(not row["pivot"] for row in rows),
        "must": sum(counted("must")),
        "reported": sum(reported),
        "undecided": sum(counted("undecided")),
        "precision": share(
            [r - f for r, f in zip(reported, counted("false"), strict=True)], reported
        ),
        "recall": share(counted("found"), counted("must")),
        "false pairs proposed": share(
            [sum(p["truth"] < P_GAP - ZONE for p in row["pairs"]) for row in rows],
            [len(row["pairs"]) for row in rows],
        ),
        "pairs confirmed": sum(map(len, selected)),
        "pair precision": share(
            [sum(p["truth"] >= P_GAP - ZONE for p in pairs) for pairs in selected],
            [len(pairs) for pairs in selected],
        ),
        "pair recall": share(
            [len({p["at"] for p in pairs if p["must"]}) for pairs in selected], counted("must")
        ),
        **{
            f"cover {kind}": share(
                [row[f"cover_{kind}"][0] for row in rows], [row[f"cover_{kind}"][1] for row in rows]
            )
            for kind in ("all", "reported", "near")
        },
        "stopped": {
            k: sum(row["stopped"] == k for row in rows)
            for k in sorted({row["stopped"] for row in rows})
        },
        "cpu seconds": round(sum(counted("cpu")), 1),
    }


def confirmed(rows: Sequence[Row]) -> list[list[Row]]:
    """The pairs of each path that the run over all of them selects
    (`pts.algorithm.selection.select_pairs`)."""
    selected: list[list[Row]] = [[] for _ in rows]
    for criterion in ("path", "fork"):
        family = [
            (i, pair)
            for i, row in enumerate(rows)
            for pair in row["pairs"]
            if pair["criterion"] == criterion
        ]
        passed = benjamini_hochberg([pair["pvalue"] for _, pair in family], FDR)
        for (i, pair), keep in zip(family, passed, strict=True):
            if keep:
                selected[i].append(pair)
    return selected


def costs(rows: dict[str, list[Row]], name: str) -> Row:
    """Means by path, and tokens against the published search on the same paths."""
    own = rows[name]
    tokens = [sum(row["tokens"].values()) for row in own]
    found: Row = {
        "rollouts": round(float(np.mean([sum(row["rollouts"].values()) for row in own])), 1),
        "tokens": round(float(np.mean(tokens))),
        "search tokens": round(float(np.mean([row["tokens"]["search"] for row in own]))),
        "search rollouts": round(float(np.mean([row["rollouts"]["search"] for row in own])), 1),
    }
    if not any(tokens):  # what drew from the known p(success) generated none
        return {key: value for key, value in found.items() if "tokens" not in key}
    for other, key, calm in (
        ("bisect, n = 512", "tokens / bisect 512", False),
        ("bisect, n = 128", "tokens / bisect 128 without a pivot", True),
    ):
        if other in rows:
            paths = [i for i, row in enumerate(own) if not (calm and row["pivot"])]
            theirs = [sum(row["tokens"].values()) for row in rows[other]]
            found[key] = quotient([tokens[i] for i in paths], [theirs[i] for i in paths])
    return found


TARGETS: dict[str, tuple[str, float]] = {
    "precision": ("at least", 0.95),
    "recall": ("at least", 0.90),
    "tokens / bisect 512": ("at most", 0.25),
    "tokens / bisect 128 without a pivot": ("at most", 1.5),
    "cover all": ("at least", NOMINAL - 0.02),
    "cover reported": ("at least", NOMINAL - 0.02),
    "cover near": ("at least", NOMINAL - 0.02),
}
"""What `branch` is held to before confirmation, shape by shape."""


def met(key: str, figure: Figure) -> bool | None:
    """Whether a figure meets its target; None where it has none or nothing was counted."""
    if key not in TARGETS or figure is None:
        return None
    side, limit = TARGETS[key]
    return figure[0] >= limit - 1e-12 if side == "at least" else figure[0] <= limit + 1e-12


def shown(figure: Any, verdict: bool | None = None) -> str:
    if figure is None:
        return "–"
    if isinstance(figure, int | float):
        return f"{figure:,.0f}"
    value, low, high, _ = figure
    text = f"{value:.3f} [{low:.3f}, {high:.3f}]"
    return f"**{text}**" if verdict is False else text


TOKENS = (
    "reported",
    "undecided",
    "precision",
    "recall",
    "cover all",
    "cover reported",
    "cover near",
)
COSTS = (
    "rollouts",
    "search rollouts",
    "tokens",
    "tokens / bisect 512",
    "tokens / bisect 128 without a pivot",
    "pairs confirmed",
    "pair precision",
    "pair recall",
)


def tables(found: dict[str, dict[str, Row]], about: Row) -> str:
    """The report as Markdown; the notes, written by hand, say why targets were missed."""
    lines = ["# Searches against known p(success)", ""]
    codes = ", ".join(f"{name}: {head['sources']}" for name, head in about["searches"].items())
    lines += [f"`{about['command']}`, {about['date']} (code {codes}).", ""]
    lines += [*(__doc__ or "").split("\n\n", 1)[1].strip().splitlines(), ""]
    lines += [*summary(found), "", *notes(found)]
    for shape, rows in found.items():
        lines += details(shape, rows)
    return "\n".join(lines)


def notes(found: Collection[str]) -> list[str]:
    """The remarks on these shapes, written by hand: `- **shape, …` under one heading."""
    head, *remarks = NOTES.read_text().strip().split("\n- **")
    own = [remark for remark in remarks if remark.split(",")[0] in found]
    return [*head.splitlines(), *(f"- **{remark}" for remark in own), ""] if own else []


def summary(found: dict[str, dict[str, Row]]) -> list[str]:
    """Every target of every shape: met, or in bold."""
    heads = [f"{key} {side} {limit:g}" for key, (side, limit) in TARGETS.items()]
    lines = ["## `branch` against its targets", ""]
    lines += ["Misses in bold; – where nothing was counted.", ""]
    lines += ["| shape | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for shape, rows in found.items():
        if "branch" in rows:
            cells = [shown(rows["branch"].get(k), met(k, rows["branch"].get(k))) for k in TARGETS]
            lines.append(f"| {shape} | " + " | ".join(cells) + " |")
    return lines


def details(shape: str, rows: dict[str, Row]) -> list[str]:
    first = next(iter(rows.values()))
    lines = [f"## {shape}", ""]
    lines += [
        f"{first['paths']} paths, {first['without a pivot']} of them without a pivot, "
        f"{first['must']} tokens to be found.",
        "",
    ]
    for columns in (TOKENS, COSTS):
        lines += ["| search | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for name, row in rows.items():
            held = name == "branch"
            cells = [shown(row.get(k), met(k, row.get(k)) if held else None) for k in columns]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    for name, row in rows.items():
        if name.startswith("branch"):
            lines += [*ending(name, row), ""]
    return lines


def ending(name: str, row: Row) -> list[str]:
    """What the coverage counts, and what ended the searches."""
    counts = [(row[f"cover {kind}"] or (0, 0, 0, 0))[3] for kind in ("all", "reported", "near")]
    stopped = ", ".join(f"{n} {why}" for why, n in row["stopped"].items())
    return [
        f"{name}: coverage counts {counts[0]} tokens, {counts[1]} reported, {counts[2]} within "
        f"0.02 of the gap; its searches ended {stopped}.",
    ]
