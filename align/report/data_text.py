"""The data of a stage in a terminal: counts by source, lengths, rows with what is trained on."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from align.mixture.losses import DROPPED, KEPT, WORDS
from align.mixture.view import Shown, StageView
from pts.errors import printable

BAR = 40
"""Characters of the longest bar of a histogram."""
MARKS = ("⟦", "⟧")
"""Around what is trained on, where there is no colour."""


def print_view(view: StageView, console: Console) -> None:
    """Print what is shown of one stage."""
    parts: list[Table | Text] = [Text(f"\n{view.stage}", style="bold"), _table(view)]
    for name in view.sources:
        parts.append(Text(f"\n{printable(name)}: tokens of a row", style="bold"))
        parts += _histogram(view, name)
    for name, source in view.sources.items():
        for row in source.samples:
            parts += _row(f"{printable(name)}, a row", row, console)
        for loss, row in source.lost.items():
            parts += _row(f"{printable(name)}, the first of those that {WORDS[loss]}", row, console)
    console.print(Group(*parts), highlight=False, soft_wrap=True)


def _table(view: StageView) -> Table:
    table = Table(box=None, pad_edge=False)
    losses = [k for k in (*DROPPED, *KEPT) if any(getattr(c, k) for c in view.counts.values())]
    for name in ("source", "rows", "drawn", "kept", *losses, "tokens", "trained on", "longest"):
        table.add_column(name.replace("_", " "), justify="left" if name == "source" else "right")
    for name, counts in view.counts.items():
        told = counts.plain()
        lost = [f"{told[k]:,} ({told[k] / max(1, counts.drawn):.1%})" for k in losses]
        share = counts.trained_tokens / max(1, counts.tokens)
        table.add_row(
            Text(printable(name)),
            *(f"{told[k]:,}" for k in ("rows", "drawn", "kept")),
            *lost,
            f"{counts.tokens:,}",
            f"{counts.trained_tokens:,} ({share:.0%})",
            f"{counts.longest:,}",
        )
    return table


def _histogram(view: StageView, name: str) -> Iterator[Text]:
    lengths = view.sources[name].lengths
    most = max(1, *lengths)
    labels = [f"≤ {edge:,}" for edge in view.edges()] + [f"> {view.max_length:,}"]
    for label, rows in zip(labels, lengths, strict=True):
        bar = "█" * -(-BAR * rows // most)
        yield Text(f"{label:>12}  {bar} {rows:,}")


def _row(title: str, row: Shown, console: Console) -> Iterator[Text]:
    yield Text(f"\n{title} ({printable(row.place)})", style="bold")
    plain = console.color_system is None
    for name, pieces in row.texts:
        text = Text(f"{name}: " if name else "")
        for piece, trained in pieces:
            said = printable(piece)
            if trained and plain:
                said = said.join(MARKS)
            text.append(said, style="bold green" if trained else "dim")
        yield text
