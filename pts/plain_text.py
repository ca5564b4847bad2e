"""YAML and JSON as people write them, without what a parser would pass over in silence.

A key that stands twice is refused (the last one would win), and so is YAML whose aliases expand
without end.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from pts.errors import ConfigError

MOST_VALUES = 100_000
"""Values of a YAML text with its aliases written out."""


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses keys that stand twice and aliases that expand without end."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _values(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {MOST_VALUES:,} values")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({key for key in keys if keys.count(key) > 1 and key != "<<"})
        if twice:
            names = ", ".join(map(repr, twice))
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {names} stands twice")
        return dict(super().construct_mapping(node, deep))


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, aliases counted as often as they are used."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # what holds itself
        inside = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for item in inside for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]


def read_text(path: Path) -> str:
    """The text of a file. Raises ValueError for what is not UTF-8, OSError as reading does."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"byte {byte:#04x} is not UTF-8; save the file as UTF-8") from None


def read_yaml(text: str) -> Any:
    """The value of a YAML text. Raises ValueError for what is none."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, ValueError) as error:
        # PyYAML lets through what goes wrong in building a date or a number.
        raise ValueError(" ".join(str(error).split())) from None


def read_keys(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file; an empty one has none.

    Raises:
        ConfigError: there is no such file, or it holds something else; the place in it is named.
    """
    try:
        values = read_yaml(read_text(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: it is a folder; name a .yaml file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if values is not None and not isinstance(values, dict):
        found = type(values).__name__
        raise ConfigError(f"{path}: must hold keys and values, as in seed: 0; got a {found}")
    return {str(key): value for key, value in (values or {}).items()}


def read_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for what is none."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"the key {', '.join(map(repr, twice))} stands twice")
    return found
