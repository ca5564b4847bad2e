"""Settings of the sampling policy and of the search. Each field is told once, here."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Tag, ValidationError, model_validator

from pts.errors import ConfigError, did_you_mean
from pts.types import Keep


class Settings(BaseModel):
    """Base of all settings: immutable, unknown keys refused, docstrings under the fields."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        defer_build=True,  # of the settings that are imported most are never read
    )


S = TypeVar("S", bound=Settings)


def parse_settings(kind: type[S], data: Mapping[str, Any], place: str, path: str = "") -> S:
    """Build settings from plain data; report every fault at once, each with its path.

    Args:
        kind: the settings class.
        data: what a YAML file or a command line said.
        place: where it said so, for the messages ("recipes/x.yaml"); may be empty.
        path: the keys under which the settings stand there ("pts.search").

    Raises:
        ConfigError: one line a fault: place, path, value found and remedy.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        faults: list[dict[str, Any]] = [
            {**fault, "loc": tuple(part for part in fault["loc"] if not _names_a_type(part))}
            for fault in error.errors(include_url=False)
        ]
    # A list whose members are wrong is reported as too short as well: once is enough.
    around = {fault["loc"][:depth] for fault in faults for depth in range(len(fault["loc"]))}
    own: dict[tuple[Any, ...], list[Any]] = {}
    for fault in faults:
        if fault["loc"] not in around:
            own.setdefault(fault["loc"], []).append(fault)
    raise ConfigError(*(_explain(kind, same, place, path) for same in own.values()))


def _names_a_type(part: Any) -> bool:
    """Whether a part of a fault's path is a type that was tried ("tuple[str, ...]"), not a key."""
    types = r"(tuple|list|dict|literal|nullable|function-\w+)\[.*\]"
    return isinstance(part, str) and re.fullmatch(types, part) is not None


def _explain(kind: type[BaseModel], faults: Sequence[Any], place: str, path: str) -> str:
    """The line of a value that is wrong; of one that may have several types a fault for each."""
    fault = faults[0]
    keys = ".".join(filter(None, [path, *map(str, fault["loc"])]))
    where = "".join(f"{part}: " for part in (place, keys) if part)
    if fault["type"] == "extra_forbidden":
        given, kinds = str(fault["loc"][-1]), _kinds_at(kind, fault["loc"][:-1])
        known = {name for k in kinds for name in k.model_fields if name != given}
        below = next(
            (f"{name}.{given}" for name in sorted(known) if given in _below(kinds, name)), ""
        )
        hint = f"; did you mean {below!r}?" if below else did_you_mean(given, sorted(known))
        return f"{where}no such key{hint or '; known: ' + ', '.join(sorted(known))}"
    if fault["type"] == "missing":
        return f"{where}missing; this key must be given"
    if fault["type"] == "value_error":
        return f"{where}{fault['msg'].removeprefix('Value error, ')}"
    return f"{where}got {fault['input']!r}; {', or '.join(map(_wanted, faults))}"


def _wanted(fault: Any) -> str:
    """What should stand in the place of a value."""
    message, got, hint = fault["msg"], fault["input"], ""
    if fault["type"] == "literal_error":
        hint = did_you_mean(str(got), re.findall(r"'([^']*)'", fault["ctx"]["expected"]))
    if fault["type"] in ("tuple_type", "list_type") and isinstance(got, str | int | float):
        hint = f" (a list): write [{got}]"
    return f"{message[0].lower()}{message[1:]}{hint}"


def _below(kinds: Sequence[type[BaseModel]], name: str) -> set[str]:
    """Names of the settings that stand in the section `name` of these."""
    found = [k.model_fields[name].annotation for k in kinds if name in k.model_fields]
    return {key for a in found for model, _ in _models_of(a) for key in model.model_fields}


def _kinds_at(kind: type[BaseModel], path: tuple[Any, ...]) -> list[type[BaseModel]]:
    """The settings that stand at a path, through lists, optional and tagged unions.

    In a path the option of a union is named by its tag, as the kind of a task.
    """
    kinds: list[tuple[type[BaseModel], str]] = [(kind, "")]
    for part in path:
        found = [k.model_fields[part].annotation for k, _ in kinds if part in k.model_fields]
        inner = [model for annotation in found for model in _models_of(annotation)]
        tagged = [(k, tag) for k, tag in kinds if part in (tag, *_literals(k))]
        kinds = inner or tagged or kinds
    return [k for k, _ in kinds]


def _literals(kind: type[BaseModel]) -> Iterator[Any]:
    for field in kind.model_fields.values():
        if typing.get_origin(field.annotation) is Literal:
            yield from typing.get_args(field.annotation)


def _models_of(annotation: Any, tag: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    """The models that a value may be, each with its tag in a union that has tags."""
    if typing.get_origin(annotation) is typing.Annotated:
        tags = [told.tag for told in annotation.__metadata__ if isinstance(told, Tag)]
        yield from _models_of(annotation.__origin__, *tags[:1])
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple, list):
        for option in typing.get_args(annotation):
            yield from _models_of(option)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, tag


