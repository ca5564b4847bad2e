"""The templates of the reports: they escape all that comes from data or a model."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from align.report.answers import shortened, visible

TEMPLATES = Environment(
    loader=PackageLoader("align", "report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters |= {"thousands": "{:,}".format, "visible": visible, "shortened": shortened}
