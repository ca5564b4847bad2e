"""The docs are code: commands parse, recipes load, links resolve, the reference is up to date."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from align.benchmarks.settings import Benchmark
from align.pipeline.recipe import parse_recipe
from align.sweep.file import load_sweep
from align.sweep.plan import plan
from align.synthesis.settings import SynthesisConfig
from pts.config import parse_settings
from pts.runtime.shards import Shard
from tests.pts.verifiers.code_isolation import available

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CHANGELOG.md"]
PAGES += [*sorted((ROOT / "recipes").rglob("README.md")), ROOT / "chat_templates" / "README.md"]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands() -> list[str]:
    found = []
    for page in PAGES:
        for block in blocks(page, "(?:bash|sh|console)"):
            found += [
                line.strip().removeprefix("$ ")
                for line in block.replace("\\\n", " ").splitlines()
                if line.strip() and not line.startswith("#")
            ]
    return found


FOREIGN = {
    "llama-server": r"-m local/phi-nano-full_dpo-f32\.gguf --port \d+",
    "vllm": r"serve exported --served-model-name [\w-]+ --port \d+",
    "ray": r"start (--head|--address=\w+:\d+)",
    "ollama": r"create [\w-]+ -f local/Modelfile",
}
"""Commands of other programs that pages show: their form, on files that `align export` writes, and
on machines."""


def parse(program: str, words: list[str]) -> None:
    """Let the real command line parse the words without running the command."""
    if program == "align":
        from align.cli import app
    else:
        from pts.cli.main import app
    group = typer.main.get_command(app)
    context = group.make_context(program, list(words), resilient_parsing=False)
    words = [*context._protected_args, *context.args]  # behind the options of the program itself
    name, command, rest = group.resolve_command(context, words)  # type: ignore[attr-defined]
    command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("command", commands())
def test_command_of_the_docs_parses(command: str) -> None:
    words = shlex.split(command.removesuffix(" &"), comments=True)
    while words and ("=" in words[0] or words[0] == "srun"):
        words = words[1:]
    program = Path((words or [""])[0]).name
    if program == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {w for w in words[1:] if "=" not in w} <= targets, command
    elif program in {"align", "pts"}:
        parse(program, words[1:])
    elif program.startswith("python"):
        script = next(w for w in words[1:] if w.endswith(".py"))
        assert (ROOT / script).is_file(), command
    elif program in FOREIGN:
        assert re.fullmatch(FOREIGN[program], " ".join(words[1:])), command
    else:
        shell = {"git", "cd", "pip", "for", "done", "wait", "sbatch", ""}
        assert program in shell, f"untested command: {command}"


def test_shards_of_the_docs_are_shards() -> None:
    numbers = {"$SLURM_ARRAY_TASK_ID": "7", "$shard": "4"}
    found = [command for command in commands() if " --shard " in command]
    shards = set[str]()
    for command in found:
        for name, number in numbers.items():
            command = command.replace(name, number)
        words = shlex.split(command)
        shard = Shard.parse(words[words.index("--shard") + 1])
        assert words[words.index("--output") + 1] == f"runs/shard-{shard.index}"
        shards.add(str(shard))
    assert shards == {"7/16", "4/4"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.fixture
def registries() -> Iterator[None]:
    """The registries as they were, after a test that added to them."""
    from align.stages import STAGES
    from align.training.losses import LOSSES
    from pts.algorithm.criteria import CRITERIA
    from pts.engines.registry import ENGINES
    from pts.verifiers.registry import VERIFIERS

    kept: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (registry, dict(registry)) for registry in (STAGES, LOSSES, CRITERIA, ENGINES, VERIFIERS)
    ]
    yield
    for registry, before in kept:
        registry.clear()
        registry.update(before)


@pytest.mark.parametrize(
    ("page", "text"), [(p, block) for p in PAGES for block in blocks(p, "yaml")]
)
@pytest.mark.usefixtures("registries")
def test_recipe_of_the_docs_loads(
    page: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = yaml.safe_load(text)
    for module in data.get("imports", ()):  # its code is the page's first example
        (tmp_path / f"{module}.py").write_text(blocks(page, "python")[0])
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(sys.modules, module, None)
        del sys.modules[module]
    if "arms" in data:
        (tmp_path / "sweep.yaml").write_text(text)
        plan(load_sweep(tmp_path / "sweep.yaml"), 2)
        return
    if "step" in data:
        parse_settings(SynthesisConfig, data, page.name)
        return
    if "score" in data:
        parse_settings(Benchmark, {"name": "x", **data}, page.name)
        return
    minimal = {"name": "x", "model": {"path": "x"}, "task": {"kind": "word_problems"}}
    parse_recipe({**minimal, **data}, page.name)


def test_reference_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("build", ROOT / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    assert build.TARGET.read_text(encoding="utf-8") == build.reference(), "run docs/build.py"


@pytest.mark.parametrize(
    "text", [block for p in PAGES for block in blocks(p, "python") if "import pts" in block]
)
def test_python_of_the_docs_compiles(text: str) -> None:
    compile(text, "docs", "exec")


def test_the_rollouts_of_the_docs_are_read(tmp_path: Path) -> None:
    page = ROOT / "docs" / "running-a-search.md"
    [text] = [block for block in blocks(page, "python") if "read_rollouts" in block]
    exec(text, {"folder": tmp_path})


def test_python_of_the_verifier_page_runs() -> None:
    available()
    space: dict[str, object] = {"__name__": "docs"}
    for text in blocks(ROOT / "docs" / "writing-a-verifier.md", "python"):
        exec(compile(text, "writing-a-verifier.md", "exec"), space)


@pytest.mark.parametrize(
    "page", ["benchmarks.md", "compare.md", "decontamination.md", "judges.md", "safety.md"]
)
def test_python_of_the_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [text] = blocks(ROOT / "docs" / page, "python")
    exec(compile(text, page, "exec"), {"__name__": "docs"})


def test_the_engine_of_the_docs_conforms() -> None:
    """Its code, its line in the registry and the check, run one after the other."""
    page = ROOT / "docs" / "writing-an-engine.md"
    engine, line, check = [block for block in blocks(page, "python") if "BigramEngine" in block]
    names: dict[str, Any] = {}
    exec(engine, names)
    exec(line, names)
    names["ENGINES"].pop("bigram")
    exec(check, names)


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(
    "text", blocks(ROOT / "docs" / "adding-your-own.md", "python"), ids=lambda t: t[-60:-1]
)
def test_an_example_of_your_own_runs(text: str) -> None:
    exec(compile(text, "adding-your-own.md", "exec"), {"__name__": "docs"})
