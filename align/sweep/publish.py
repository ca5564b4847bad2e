"""Write what a sweep has found so far into its folder.

table.md, table.json, gains.svg     arms and contrasts over the seeds
tuning.md, tuning.json              the log of random search, every point of it
"""

from __future__ import annotations

from align.sweep.table import sweep_table
from align.sweep.tuning import tuning_log
from align.sweep.work import Work
from pts.files import replacing, write_json


def write_tables(work: Work) -> str:
    """Write the tables of the cells that are there; return them as text, empty without cells."""
    cells = work.cells()
    if not cells:
        return ""
    missing = len(work.keys) - len(cells)
    if work.plan.draws:
        log = tuning_log(work.plan, cells, missing)
        _write(work, "tuning", log.to_markdown(), log.to_json())
        return log.to_text()
    table = sweep_table(work.plan.sweep, cells, missing)
    _write(work, "table", table.to_markdown(), table.to_json())
    if picture := table.picture():
        with replacing(work.output / "gains.svg") as file:
            file.write(picture)
    return table.to_text()


def _write(work: Work, name: str, text: str, data: dict[str, object]) -> None:
    with replacing(work.output / f"{name}.md") as file:
        file.write(text)
    write_json(work.output / f"{name}.json", data)
