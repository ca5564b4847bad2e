"""What `pip install` brings: all packages, the recipes, the templates, the commands."""

from __future__ import annotations

import configparser
from pathlib import Path

ROOT = Path(__file__).parent.parent


def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def names(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if line.strip()}


def test_every_package_is_listed() -> None:
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("align", "pts")
        for path in (ROOT / top).rglob("*.py")
    }
    listed = names(settings()["options"]["packages"])
    assert listed == folders | {"align.recipes", "align.chat_templates"}


def test_constraints_satisfy_the_lower_bounds() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pinned = {
        canonicalize_name(line.partition("==")[0]): line.strip().partition("==")[2]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    for line in names(settings()["options"]["install_requires"]):
        wanted = Requirement(line)
        assert pinned[canonicalize_name(wanted.name)] in wanted.specifier, line


def test_files_that_are_read_at_run_time_are_packaged() -> None:
    patterns = names(settings()["options.package_data"]["*"].replace(",", "\n"))
    for package in ("align", "pts"):
        kinds = {f"*{path.suffix}" for path in (ROOT / package).glob("report_*.*")} - {"*.py"}
        assert kinds
        assert kinds <= patterns
