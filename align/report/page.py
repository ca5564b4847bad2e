"""The report of a run: one HTML file that loads nothing and runs no script.

    path = write_report(Path("runs/phi-nano-seed0"))        # -> .../report.html

It is written from the run folder alone (manifest, evaluations, metrics, the search's files), so
it can be written again at any time, and for runs that are not finished: what is missing is left
out. Everything that came from data or a model is escaped. The search's own page, with every
question, is written beside it (pts/report.html) and linked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from align.evaluation.records import EvalSummary, read_evaluation
from align.evaluation.tables import Table, TextTable, build_table, label_of, notes
from align.report.answers import samples_section, search_section
from align.report.charts import forest, legend, lines
from align.run_folder import read_manifest
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

MEASURE_NAMES = ("greedy", "sampled", "best temperature")


def write_report(run_folder: Path) -> Path:
    """Write report.html into a run's folder and return its path.

    Raises:
        ManifestError: the folder holds no run.
        DataError, JournalError, StageError: files of the run are damaged.
    """
    manifest = read_manifest(run_folder)
    # The chain's order: a folder may hold rows of an earlier recipe, made in any order.
    chain = ["base", *manifest["recipe"].get("stages", ())]
    names = [name for name in chain if f"eval/{name}" in manifest["stages"]]
    table = build_table(run_folder, names) if names else None
    sections = [
        _header(manifest, run_folder),
        *(_evidence(table) if table else []),
        samples_section([read_evaluation(run_folder / "eval" / name) for name in names]),
        search_section(run_folder / "pts"),
        _training(run_folder, manifest),
        _stages(manifest),
    ]
    template = files("align.report").joinpath("template.html").read_text(encoding="utf-8")
    start, _, end = template.replace("{{title}}", escape(_name(manifest))).partition("{{body}}")
    path = run_folder / "report.html"
    with replacing(path) as file:
        file.write(start + "\n".join(filter(None, sections)) + end)
    return path


def _name(manifest: Mapping[str, Any]) -> str:
    return str(manifest.get("recipe", {}).get("name", "run"))


def _header(manifest: Mapping[str, Any], folder: Path) -> str:
    recipe, git = manifest.get("recipe", {}), manifest.get("git", {})
    commit = (git.get("commit") or "unknown")[:10]
    seconds = sum(stage["seconds"] for stage in manifest["stages"].values())
    facts = {
        "seed": recipe.get("seed"),
        "base": recipe.get("model", {}).get("path"),
        "commit": commit + (" with uncommitted changes" if git.get("changes") else ""),
        "time, stages and evaluations added up": duration(seconds),
        "stages": " > ".join(recipe.get("stages", ())),
        "folder": folder.resolve().name,
        **{k: v for k, v in manifest.get("versions", {}).items() if k in _VERSIONS},
    }
    shown = "".join(f"<span>{escape(k)} <b>{escape(str(v))}</b></span>" for k, v in facts.items())
    description = escape(str(recipe.get("description", "")))
    return f'<h1>{escape(_name(manifest))}</h1>\n<p>{description}</p>\n<p class="facts">{shown}</p>'


_VERSIONS = ("python", "torch", "transformers", "trl")


def duration(seconds: float) -> str:
    """`48 s`, `6 min 40 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _evidence(table: Table) -> list[str]:
    claims = "".join(
        f'<li class="{"holds" if " holds at " in line else "fails"}">{escape(line)}</li>'
        for line in table.sentences()
    )
    said = "".join(f"<li>{escape(line)}</li>" for line in notes(table.rows))
    blocks = "".join(_html_table(block) for block in table.blocks())
    return [
        f'<ul class="claims">{claims}</ul>' if claims else "",
        f'<h2>Evidence</h2>\n<div class="panel scroll">{blocks}</div><ul class="notes">{said}</ul>',
        _accuracy_charts([row.summary for row in table.rows]),
    ]


def _html_table(block: TextTable) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in block.header)
    rows = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(map(_cell, row[1:]))}</tr>'
        for row in block.rows
    )
    return (
        f'<table class="numbers"><caption>{escape(block.title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _cell(text: str) -> str:
    """The mean; below it, in small print, its interval and what else is said."""
    mean, bracket, rest = text.partition(" [")
    interval, _, more = rest.partition("] ")
    small = f"<small>[{escape(interval.removesuffix(']'))}]</small>" if bracket else ""
    return f"<td>{escape(mean)}{small}{f'<small>{escape(more)}</small>' if more else ''}</td>"


def _accuracy_charts(summaries: Sequence[EvalSummary]) -> str:
    best = [s.best.accuracy for s in summaries if s.best]
    tuned = len(best) == len(summaries)
    rows = [
        (label_of(s.stage), [s.greedy, s.sampled, *([best[i]] if tuned else [])])
        for i, s in enumerate(summaries)
    ]
    names = ["greedy", f"T={summaries[0].temperature:g}", *(["best T"] if tuned else [])]
    families = sorted(set().union(*(s.families for s in summaries)))
    chart = f'<div class="panel wide">{forest(rows)}{legend(names)}</div>'
    return f"<h2>Accuracy by stage, %</h2>\n{chart}" + (
        _family_charts(summaries, families, names[:2]) if len(families) > 1 else ""
    )


def _family_charts(
    summaries: Sequence[EvalSummary], families: Sequence[str], names: Sequence[str]
) -> str:
    panels = []
    for family in families:
        rows = [
            (label_of(s.stage), [s.families[family].greedy, s.families[family].sampled])
            for s in summaries
            if family in s.families
        ]
        panels.append(f'<div class="panel"><h3>{escape(family)}</h3>{forest(rows, 330)}</div>')
    grid = f'<div class="grid">{"".join(panels)}</div>'
    return f"<h2>Accuracy by family of problems, %</h2>\n{legend(names)}{grid}"


def _training(folder: Path, manifest: Mapping[str, Any]) -> str:
    parts = []
    for name in manifest["stages"]:
        panels = _curves(_metrics(folder / name / "metrics.jsonl"))
        if panels:
            grid = f'<div class="grid">{"".join(panels)}</div>'
            parts.append(f'<h3 class="stage">{escape(label_of(name))}</h3>{grid}')
    return "<h2>Training</h2>\n" + "".join(parts) if parts else ""


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The metrics of a stage; a last line that is still being written is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def _curves(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    panels = []
    for title, keys in CURVES:
        series = [
            (name, [(row["step"], row[key]) for row in rows if key in row]) for key, name in keys
        ]
        drawn = [(name, points) for name, points in series if len(points) > 1]
        if drawn:
            key = legend([name for name, _ in drawn], marked=False) if len(drawn) > 1 else ""
            chart = lines(drawn, title)
            panels.append(f'<div class="panel"><h3>{escape(title)}</h3>{chart}{key}</div>')
    return panels


def _stages(manifest: Mapping[str, Any]) -> str:
    panels = "".join(
        f'<div class="panel"><h3>{escape(label_of(name))} · {duration(stage["seconds"])}</h3>'
        f'<table class="facts-table">{"".join(_facts(stage["metrics"]))}</table></div>'
        for name, stage in manifest["stages"].items()
    )
    return f'<h2>Stages in numbers</h2>\n<div class="grid">{panels}</div>' if panels else ""


def _facts(metrics: Mapping[str, Any]) -> list[str]:
    return [
        f"<tr><td>{escape(name.replace('_', ' '))}</td><td>{escape(_shown(value))}</td></tr>"
        for name, value in metrics.items()
    ]


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
