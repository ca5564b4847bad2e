"""The data of a recipe's stages as one HTML page that loads nothing and runs no script.

    write_data_page(views, "phi-nano", Path("data.html"))

All that came from data is escaped by the templates, and characters that are not seen are shown by
their numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from align.errors import RecipeError
from align.mixture.losses import DROPPED, KEPT, WORDS
from align.mixture.view import StageView
from align.report.templates import TEMPLATES
from pts.files import file_fault, replacing

COLUMNS = ("rows", "drawn", "kept", *DROPPED, *KEPT, "tokens", "trained_tokens", "longest")


def write_data_page(views: Sequence[StageView], title: str, path: Path) -> None:
    """Write the page.

    Raises:
        RecipeError: the file cannot be written.
    """
    if fault := file_fault(path):
        raise RecipeError(f"--html: {path}: {fault}")
    page = TEMPLATES.get_template("data.html").render(
        title=f"Data of {title}",
        views=views,
        columns=COLUMNS,
        dropped=DROPPED,
        kept=KEPT,
        words=WORDS,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(page)
