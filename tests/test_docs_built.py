"""What is generated in docs/ is up to date, every page is reachable, and every example holds."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pts
import pts.testing
from tests.test_docs import PAGES, ROOT, blocks

DOCS = ROOT / "docs"
SEARCHING = {"build_pictures", "build_settings"}
"""They search; the rest reads."""
SCRIPTS = [
    pytest.param(name, marks=pytest.mark.slow if name in SEARCHING else ())
    for name in sorted(path.stem for path in DOCS.glob("build*.py"))
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_generated_files_are_up_to_date(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    for path, text in importlib.import_module(script).files().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run python docs/build.py"


def test_every_page_is_reachable_from_the_readme() -> None:
    seen: set[Path] = set()
    waiting = [(ROOT / "README.md").resolve()]
    while waiting:
        page = waiting.pop()
        if page not in seen and page.suffix == ".md":
            seen.add(page)
            links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
            waiting += [(page.parent / link).resolve() for link in links]
    assert {page.resolve() for page in DOCS.rglob("*.md")} <= seen


def test_every_picture_is_shown() -> None:
    shown = " ".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    for picture in (DOCS / "pictures").iterdir():
        assert f"](pictures/{picture.name})" in shown, picture


def test_python_of_the_estimator_page_runs() -> None:
    found = blocks(DOCS / "estimator.md", "python")
    assert found
    for text in found:
        exec(compile(text, "estimator.md", "exec"), {"__name__": "docs"})


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The API reference, by the command of `make docs`."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", "")
    (line,) = (line for line in makefile.splitlines() if "$(BIN)/pdoc" in line)
    target = tmp_path_factory.mktemp("api")
    command = line.replace("$(BIN)/pdoc", f"{sys.executable} -m pdoc").replace("$$", "$")
    command = command.replace("build/docs", str(target))
    subprocess.run(["sh", "-c", command], cwd=ROOT, check=True)
    return target


def test_the_reference_holds_every_public_name(reference: Path) -> None:
    for page, module in (("pts.html", pts), ("pts/testing.html", pts.testing)):
        html = (reference / page).read_text(encoding="utf-8")
        for name in module.__all__:
            assert f'<section id="{name}">' in html, name
    shown = {path.relative_to(reference).as_posix() for path in reference.rglob("*.html")}
    assert shown == {"index.html", "pts.html", "pts/testing.html"}


def test_every_public_method_is_documented() -> None:
    """Or its protocol tells what it does."""
    for module in (pts, pts.testing):
        for kind in filter(inspect.isclass, (getattr(module, name) for name in module.__all__)):
            for name, found in vars(kind).items():
                member = getattr(found, "fget", None) or getattr(found, "__func__", found)
                if inspect.isfunction(member) and not name.startswith("_"):
                    assert member.__doc__ or hasattr(pts.Engine, name), f"{kind.__name__}.{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_json_of_the_docs_parses(page: Path) -> None:
    for text in blocks(page, "json"):
        for line in text.splitlines():
            json.loads(line)


def test_estimates_of_the_estimator_page() -> None:
    """The standard errors that it quotes, from the formulae above them."""
    q, after, d, n, q2, d2 = 0.6, 0.7, 0.2, 40, 0.5, 0.4
    before = q * after + (1 - q) * d
    plain = (after * (1 - after) + before * (1 - before)) / n
    own = (1 - q) ** 2 * ((1 - q2) ** 2 * d2 * (1 - d2) / n + d * (1 - d) / n)
    text = (DOCS / "estimator.md").read_text(encoding="utf-8")
    assert f"standard error of {plain**0.5:.3f} by two samples" in " ".join(text.split())
    assert f"of {own**0.5:.3f} by (4)" in " ".join(text.split())
