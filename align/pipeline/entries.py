"""The list `stages` of a recipe, read before the settings in it are."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from align.context import BASE
from pts.errors import did_you_mean

ENTRY_KEYS = {"kind": "kind", "name": "name", "from": "start", "share": "share"}
"""Keys of an entry that are not settings of its stage."""


def read_entries(
    listed: Any, kinds: Collection[str], taken: Collection[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The fields of each `StageEntry`, its settings still plain data, and what is wrong with them.

    `kinds` are the stages that there are; names in `taken` mean something else in a recipe.
    """
    if not isinstance(listed, list | tuple):
        return [], [f"stages: a list of stages is needed, got {listed!r}"]
    found: list[dict[str, Any]] = []
    faults: list[str] = []
    for number, item in enumerate(listed):
        told = dict(item) if isinstance(item, dict) else {"kind": item}
        kind = told.get("kind")
        if not isinstance(kind, str) or kind not in kinds:
            hint = did_you_mean(str(kind), kinds) or f"; known: {', '.join(kinds)}"
            faults.append(f"stages.{number}: no kind of stage {kind!r}{hint}")
            continue
        entry = {field: told.pop(key, None) or "" for key, field in ENTRY_KEYS.items()}
        entry["name"] = entry["name"] or kind
        texts = {key: entry[field] for key, field in ENTRY_KEYS.items()}
        wrong = [
            key
            for key, text in texts.items()
            if not isinstance(text, str) or not re.fullmatch(r"[\w-]*", text)
        ]
        faults += [
            f"stages.{number}.{key}: got {texts[key]!r}; letters, digits, _ and - are names"
            for key in wrong
        ]
        if entry["name"] in (BASE, *taken):
            faults.append(
                f"stages.{number}.name: {entry['name']!r} names something else; take another"
            )
        found.append({**entry, "settings": told})
    names = [entry["name"] for entry in found]
    if len(set(names)) != len(names):
        faults.append(f"stages: each name may stand once, got {names}; name one of a kind's stages")
    return found, faults
