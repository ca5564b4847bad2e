"""The recipe: one YAML file for the whole chain, checked in full before anything is loaded.

    recipe = load_recipe("phi-nano", ["seed=1", "pts.num_problems=64"])

`stages` lists the chain. An entry is the name of a kind, or a mapping with `kind` and, if wanted,
`name`, `from` (the stage it starts from), `share` (the stage whose problems it draws too) and the
stage's own settings; `engine` (where its rollouts come from, if not from the recipe's engine) may
stand among these. A kind may stand several times under several names:

    stages:
      - sft
      - {kind: rejection_sft, name: best_of_n, num_problems: 400}
      - pts
      - {kind: token_dpo, beta: 0.5}
      - {kind: full_dpo, name: without_tokens, from: best_of_n}
    pts: {num_problems: 128}

A section with the name of a stage holds its settings too. Overrides read `NAME.key=value`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from pydantic import Field

from align.context import BASE, StageEntry
from align.engines.settings import EngineConfig, InProcessEngine
from align.errors import RecipeError
from align.evaluation.settings import EvaluateConfig
from align.pipeline.entries import ENTRY_KEYS, read_entries
from align.pipeline.overrides import merged, parse_override
from align.settings import LaunchConfig, ModelConfig, TaskConfig, data_folder
from align.stages import STAGES
from align.yaml_files import read_file
from pts.config import SamplingConfig, Settings, parse_settings
from pts.errors import ConfigError, did_you_mean
from pts.plugins import import_modules

T = TypeVar("T")

DEFAULT_STAGES = ("sft", "pts", "token_dpo", "full_dpo")


class Recipe(Settings):
    """A whole post-train."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Names the run's folder."""
    description: str = ""
    """Hardware, time and numbers to expect."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of data order, sampling and training."""
    imports: tuple[str, ...] = ()
    """Python modules of your own that register verifiers, engines, stages or the like; installed
    ones, or files of the folder in which `align` is started (`imports: [mine]` for mine.py)."""
    model: ModelConfig
    """The base model."""
    task: TaskConfig
    """Problems, demonstrations and verifier."""
    sampling: SamplingConfig = SamplingConfig()
    """The one sampling policy: of the search, of the full-length pairs, of the evaluation."""
    engine: EngineConfig = InProcessEngine()
    """Where rollouts come from; a name alone (`engine: vllm`) will do where no more is to be said.
    A stage that samples, and `evaluate`, may have an `engine` of its own."""
    launch: LaunchConfig = LaunchConfig()
    """Processes that train. What a run makes does not depend on them, but for rounding."""
    track: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Trackers that follow training besides metrics.jsonl, e.g. [tensorboard, wandb]; their files
    stand in the run's folder `tracking`. wandb stays offline unless WANDB_MODE says otherwise."""
    stages: tuple[StageEntry, ...] = ()
    """Stages to run, in order; `sft, pts, token_dpo, full_dpo` unless said otherwise."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Evaluation after every stage."""
    unused: dict[str, Settings] = Field({}, exclude=True)
    """Sections of kinds that no stage runs."""

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """In another process, its modules come along."""
        super().__setstate__(state)
        import_modules(self.imports, "imports")

    def settings(self, name: str) -> Any:
        """The settings of the stage of that name, or those of a kind that no stage runs."""
        found = {entry.name: entry.settings for entry in self.stages}
        if name in found:
            return found[name]
        return self.unused[name] if name in self.unused else STAGES[name].config()

    def start_of(self, entry: StageEntry) -> str:
        """Name of the policy that a stage starts from."""
        return entry.start or self._before(entry, "policy") or BASE

    def pairs_of(self, entry: StageEntry) -> str:
        """Name of the stage whose pairs a stage trains on; empty if there is none before it."""
        told: Any = entry.settings
        # Continuations of a search's rollouts follow the prefixes of that search's own pairs.
        own = told.rollouts if getattr(told, "pairs_of", "") == "continuations" else ""
        named: str = getattr(told, "pairs", "") or own
        return named or self._before(entry, "pairs")

    def rollouts_of(self, entry: StageEntry) -> str:
        """Name of the stage whose rollouts a stage takes; empty if it takes none."""
        named: str = getattr(entry.settings, "rollouts", "")
        held = getattr(entry.settings, "kl_weight", 0.0) > 0
        return named or (self.pairs_of(entry) if held else "")

    def draws(self, entry: StageEntry) -> str:
        """What a stage takes from the task's train split."""
        given = self.rollouts_of(entry) or getattr(entry.settings, "only_sources", False)
        return "nothing" if given else STAGES[entry.kind].draws

    def engine_of(self, entry: StageEntry) -> EngineConfig:
        """Where a stage's rollouts come from."""
        return cast(EngineConfig, entry.engine) or self.engine

    def _before(self, entry: StageEntry, made: str) -> str:
        earlier = self.stages[: self.stages.index(entry)]
        return next((e.name for e in reversed(earlier) if STAGES[e.kind].makes == made), "")

    def labels(self) -> dict[str, str]:
        """Names of the stages in tables."""
        found = {BASE: BASE}
        for entry in self.stages:
            label = STAGES[entry.kind].label
            found[entry.name] = label if entry.name == entry.kind else f"{label} ({entry.name})"
        return found

    def plain(self) -> dict[str, Any]:
        """The recipe as YAML would hold it, every default written out."""
        data = self.model_dump(mode="json", exclude={"stages"})
        # Recipes of before there were other engines are known by what they hold without one.
        if self.engine == InProcessEngine():
            del data["engine"]
        if self.launch == LaunchConfig():
            del data["launch"]
        for key in ("track", "imports"):
            if not data[key]:
                del data[key]
        if self.evaluate.engine is None:
            del data["evaluate"]["engine"]
        stages = [
            {
                **{key: getattr(entry, field) for key, field in ENTRY_KEYS.items()},
                **({"engine": entry.engine.model_dump(mode="json")} if entry.engine else {}),
                **entry.settings.model_dump(mode="json"),
            }
            for entry in self.stages
        ]
        sections = {name: s.model_dump(mode="json") for name, s in self.unused.items()}
        return {**data, "stages": stages, **sections}


