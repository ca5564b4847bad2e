"""What `pip install` brings: all packages, the recipes, the templates, the commands."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
import sysconfig
import venv
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


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Path:
    """The bin folder of an environment that holds the wheel, and dependencies by their path only:
    the .pth file of this checkout, which lies beside them, is not read there."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps",
         "--no-index", str(wheel)],
        check=True,
    )  # fmt: skip
    told = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    Path(told.strip(), "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


@pytest.mark.slow
def test_the_first_stage_and_a_search_run_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """Outside the checkout, in an environment that has never seen it."""
    work = tmp_path / "work"
    work.mkdir()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str) -> str:
        done = subprocess.run(
            [str(installed / command[0]), *command[1:]],
            cwd=work, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    for package in ("align", "pts"):
        where = run("python", "-c", f"import {package}; print({package}.__file__)")
        assert Path(where.strip()).is_relative_to(installed.parent)
    small = ("sft.num_examples=128", "evaluate.problems=16", "evaluate.samples=1")
    run("align", "run", "phi-nano", "stages=[sft]", *small)
    run("align", "problems", "phi-nano", "--count", "2")
    run("pts", "search", "--model", "runs/phi-nano-seed0/sft/model", "--problems", "problems.jsonl",
        "--chat", "--verifier", r"exact:The answer is (-?\d+)\.", "--output", "runs/shell",
        "max_new_tokens=64")  # fmt: skip
    summary = json.loads((work / "runs" / "shell" / "summary.json").read_text())
    assert sum(summary["questions"].values()) == 2
