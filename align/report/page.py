"""The report of a run: one HTML file that loads nothing and runs no script.

    path = write_report(Path("runs/phi-nano-seed0"))        # -> .../report.html

It is written from the run folder alone (manifest, evaluations, metrics, the search's files), so
it can be written again at any time, and for runs that are not finished: what is missing is left
out. The templates escape all that came from data or a model. The search's own page, with every
question, is written beside it (pts/report.html) and linked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from markupsafe import Markup

from align.errors import StageError
from align.evaluation.records import read_evaluation
from align.evaluation.tables import StageRow, Table, notes, run_table
from align.report.answers import (
    GAINED,
    changed_answers,
    read_search,
)
from align.report.charts import forest, legend, lines
from align.report.judges import judges
from align.report.templates import TEMPLATES
from align.run_folder import chain_of, check_policies, read_manifest
from pts.files import replacing

CURVES: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("Loss", (("loss", "loss"),)),
    (
        "Probability at the pairs' position",
        (("prob_chosen", "chosen"), ("prob_rejected", "rejected"), ("prob_others", "all others")),
    ),
    (
        "Log-probability of completions",
        (("logps/chosen", "chosen"), ("logps/rejected", "rejected")),
    ),
    ("Share of pairs that the policy prefers more than its reference", (("accuracy", "token"),)),
    ("Share of pairs with a positive reward margin", (("rewards/accuracies", "pairs"),)),
    ("Accuracy of next tokens", (("mean_token_accuracy", "assistant's tokens"),)),
)
"""Charts of metrics.jsonl: a title, and its keys with their names; drawn where keys exist."""

VERSIONS = ("python", "torch", "transformers", "trl")
"""Of what the manifest's versions are shown."""

Panel: TypeAlias = tuple[str, Markup, str]
"""Title, chart and legend (empty for one curve)."""


def write_report(run_folder: Path) -> Path:
    """Write report.html into a run's folder and return its path.

    Raises:
        ManifestError: the folder holds no run.
        DataError, JournalError, StageError: files of the run are damaged.
    """
    manifest = read_manifest(run_folder)
    check_policies(run_folder, manifest)
    labels = {stage["name"]: stage["label"] for stage in chain_of(manifest)}
    table = run_table(run_folder, manifest)
    names = [row.stage for row in table.rows] if table else []
    evaluations = {labels[name]: read_evaluation(run_folder / "eval" / name) for name in names}
    recipe = manifest.get("recipe", {})
    page = TEMPLATES.get_template("template.html").render(
        title=recipe.get("name", "run"),
        description=recipe.get("description", ""),
        facts=_facts(manifest, run_folder),
        evidence=_evidence(table) if table else None,
        samples=changed_answers(evaluations),
        gained=GAINED,
        searches=list(filter(None, (read_search(run_folder / name) for name in labels))),
        training=_training(run_folder, manifest, labels),
        judges=judges(manifest["stages"], labels),
        stages=_stages(manifest, labels),
    )
    path = run_folder / "report.html"
    with replacing(path) as file:
        file.write(page)
    return path


def _facts(manifest: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    recipe, git = manifest.get("recipe", {}), manifest.get("git", {})
    commit = (git.get("commit") or "unknown")[:10]
    seconds = sum(stage["seconds"] for stage in manifest["stages"].values())
    return {
        "seed": recipe.get("seed"),
        "base": recipe.get("model", {}).get("path"),
        "commit": commit + (" with uncommitted changes" if git.get("changes") else ""),
        "time, stages and evaluations added up": duration(seconds),
        "stages": " > ".join(stage["name"] for stage in recipe.get("stages", ())),
        "folder": folder.resolve().name,
        **{k: v for k, v in manifest.get("versions", {}).items() if k in VERSIONS},
        **_continued(manifest),
    }


def _continued(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Of a run that was continued elsewhere: which stages the versions above did not make."""
    before = [name for one in manifest.get("earlier", ()) for name in one["stages"]]
    told = "with other code, versions or machine (manifest.json: earlier)"
    return {told: ", ".join(before)} if before else {}


def duration(seconds: float) -> str:
    """`48 s`, `6 min 40 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _evidence(table: Table) -> dict[str, Any]:
    """Claims, tables, notes and charts of accuracy, for evidence.html."""
    summaries = [row.summary for row in table.rows]
    best = [s.best.accuracy for s in summaries if s.best]
    tuned = len(best) == len(summaries)
    rows = [
        (row.label, [row.summary.greedy, row.summary.sampled, *([best[i]] if tuned else [])])
        for i, row in enumerate(table.rows)
    ]
    names = ["greedy", f"T={summaries[0].temperature:g}", *(["best T"] if tuned else [])]
    return {
        "claims": table.sentences(),
        "tables": [
            (block.title, block.header, [(name, map(_cell, rest)) for name, *rest in block.rows])
            for block in table.blocks()
        ],
        "notes": notes(table.rows),
        "chart": forest(rows),
        "legend": legend(names),
        "families": [
            (family, _family_chart(table.rows, family))
            for family in sorted(set().union(*(s.families for s in summaries)))
        ],
        "family_legend": legend(names[:2]),
    }


def _cell(text: str) -> tuple[str, str, str]:
    """The mean, its interval without brackets, and what else is said."""
    mean, _, rest = text.partition(" [")
    interval, _, more = rest.partition("] ")
    return mean, interval.removesuffix("]"), more


def _family_chart(table_rows: Sequence[StageRow], family: str) -> Markup:
    scores = [(row.label, row.summary.families.get(family)) for row in table_rows]
    return forest([(label, [s.greedy, s.sampled]) for label, s in scores if s], 330)


def _training(
    folder: Path, manifest: Mapping[str, Any], labels: Mapping[str, str]
) -> list[tuple[str, list[Panel]]]:
    """Curves of every stage that has some, by its label."""
    drawn = [(n, _curves(_metrics(folder / n / "metrics.jsonl"))) for n in manifest["stages"]]
    return [(labels.get(name, name), panels) for name, panels in drawn if panels]


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The metrics of a stage; a last line that is still being written is left out."""
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and all(map(_is_number, _drawn(row))):
            found.append(row)
        elif line.endswith(b"\n"):
            raise StageError(
                f"{path}, line {number}: damaged; restore the file, or delete the line and write "
                "the report again"
            )
    return found


def _drawn(row: Mapping[str, Any]) -> list[object]:
    """What the charts take from a row: the step and the values of their keys."""
    keys = [key for _, series in CURVES for key, _ in series if key in row]
    return [row.get("step"), *(row[key] for key in keys)] if keys else []


def _is_number(value: object) -> bool:
    """Whether a chart can show a value."""
    return type(value) in (int, float) and -1e300 < value < 1e300  # type: ignore[operator]


def _curves(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    panels = []
    for title, keys in CURVES:
        series = [
            (name, [(row["step"], row[key]) for row in rows if key in row]) for key, name in keys
        ]
        drawn = [(name, points) for name, points in series if len(points) > 1]
        if drawn:
            key = legend([name for name, _ in drawn], marked=False) if len(drawn) > 1 else ""
            panels.append((title, lines(drawn, title), key))
    return panels


def _stages(
    manifest: Mapping[str, Any], labels: Mapping[str, str]
) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Label, duration and metrics of every stage and evaluation that has run."""
    return [
        (
            labels.get(name, name),
            duration(stage["seconds"]),
            [
                (key.replace("_", " "), _shown(value))
                for key, value in stage["metrics"].items()
                if key != "judge"
            ],
        )
        for name, stage in manifest["stages"].items()
    ]


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