class _Engine(Settings):
    """The engine among the keys of a stage."""

    engine: EngineConfig


def recipe_path(name: str) -> Path:
    """The YAML file of a recipe given by path or by the name of one that ships.

    Raises:
        RecipeError: neither exists.
    """
    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        if path.is_file():
            return path
        raise RecipeError(f"{name}: no such file")
    folder = data_folder("recipes")
    shipped = folder / name / "recipe.yaml"
    if shipped.is_file():
        return shipped
    known = sorted(p.parent.relative_to(folder).as_posix() for p in folder.rglob("recipe.yaml"))
    hint = did_you_mean(name, known) or f"; known: {', '.join(known)}"
    raise RecipeError(f"{name}: no such recipe{hint}, or give the path of a .yaml file")


def load_recipe(
    name: str, overrides: Sequence[str] = (), replaced: Mapping[str, Any] | None = None
) -> Recipe:
    """Read a recipe and apply `key.path=value` overrides, after sections of it are `replaced`.

    Raises:
        RecipeError: every fault at once, each with its place, value and remedy.
    """
    path = recipe_path(name)
    data = read_file(path, "align run")
    return parse_recipe({**data, **(replaced or {})}, str(path), overrides)


def parse_recipe(data: Mapping[str, Any], place: str, overrides: Sequence[str] = ()) -> Recipe:
    """Build a recipe from plain data; `place` names its source in messages.

    Raises:
        RecipeError: every fault at once.
    """
    values: dict[str, Any] = _apart(data)
    changes = [parse_override(item) for item in overrides]
    for change in changes:
        if change.keys in (["stages"], ["imports"]):
            change.apply(values)
    faults: list[str] = []
    modules = values.get("imports")
    if isinstance(modules, list) and all(isinstance(name, str) for name in modules):
        _attempt(lambda: import_modules(modules, "imports"), faults)
    entries, wrong = read_entries(values.pop("stages", DEFAULT_STAGES), STAGES, Recipe.model_fields)
    faults += wrong
    names = dict.fromkeys([*(entry["name"] for entry in entries), *STAGES])
    sections = {name: values.pop(name) for name in names if name in values}
    overridden: dict[str, Any] = {}
    for change in changes:
        if change.keys != ["stages"]:
            change.apply(overridden if change.keys[0] in names else values)
    for key in [key for key in values if key not in Recipe.model_fields]:
        del values[key]
        faults.append(f"{key}: no such key{did_you_mean(str(key), [*Recipe.model_fields, *names])}")

    engines: dict[str, EngineConfig | None] = {}

    def settings(name: str, kind: str, inline: dict[str, Any]) -> Settings | None:
        section = sections.pop(name, None) or {}
        if not isinstance(section, dict):
            faults.append(f"{name}: must hold keys and values, got {section!r}")
            return None
        faults.extend(
            f"{name}.{key}: told in `stages` and in the section {name!r}; tell it once"
            for key in inline.keys() & section.keys()
        )
        over = overridden.pop(name, {})
        if not isinstance(over, dict):
            faults.append(f"{name}: must hold keys and values, got {over!r}")
            return None
        own = merged(merged(inline, section), over)
        if "engine" in own:
            told = {"engine": own.pop("engine")}
            found = _attempt(lambda: parse_settings(_Engine, told, "", path=name), faults)
            engines[name] = found.engine if found else None
        return _attempt(lambda: parse_settings(STAGES[kind].config, own, "", path=name), faults)

    for entry in entries:
        entry["settings"] = settings(entry["name"], entry["kind"], entry["settings"])
    unused = {kind: settings(kind, kind, {}) for kind in list(sections.keys() | overridden.keys())}
    whole = _attempt(lambda: parse_settings(Recipe, values, ""), faults)
    if whole is not None and not faults:
        stages = tuple(StageEntry(**e, engine=engines.get(e["name"])) for e in entries)
        whole = whole.model_copy(update={"stages": stages, "unused": unused})
        faults += _misfits(whole)
    if faults or whole is None:
        raise RecipeError(*(f"{place}: {fault}" for fault in faults))
    return whole


