"""Settings of a sweep file, and settings of stages with drawn values put in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from align.errors import RecipeError
from pts.config import Settings, parse_settings
from pts.errors import ConfigError, did_you_mean

MOST_SEEDS = 10_000
"""Of one part of `--seeds`."""

Pair = tuple[str, str]


class Range(Settings):
    """A range to draw from, uniform in the logarithm."""

    low: float = Field(gt=0)
    """Its lower end."""
    high: float = Field(gt=0)
    """Its upper end."""

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low must lie below high, got {self.low:g} and {self.high:g}")
        return self


Choices = tuple[bool | int | float | str | None, ...]


class SweepFile(Settings):
    """What is run for every seed, and what is compared.

    A key `extends` names another sweep file, by its path from this one: keys of this file replace
    those of the other, `overrides` are appended to its.
    """

    recipe: str
    """A recipe's name or .yaml file."""
    overrides: tuple[str, ...] = ()
    """`key.path=value`, as on the command line."""
    stages: tuple[Any, ...] = ()
    """Stages of all arms, in place of the recipe's; empty: the recipe's own."""
    arms: dict[str, str] = Field(min_length=1)
    """Names of the arms, each with the stage whose policy is measured for it (or `base`)."""
    primary: tuple[Pair, ...] = ()
    """Pairs of arms whose differences, the second minus the first, are the questions of the sweep;
    their p values are adjusted for their number (Holm)."""
    contrasts: tuple[Pair, ...] = ()
    """Further pairs of arms; described, not tested."""
    also: dict[str, tuple[str, ...]] = {}
    """Further sets of problems that every arm is measured on, by name: overrides of `task.*`,
    `evaluate.*` and `sampling.*` for each. Described beside the table."""
    measure: Literal["greedy", "sampled"] = "sampled"
    """Accuracy by which random search chooses, and which the picture shows."""
    margin: float = Field(0.0, ge=0, lt=100)
    """Points: arms that differ by less count as equivalent; 0 asks nothing of the kind."""
    tune: dict[str, dict[str, Range | Choices]] = {}
    """Ranges of settings, by stage, for `--sample`."""


def parse_seeds(text: str) -> list[int]:
    """Seeds of a text such as `0-11` or `3,5,7-9`, each once.

    Raises:
        RecipeError: it is none.
    """
    seeds: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = [first, last if dash else first]
        if not all(end.isdecimal() and len(end) < 10 for end in ends) or int(first) > int(ends[1]):
            raise RecipeError(f"--seeds: got {text!r}; give numbers and ranges, e.g. 0-11 or 3,5,7")
        if int(ends[1]) - int(first) >= MOST_SEEDS:
            raise RecipeError(f"--seeds: got {text!r}; give {MOST_SEEDS:,} seeds at most")
        seeds |= dict.fromkeys(range(int(first), int(ends[1]) + 1))
    return [*seeds]


def with_settings(settings: Settings, changes: Mapping[str, Any], place: str) -> Settings:
    """Settings with some changed, checked again; a key may be a path (`search.p_gap`).

    Raises:
        ConfigError: a key is unknown, or a value is out of range.
    """
    data = settings.model_dump()
    for key, value in changes.items():
        *parents, last = key.split(".")
        inner = data
        for part in parents:
            inner = inner.get(part) if isinstance(inner, dict) else None  # type: ignore[assignment]
        if not isinstance(inner, dict) or last not in inner:
            raise ConfigError(f"{place}.{key}: no such setting{did_you_mean(key, data)}")
        inner[last] = value
    return parse_settings(type(settings), data, "", place)
