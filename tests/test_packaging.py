"""What `pip install` brings: all packages, the recipes, the templates, the commands."""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
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
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that git knows, and that are packaged."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if name.startswith(("tests/", "docs/", "benchmarks/")) or not (ROOT / name).is_file():
            continue
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    return source


def built(source: Path, folder: Path) -> Path:
    """The wheel of a folder or of a source archive; no index is asked."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", "--wheel-dir", str(folder), str(source)],
        check=True,
    )  # fmt: skip
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel."""
    return built(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's source archive."""
    made = tmp_path_factory.mktemp("sdist")
    code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", code, str(made)], cwd=source, check=True, capture_output=True
    )
    return next(made.glob("*.tar.gz"))


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


def test_the_source_archive_builds_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "setup.cfg", "setup.py", "pyproject.toml"} <= held
    assert "recipes/phi-nano/recipe.yaml" in held
    first, second = (zipfile.ZipFile(path) for path in (wheel, built(sdist, tmp_path)))
    assert set(first.namelist()) == set(second.namelist())
    for name in first.namelist():
        if not name.endswith("/RECORD"):
            assert first.read(name) == second.read(name), name


def test_the_classifiers_are_of_pythons_that_are_allowed() -> None:
    told = re.findall(r"Python :: (3\.\d+)", settings()["metadata"]["classifiers"])
    lowest = settings()["options"]["python_requires"].removeprefix(">=")
    assert told[0] == lowest
    assert (
        f'target-version = "py{lowest.replace(".", "")}"' in (ROOT / "pyproject.toml").read_text()
    )


def test_the_dockerfile_copies_what_is_there_and_asks_for_what_it_has() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line.strip() and not line.startswith("#")]
    assert "Not built by us" in text
    assert {name for name, _ in steps} == {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "CMD"}
    assert steps[0] == ["FROM", f"python:{settings()['options']['python_requires'][2:]}-slim"]
    copied = {name for step, rest in steps if step == "COPY" for name in rest.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    needed = {"align", "pts", "recipes", "chat_templates", "setup.py", "setup.cfg", "README.md"}
    assert needed | {"pyproject.toml", "LICENSE", "constraints.txt"} == copied
    declared = {rest.partition("=")[0] for step, rest in steps if step == "ARG"}
    assert declared == set(re.findall(r"\$([A-Z_]+)", " ".join(r for s, r in steps if s == "RUN")))
    assert json.loads(steps[-1][1])[0] == "align"


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Path:
    """The wheel in an environment of its own."""
    return clean_install(wheel, tmp_path / "venv")


def clean_install(wheel: Path, folder: Path) -> Path:
    """The bin folder of an environment that holds the wheel, and dependencies by their path only:
    the .pth file of this checkout, which lies beside them, is not read there."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
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
def test_the_source_archive_installs_clean(sdist: Path, tmp_path: Path) -> None:
    programs = clean_install(built(sdist, tmp_path), tmp_path / "venv")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for words, said in (
        (["align", "check", "phi-nano"], "phi-nano: ok"),
        (["pts", "--help"], "decide whether a model's answer succeeds"),
    ):
        done = subprocess.run(
            [str(programs / words[0]), *words[1:]], cwd=tmp_path, env=env, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert said in done.stdout


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
