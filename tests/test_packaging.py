"""What `pip install` brings: all packages, the recipes, the templates, the commands."""

from __future__ import annotations

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built from the files that git knows (no index is asked)."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if name.startswith(("tests/", "docs/", "benchmarks/")) or not (ROOT / name).is_file():
            continue
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", "--wheel-dir", str(made), str(source)],
        check=True,
    )  # fmt: skip
    return next(made.glob("*.whl"))


def names(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if line.strip()}


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


def test_the_wheel_holds_all_packages_and_their_files(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        path.relative_to(ROOT).as_posix()
        for top in ("align", "pts")
        for kind in ("*.py", "*.html", "*.css", "*.js", "*.pyi", "py.typed")
        for path in (ROOT / top).rglob(kind)
    }
    wanted |= {
        f"align/{path.relative_to(ROOT).as_posix()}"
        for top in ("recipes", "chat_templates")
        for path in (ROOT / top).rglob("*")
        if path.is_file()
    }
    assert wanted - {"align/chat_templates/README.md"} <= held
    assert not {name for name in held if name.startswith(("tests/", "docs/", "benchmarks/"))}