class SamplingConfig(Settings):
    """The policy π: one distribution for completions, probabilities, siblings and rollouts."""

    temperature: float = Field(1.0, ge=0, le=10)
    """Divides the logits; 0 means greedy decoding (all mass on the most likely token)."""
    top_k: int = Field(0, ge=0)
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Keep the smallest set of tokens that holds this much probability."""
    min_p: float = Field(0.0, ge=0, lt=1)
    """Drop tokens less likely than this fraction of the most likely one."""
    max_new_tokens: int = Field(512, ge=1, le=10**7)
    """Length limit of the whole completion; a completion cut by it counts as a failure."""


class SearchConfig(Settings):
    """How a question is filtered, searched and turned into confirmed pairs."""

    method: Literal["branch", "bisect"] = "branch"
    """`branch` spends rollouts on alternatives to the path's tokens; `bisect` is the published
    algorithm of the Phi-4 report (Abdin et al. 2024, section 4.3)."""
    unit: Literal["token", "step"] = "token"
    """What is asked for its effect on p(success). A `step` is a line or a sentence of the
    completion; pivotal steps are reported, and pairs are made of single tokens only."""
    criteria: tuple[str, ...] = ("path", "fork")
    """Names in `pts.algorithm.criteria`. `path`: the path's token moves p(success) by p_gap.
    `fork`: two likely siblings differ by p_gap, whichever of them the path took. At unit `step`
    there is `path` alone."""
    p_gap: float = Field(0.2, gt=0, lt=1)
    """Smallest change of p(success) that counts as pivotal (Phi-4's Figure 3 boxes 0.2)."""
    indifference_margin: float = Field(0.05, ge=0, lt=0.5)
    """Half-width of the indifference margin around p_gap: inside it no decision is
    bought."""
    p_min: float = Field(0.2, ge=0, le=1)
    """Questions solved less often than this are set aside as too hard."""
    p_max: float = Field(0.8, ge=0, le=1)
    """Questions solved more often than this are set aside as too easy."""
    filter_rollouts: int = Field(16, ge=2, le=10**6)
    """Rollouts that estimate p(success) of a question before it is searched. Where the first few
    (6 of 16) all pass or all fail it is set aside without the others."""
    paths: int = Field(1, ge=0, le=10**6)
    """Completions searched in each kept question: the first filter rollouts, whatever became
    of them (choosing passed ones would bias the search). 0 searches given completions alone."""
    bisect_rollouts: int = Field(64, ge=1, le=10**6)
    """`bisect`: rollouts that estimate p(success) of each prefix."""
    round_rollouts: int = Field(4, ge=1, le=10**6)
    """`branch`: rollouts given to each block that a round selects."""
    round_blocks: int = Field(4, ge=1, le=10**6)
    """`branch`: blocks that a round selects."""
    stop_below: float = Field(0.0, ge=0, lt=1)
    """`branch`: an undecided token less likely than this to be pivotal, as the search sees it, gets
    no more rollouts; the search ends when no other is left. 0 decides every token."""
    max_rollouts: int = Field(1200, ge=1, le=10**6)
    """`branch`: rollouts at most on one path, confirmation apart; most paths need far fewer. They
    go to likely pivots first, so a small number still finds most of them."""
    z: float = Field(2.24, gt=0, le=100)
    """Half-width of intervals in standard errors; `branch` also decides by them. As `branch` stops
    when it likes what it sees, its intervals cover less than their nominal level: those of all
    candidates 0.979 or more at 2.24 on the benchmark's shapes, and 0.957 or more at 1.96."""
    min_sibling_prob: float = Field(0.05, gt=0, lt=1)
    """Siblings less likely than this, or beyond the 1,024 likeliest, never enter a pair."""
    fork_rollouts: int = Field(8, ge=1, le=10**6)
    """`fork`: rollouts that screen each sibling before a pair is proposed."""
    confirm_rollouts: int = Field(128, ge=4, le=256)
    """Fresh rollouts on each side of a proposed pair at most, never seen by the search. The test
    stops as soon as a pair is settled: a fatal fork after 8 to 16."""
    fdr: float = Field(0.05, gt=0, lt=1)
    """Benjamini-Hochberg level over the run's pairs, `path` and `fork` apart."""
    max_pairs: int = Field(4, ge=1, le=10**6)
    """Pairs proposed (and confirmed) at most in one question, by estimated expected gain."""
    unscored_limit: float = Field(0.02, ge=0, lt=1)
    """A question with a larger share of UNSCORED rollouts is set aside."""
    keep: Keep = "all"
    """Rollouts whose token ids stay on file (rollouts.jsonl) for use as data: those that passed
    (`right`), `all` or `none`. A search pays for them and a disk hardly notices them, so all stay;
    no result depends on it."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, data: Any) -> Any:
        """At unit `step` the default of `criteria` is what can be had there."""
        steps = isinstance(data, Mapping) and data.get("unit") == "step"
        return {"criteria": ("path",), **data} if steps else data

    @model_validator(mode="after")
    def _ordered(self) -> SearchConfig:
        if self.p_min >= self.p_max:
            raise ValueError(f"p_min must lie below p_max, got {self.p_min} and {self.p_max}")
        if self.indifference_margin >= self.p_gap:
            raise ValueError(
                f"indifference_margin must be smaller than p_gap, got "
                f"{self.indifference_margin} and {self.p_gap}"
            )
        if not self.criteria:
            raise ValueError("criteria must name 'path', 'fork' or another criterion")
        if self.unit == "step" and "fork" in self.criteria:
            raise ValueError(
                "criteria cannot name 'fork' at unit 'step': a fork compares two likely next "
                "tokens, and a step has no list of likely alternatives; name 'path' alone"
            )
        return self
