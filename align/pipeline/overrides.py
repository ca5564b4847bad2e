"""Overrides of a recipe: `key.path=value` from the command line, laid over nested data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from align.errors import RecipeError
from pts.config import Settings, parse_settings
from pts.plain_text import read_keys, read_yaml


@dataclass(frozen=True, slots=True)
class Override:
    """An override, `key.path=value`."""

    keys: list[str]
    value: Any
    text: str

    def apply(self, data: dict[str, Any]) -> None:
        """Set the value in nested data."""
        *parents, last = self.keys
        for part in parents:
            nested = data.setdefault(part, {})
            if not isinstance(nested, dict):
                raise RecipeError(f"override {self.text!r}: {part!r} holds a value, not keys")
            data = nested
        data[last] = self.value


def parse_override(item: str) -> Override:
    """Read `key.path=value`; the value is YAML.

    Raises:
        RecipeError: it reads otherwise, or its value is no YAML.
    """
    key, equals, value = item.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {item!r}: must read key.path=value, e.g. seed=1")
    keys = key.split(".")
    try:
        return Override(keys, read_yaml(value), item)
    except ValueError as error:
        twice = "stands twice" in str(error)
        remedy = f"{error}" if twice else f"text is quoted: {keys[-1]}=\"'...'\""
        raise RecipeError(f"override {item!r}: {value!r} is not a YAML value; {remedy}") from None


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, those of the second over those of the first."""
    result = dict(first)
    for key, value in second.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


S = TypeVar("S", bound=Settings)


def read_settings(kind: type[S], file: Path | None, items: Iterable[str]) -> S:
    """Settings of a command: those of a .yaml file, if there is one, with `key=value` over them.

    Raises:
        RecipeError, ConfigError: the file or a setting is wrong, every fault of these at once.
    """
    data = read_keys(file) if file else {}
    for item in items:
        parse_override(item).apply(data)
    return parse_settings(kind, data, str(file or "--set"))
