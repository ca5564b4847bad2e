"""Reads what `pts search` is given: settings from YAML and from key=value."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pts.algorithm.criteria import check_criteria
from pts.config import SamplingConfig, SearchConfig, Settings, parse_settings
from pts.errors import ConfigError, PTSError, did_you_mean
from pts.plain_text import read_keys, read_yaml

T = TypeVar("T")
_S = TypeVar("_S", bound=Settings)


class Faults(list[str]):
    """Gathers the faults of several inputs, a line each, so that all are told at once."""

    def attempt(self, action: Callable[[], T]) -> T | None:
        """The action's value; None, and its message kept, when it raises a PTSError."""
        try:
            return action()
        except PTSError as error:
            self.extend(str(error).splitlines())
            return None

    def raise_all(self) -> None:
        """Raise one ConfigError for everything that was found, if anything was."""
        if self:
            raise ConfigError(*self)


def load_settings(
    file: Path | None, overrides: Iterable[str]
) -> tuple[SearchConfig, SamplingConfig]:
    """Settings of the search and of the sampling from one flat list of keys.

    `file` is YAML with keys of either; `overrides` are key=value, value in YAML, and win. Raises
    ConfigError for every unknown key, wrong value and malformed override.
    """
    faults = Faults()
    values = faults.attempt(lambda: read_keys(file) if file else {}) or {}
    places = dict.fromkeys(values, str(file))
    for item in overrides:
        told = faults.attempt(lambda item=item: _override(item)) or {}  # type: ignore[misc]
        values.update(told)
        places |= dict.fromkeys(told, "settings")
    known = [*SearchConfig.model_fields, *SamplingConfig.model_fields]
    for key in values:
        if key not in known:
            faults.append(f"{places[key]}: no setting {key!r}{did_you_mean(key, known)}")
    search = faults.attempt(lambda: _build(SearchConfig, values, places))
    sampling = faults.attempt(lambda: _build(SamplingConfig, values, places))
    faults.raise_all()
    assert search is not None
    assert sampling is not None
    return search, sampling


def _override(item: str) -> dict[str, Any]:
    key, equals, text = item.partition("=")
    if not equals or not key:
        raise ConfigError(f"{item!r}: settings are given as key=value, e.g. p_gap=0.3")
    try:
        return {key: read_yaml(text)}
    except ValueError:
        raise ConfigError(f"{item!r}: the value is not YAML") from None


def _build(kind: type[_S], values: Mapping[str, Any], places: Mapping[str, str]) -> _S:
    """Settings of one kind; a fault is told with the place of the first given key it names."""
    own = {key: value for key, value in values.items() if key in kind.model_fields}
    try:
        found = parse_settings(kind, own, "")
        if isinstance(found, SearchConfig):
            check_criteria(found)
    except ConfigError as error:
        named = [re.findall(r"\w+", line) for line in error.problems]
        at = (next((places[word] for word in words if word in own), "settings") for words in named)
        lines = zip(at, error.problems, strict=True)
        raise ConfigError(*(f"{place}: {line}" for place, line in lines)) from None
    return found