def measured_otherwise(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe without stages, its evaluation changed.

    Raises:
        RecipeError: an override is wrong.
    """
    data = recipe.model_copy(update={"stages": (), "unused": {}}).plain()
    data["evaluate"] |= {"skip": [], "temperatures": []}
    return parse_recipe(data, "overrides", overrides)


def _apart(data: Any) -> Any:
    """A copy in which nothing stands twice: what YAML's aliases share is changed by itself."""
    if isinstance(data, Mapping):
        return {key: _apart(value) for key, value in data.items()}
    return [_apart(value) for value in data] if isinstance(data, list) else data


def _attempt(build: Callable[[], T], faults: list[str]) -> T | None:
    try:
        return build()
    except ConfigError as error:
        faults += error.problems
        return None


def _misfits(recipe: Recipe) -> Iterator[str]:
    """What is wrong between stages that are right by themselves."""
    known: dict[str, str] = {BASE: "policy"}
    used: set[str] = set()
    for entry in recipe.stages:
        stage = STAGES[entry.kind]
        for key, name in (("from", entry.start), ("share", entry.share)):
            if name and name not in known:
                hint = did_you_mean(name, known)
                yield f"{entry.name}.{key}: no stage {name!r} before this one{hint}"
        if entry.start and known.get(entry.start, "policy") != "policy":
            yield f"{entry.name}.from: {entry.start!r} trains no policy to start from"
        matched = Counter(getattr(entry.settings, "match", ()))
        for name, times in matched.items():
            used.add(name)
            if times > 1:
                yield f"{entry.name}.match: {name!r} is named {times} times; name it once"
            yield from _match_misfits(recipe, entry, name, known)
        if stage.needs_pairs:
            source = recipe.pairs_of(entry)
            used.add(source)
            yield from _pairs_misfits(recipe, entry, source, known)
        if entry.engine and recipe.draws(entry) != "problems":
            yield f"{entry.name}.engine: this stage samples nothing; leave it out"
        if source := recipe.rollouts_of(entry):
            used.add(source)
            yield from _rollouts_misfits(recipe, entry, source, known)
        else:
            yield from _idle_keys(entry)
        known[entry.name] = stage.makes
    for name, makes in known.items():
        if makes == "pairs" and name not in used:
            yield f"stages: {name!r} makes pairs that no stage trains on; name a token_dpo after it"
    drawing = [entry.name for entry in recipe.stages if recipe.draws(entry) == "problems"]
    if recipe.sampling.temperature == 0 and drawing:
        yield (
            f"sampling.temperature: got 0, with which all completions of {', '.join(drawing)} are "
            "one; give more than 0"
        )
    for name in recipe.evaluate.skip:
        if name not in known and name not in STAGES:
            yield f"evaluate.skip: no stage {name!r}{did_you_mean(name, known)}"


def _idle_keys(entry: StageEntry) -> Iterator[str]:
    """Keys that say something of a search's rollouts, where the stage takes none."""
    for key, value in entry.settings.model_dump(include={"pairs_of", "max_per_question"}).items():
        if value not in ("answers", 0):
            yield (
                f"{entry.name}.{key}: got {value!r}, which is about the rollouts of a search; name "
                "it in rollouts, or leave the key out"
            )


def _match_misfits(
    recipe: Recipe, entry: StageEntry, name: str, known: Mapping[str, str]
) -> Iterator[str]:
    named = next((other for other in recipe.stages if other.name == name), None)
    if recipe.rollouts_of(entry):
        yield f"{entry.name}.match: its rollouts are there already; leave out match or rollouts"
    elif name == BASE:
        yield f"{entry.name}.match: {name!r} samples nothing; name a stage that does"
    elif named is None or name not in known:
        yield f"{entry.name}.match: no stage {name!r} before this one{did_you_mean(name, known)}"
    elif recipe.draws(named) != "problems":
        yield f"{entry.name}.match: {name!r} samples nothing; name a stage that does"
    elif getattr(entry.settings, "match_by", "") == "pairs" and known[name] != "pairs":
        yield f"{entry.name}.match: {name!r} makes no pairs; match its generated_tokens"


def _pairs_misfits(
    recipe: Recipe, entry: StageEntry, source: str, known: Mapping[str, str]
) -> Iterator[str]:
    if known.get(source) != "pairs":
        said = f"{entry.name}.pairs: {source!r} makes none" if source else f"stages: {entry.name!r}"
        yield f"{said}: needs pairs to train on; a pts stage must come before it"
        return
    measured = getattr(recipe.settings(source), "pairs_from", "search") != "coin"
    if not measured and getattr(entry.settings, "weight_by", "none") == "expected_gain":
        yield (
            f"{entry.name}.weight_by: got 'expected_gain', which {source}.pairs_from: coin does "
            "not measure; set it to 'none'"
        )


def _rollouts_misfits(
    recipe: Recipe, entry: StageEntry, source: str, known: Mapping[str, str]
) -> Iterator[str]:
    """What is wrong with the rollouts that a stage takes as its data."""
    if source not in known:
        hint = did_you_mean(source, known)
        yield f"{entry.name}.rollouts: no stage {source!r} before this one{hint}"
        return
    searched = next((e for e in recipe.stages if e.name == source), None)
    search = getattr(searched.settings, "search", None) if searched else None
    if searched is None or search is None:
        yield f"{entry.name}.rollouts: {source!r} is no search; name a pts stage"
        return
    if getattr(searched.settings, "pairs_from", "search") != "search":
        yield (
            f"{entry.name}.rollouts: {source}.pairs_from is a control arm, which keeps no "
            "rollouts; name a pts stage with pairs_from: search"
        )
    needed = getattr(entry.settings, "kept", STAGES[entry.kind].rollouts)
    if search.keep not in (needed, "all"):
        yield (
            f"{source}.search.keep: got {search.keep!r}, but {entry.name} trains on its rollouts; "
            f"set it to {needed!r}"
        )
    told: Any = entry.settings
    own = getattr(told, "strict", False) and told.reference == "start"
    if own and recipe.start_of(entry) != recipe.start_of(searched):
        yield (
            f"{entry.name}.rollouts: {source!r} sampled {recipe.start_of(searched)}, and the "
            f"reference is {recipe.start_of(entry)}; add from: {recipe.start_of(searched)}, or "
            "strict: false"
        )
