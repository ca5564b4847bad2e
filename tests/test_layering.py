"""Imports point one way: a module imports only what stands to its right in its package's order."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PTS = [
    {"cli"},
    {"planning", "report"},
    {"runtime", "testing"},
    {"engines", "verifiers", "algorithm", "data"},
    {"config", "stats", "files", "plain_text", "packing", "plugins"},
    {"types"},
    {"errors"},
]
ALIGN = [
    {"cli"},
    {"commands"},
    {"sweep", "compare", "benchmarks", "refusals", "synthesis", "defects", "planning", "runs"},
    {"pipeline"},
    {"stages", "report", "chat", "pretraining", "export"},
    {"training", "evaluation", "judging"},
    {"run_folder", "tasks", "models", "mixture"},
    {"decontamination"},
    {"context", "data", "settings", "ledger", "controls", "circumstances"},
    {"engines", "yaml_files"},
    {"errors"},
]
"""Rooms (folders, and modules beside them) from the top to the bottom. A room imports only what
stands below it; those of one floor do not know each other."""


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def imports(path: Path) -> set[str]:
    """Modules that a file needs, lazily imported ones included; not those of its type hints."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hints = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in hints:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def graph(package: str) -> dict[str, set[str]]:
    """Modules of a package and those of the same package that they import."""
    paths = {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in modules(package)}
    named = {name.replace("/", ".").removesuffix(".__init__"): p for name, p in paths.items()}
    own = set(named) - {package}
    return {name: imports(path) & own - {name} for name, path in named.items() if name in own}


@pytest.mark.parametrize(("package", "longest"), [("pts", 11), ("align", 10)])
def test_modules_form_no_circle_and_no_tower(package: str, longest: int) -> None:
    depth: dict[str, int] = {}
    edges = graph(package)
    for name in TopologicalSorter(edges).static_order():  # raises CycleError for a circle
        depth[name] = 1 + max((depth[other] for other in edges[name]), default=0)
    assert max(depth.values()) <= longest, max(depth, key=depth.__getitem__)


def place(order: list[set[str]], name: str) -> int | None:
    return next((i for i, names in enumerate(order) if name in names), None)


def own_room(path: Path, package: str) -> str:
    return path.relative_to(ROOT / package).parts[0].removesuffix(".py")


@pytest.mark.parametrize(("package", "order"), [("pts", PTS), ("align", ALIGN)])
def test_imports_point_one_way(package: str, order: list[set[str]]) -> None:
    wrong = []
    for path in modules(package):
        here = place(order, own_room(path, package))
        for name in imports(path):
            if not name.startswith(f"{package}.") or here is None:
                continue
            there = place(order, room(name))
            same = there == here and room(name) != own_room(path, package)
            if there is not None and (there < here or same):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_every_room_has_a_place() -> None:
    for package, order in (("pts", PTS), ("align", ALIGN)):
        for path in modules(package):
            name = own_room(path, package)
            assert name in ("__init__", "__main__") or place(order, name) is not None, path


def test_pts_knows_nothing_of_align() -> None:
    for path in modules("pts"):
        assert not {n for n in imports(path) if n.split(".")[0] == "align"}, path


def test_only_training_touches_trl_and_peft() -> None:
    allowed = {
        "align/training/loop.py",
        "align/training/quantized.py",
        "align/training/sharding.py",
        "align/training/trl.py",
        "align/training/token_dpo.py",
        "pts/engines/transformers/loading.py",
    }
    for path in modules("align") + modules("pts"):
        touched = {n.split(".")[0] for n in imports(path)} & {"trl", "peft", "accelerate"}
        where = path.relative_to(ROOT).as_posix()
        assert not touched or where in allowed, (where, touched)


@pytest.mark.parametrize(
    "module", ["pts", "align", "align.cli", "pts.cli.main", "align.pipeline.recipe"]
)
def test_import_is_light(module: str) -> None:
    code = (
        f"import sys, {module}; heavy = {{'torch', 'transformers', 'trl', 'datasets', 'pandas'}};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
