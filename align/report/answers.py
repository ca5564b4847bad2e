"""Answers in the run's report: the same problems before and after, and the search's finds.

Plain data for answers.html. Texts are the models': all are escaped there, and nothing in them stays
hidden.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from align.evaluation.records import Evaluation, Item
from align.report.charts import success_curve

GAINED, LOST = 2, 1
"""Problems shown of each step: such that it solved, and such that it no longer solves."""
PATHS = 6
"""Answers shown of the search."""
LONGEST = 2000
"""Characters of one answer at most."""
JOINERS = "\u200c\u200d"
"""Unseen, but some scripts and emoji need them."""


def visible(text: str) -> str:
    """Characters that are not seen, or that turn what is around them, by their numbers."""
    return "".join(c if _is_plain(c) else f"⟨U+{ord(c):04X}⟩" for c in text)


def _is_plain(character: str) -> bool:
    kinds = ("Cc", "Cf", "Zl", "Zp")
    return character in f"\n\t{JOINERS}" or unicodedata.category(character) not in kinds


def shortened(text: str) -> str:
    """At most LONGEST characters of it."""
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def changed_answers(
    evaluations: Mapping[str, Evaluation],
) -> list[tuple[str, str, list[tuple[str, Item]]]]:
    """Question, reference and greedy answers by label of the stage, where a step changed the
    verdict."""
    by_id = {label: {item.id: item for item in e.items} for label, e in evaluations.items()}
    found = []
    for name in changed_problems(list(by_id.values())):
        answers = [(label, items[name]) for label, items in by_id.items() if name in items]
        found.append((answers[0][1].question, answers[0][1].reference, answers))
    return found


def changed_problems(by_id: Sequence[Mapping[str, Item]]) -> list[str]:
    """Ids of problems whose greedy verdict a step changed."""
    chosen: dict[str, None] = {}
    for before, after in pairwise(by_id):
        shared = [name for name in before if name in after and name not in chosen]
        gained = [name for name in shared if after[name].greedy and not before[name].greedy]
        lost = [name for name in shared if before[name].greedy and not after[name].greedy]
        chosen.update(dict.fromkeys([*gained[:GAINED], *lost[:LOST]]))
    return list(chosen)


def read_search(folder: Path) -> tuple[Mapping[str, Any], str, list[dict[str, Any]]] | None:
    """Totals of a search, its own page (written here) and answers with their pivotal tokens.

    The page is named from the folder above; None if the folder holds no search.
    """
    if not (folder / "results.jsonl").is_file() or not (folder / "journal.jsonl").is_file():
        return None
    from pts.report.page import report_data, write_report
    from pts.runtime.run_folder import RunFolder

    data = report_data(RunFolder(folder))
    page = write_report(folder)
    paths = [_path(question, path) for question, path in pivotal_paths(data["questions"])]
    return data["run"], f"{folder.name}/{page.name}", paths


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


def _path(question: Mapping[str, Any], path: Mapping[str, Any]) -> dict[str, Any]:
    deltas = {int(at): pivot[0] for at, pivot in path["pivots"].items()}
    return {
        "verdict": path["verdict"],
        "prompt": question["prompt"],
        "curve": success_curve(path["curve"], deltas, len(path["tokens"])),
        "tokens": [(text, prob, deltas.get(at)) for at, (text, prob) in enumerate(path["tokens"])],
        "pairs": [
            (
                pair["at"],
                *((repr(text), *rest) for text, *rest in (pair["chosen"], pair["rejected"])),
            )
            for pair in path["pairs"]
            if pair["confirmed"]
        ],
    }
