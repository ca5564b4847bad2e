"""Answers in the run's report: the same problems before and after, and the search's finds.

Texts are the models': all are escaped, and nothing in them stays hidden.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from align.evaluation.records import Evaluation, Item
from align.evaluation.tables import label_of
from align.report.charts import success_curve

GAINED, LOST = 2, 1
"""Problems shown of each step: such that it solved, and such that it no longer solves."""
PATHS = 6
"""Answers shown of the search."""
LONGEST = 2000
"""Characters of one answer at most."""
JOINERS = "\u200c\u200d"
"""Unseen, but some scripts and emoji need them."""


def html(text: str) -> str:
    """Escaped; characters that are not seen, or that turn what is around them, by their numbers."""
    return escape("".join(c if _is_plain(c) else f"⟨U+{ord(c):04X}⟩" for c in text))


def _is_plain(character: str) -> bool:
    kinds = ("Cc", "Cf", "Zl", "Zp")
    return character in f"\n\t{JOINERS}" or unicodedata.category(character) not in kinds


def samples_section(evaluations: Sequence[Evaluation]) -> str:
    """Greedy answers of all stages, side by side, where a step changed the verdict."""
    if len(evaluations) < 2:
        return ""
    by_id = [{item.id: item for item in e.items} for e in evaluations]
    chosen = changed_problems(by_id)
    if not chosen:
        return ""
    stages = [label_of(e.summary.stage) for e in evaluations]
    panels = "".join(_sample(name, stages, by_id) for name in chosen)
    return (
        "<h2>Greedy answers before and after</h2>\n<p class='dim'>Picked by rule, not by hand: of "
        f"each step the first {GAINED} problems that it solved and the first that it no longer "
        f"solves, in the order of the evaluation.</p>{panels}"
    )


def changed_problems(by_id: Sequence[Mapping[str, Item]]) -> list[str]:
    """Ids of problems whose greedy verdict a step changed."""
    chosen: dict[str, None] = {}
    for before, after in pairwise(by_id):
        shared = [name for name in before if name in after and name not in chosen]
        gained = [name for name in shared if after[name].greedy and not before[name].greedy]
        lost = [name for name in shared if before[name].greedy and not after[name].greedy]
        chosen.update(dict.fromkeys([*gained[:GAINED], *lost[:LOST]]))
    return list(chosen)


def _sample(name: str, stages: Sequence[str], by_id: Sequence[Mapping[str, Item]]) -> str:
    first = next(items[name] for items in by_id if name in items)
    answers = "".join(
        _answer(stage, items[name])
        for stage, items in zip(stages, by_id, strict=True)
        if name in items
    )
    return (
        f'<div class="panel sample"><p class="question">{html(first.question)} '
        f'<span class="dim">({html(first.reference)})</span></p>'
        f'<div class="answers">{answers}</div></div>'
    )


def _answer(stage: str, item: Item) -> str:
    verdict = "right" if item.greedy else "cut" if item.greedy_truncated else "wrong"
    kind = "pass" if item.greedy else "fail"
    return (
        f'<div class="answer"><span class="verdict {kind}">{verdict}</span>'
        f'<h3>{escape(stage)}</h3><p class="text">{html(_cut(item.greedy_text.strip()))}</p>'
        f'<p class="dim">{item.passed} of {item.samples} samples right</p></div>'
    )


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def search_section(folder: Path) -> str:
    """p(success) along answers with their pivotal tokens; also writes the search's own page."""
    if not (folder / "results.jsonl").is_file() or not (folder / "journal.jsonl").is_file():
        return ""
    from pts.report.page import report_data, write_report
    from pts.runtime.run_folder import RunFolder

    data = report_data(RunFolder(folder))
    page = write_report(folder)
    paths = pivotal_paths(data["questions"])
    panels = "".join(_path(question, path) for question, path in paths)
    run = data["run"]
    searched, asked = run["status"].get("searched", 0), sum(run["status"].values())
    return (
        "<h2>Pivotal tokens</h2>\n"
        f"<p>{searched:,} of {asked:,} questions were searched; {run['confirmed']:,} pairs were "
        f"confirmed by fresh rollouts of {run['proposed']:,} proposed. Below, the answers with the "
        "largest changes: p(success) after each token with its interval, and the tokens that "
        f"move it by {run['gap']:g} or more: ▲ up, ▼ down. "
        f'<a href="pts/{escape(page.name)}">Every question, token and sibling</a>.</p>'
        f"{_words(run)}{_costs(run)}{panels}"
    )


def _words(run: Mapping[str, Any]) -> str:
    said = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in run["words"])
    summary = "What the numbers mean, and how sure they are"
    return f'<details><summary>{summary}</summary><dl class="words">{said}</dl></details>'


def _costs(run: Mapping[str, Any]) -> str:
    rows = [*((name, tally) for name, tally in run["spent"].items()), ("all", run["total"])]
    body = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(
            f"<td>{tally[key]:,}</td>" for key in ("rollouts", "tokens", "passed", "truncated")
        )
        + f"<td>{escape(tally.get('for', ''))}</td></tr>"
        for name, tally in rows
    )
    names = ("purpose", "rollouts", "tokens", "passed", "cut by the limit", "spent on")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        '<details><summary>What it cost</summary><div class="panel scroll"><table class="numbers">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


def pivotal_paths(
    questions: Sequence[Mapping[str, Any]],
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The answers with the largest change of p(success), one a question."""
    found = []
    for question in questions:
        paths = [path for path in question["paths"] if path["pivots"]]
        if paths:
            found.append((question, max(paths, key=_largest)))
    return sorted(found, key=lambda pair: -_largest(pair[1]))[:PATHS]


def _largest(path: Mapping[str, Any]) -> float:
    return max(abs(float(pivot[0])) for pivot in path["pivots"].values())


def _path(question: Mapping[str, Any], path: Mapping[str, Any]) -> str:
    pivots = {int(at): pivot[0] for at, pivot in path["pivots"].items()}
    curve = success_curve(path["curve"], pivots, len(path["tokens"]))
    tokens = "".join(
        _token(text, prob, pivots.get(at)) for at, (text, prob) in enumerate(path["tokens"])
    )
    kind = "pass" if path["verdict"] == "pass" else "fail"
    return (
        f'<div class="panel path"><span class="verdict {kind}">{escape(path["verdict"])}</span>'
        f'<p class="question text">{html(_cut(question["prompt"]))}</p>{curve}'
        f'<p class="text">{tokens}</p>{_pairs(path["pairs"])}</div>'
    )


def _token(text: str, prob: float, delta: float | None) -> str:
    if delta is None:
        return html(text)
    said = f"probability {prob:.2f}, p(success) {delta:+.2f}"
    kind = "up" if delta > 0 else "down"
    return f'<mark class="{kind}" title="{said}">{html(text) or "∅"}</mark>'


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        f"<li>token {pair['at'] + 1}: {_side(pair['chosen'])} over {_side(pair['rejected'])}</li>"
        for pair in pairs
        if pair["confirmed"]
    ]
    return f'<ul class="notes">{"".join(lines)}</ul>' if lines else ""


def _side(side: Sequence[Any]) -> str:
    text, prob, passed, n = side
    return f"<code>{html(repr(text))}</code> ({passed} of {n} right, probability {prob:.2f})"
