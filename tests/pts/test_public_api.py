"""The flat namespace `pts`: what is in it, and what importing it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pts


def python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_the_public_names() -> None:
    assert pts.__all__ == sorted(pts.__all__)
    stub = ast.parse(Path(pts.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    listed = [a for node in stub.body if isinstance(node, ast.ImportFrom) for a in node.names]
    assert sorted(alias.name for alias in listed) == pts.__all__, "each stands there once"
    assert all(alias.asname == alias.name for alias in listed), "so that type checkers export it"
    assert set(pts.__all__) <= set(dir(pts))


@pytest.mark.parametrize("name", pts.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    value = getattr(pts, name)
    assert value.__doc__ or name == "Search", "an alias has its docstring in pts.types"


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'serch'"):
        _ = pts.serch  # type: ignore[attr-defined]


def test_importing_is_cheap() -> None:
    heavy = "{'torch', 'transformers', 'trl', 'datasets', 'numpy', 'scipy', 'pydantic'}"
    assert python(f"import sys, pts; print({heavy} & set(sys.modules))") == "set()"


def test_searching_needs_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'trl', 'datasets'}"
    names = "pts.search, pts.SearchConfig, pts.write_report, pts.load_problems, pts.TabularEngine"
    assert python(f"import sys, pts; {names}; print({heavy} & set(sys.modules))") == "set()"


def test_search_stays_the_function() -> None:
    code = (
        "import pts, pts.runtime.search, pts.runtime.scheduler, pts.cli.main;"
        "print(callable(pts.search))"
    )
    assert python(code) == "True"
