"""The rows of a stage's sources: read, encoded and counted before the stage loads a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.context import SourceRows, StageEntry, seed_of
from align.errors import RecipeError, StageError
from align.mixture.encode import Encoder
from align.mixture.sources import Mixture, open_mixture
from align.mixture.store import stored_rows
from align.models.load import base_path, load_tokenizer
from align.settings import MixtureConfig

if TYPE_CHECKING:
    from align.pipeline.recipe import Recipe

CHECKED = 64
"""Rows of a source that a check renders: a template refuses all rows of a form, or none."""


def source_rows(
    recipe: Recipe, entry: StageEntry, policy: Path, folder: Path, digests: Mapping[str, str]
) -> SourceRows | None:
    """The rows that a stage trains on, in a file of its folder; None if it names no sources.

    Args:
        recipe: the whole recipe.
        entry: the stage.
        policy: folder of the model that it starts from.
        folder: where the file may lie; it is left until the stage is finished.
        digests: of all that the stage reads.

    Raises:
        RecipeError, StageError: every fault of the sources, or more is lost than the recipe allows.
    """
    if not has_sources(entry):
        return None
    decided = {
        "settings": entry.settings.model_dump(mode="json"),
        "seed": _seed(recipe, entry),
        "template": recipe.model.chat_template,
        **digests,
    }
    key = hashlib.sha256(json.dumps(decided).encode()).hexdigest()
    return stored_rows(folder, key, entry.name, lambda: encoder(recipe, entry, policy))


def has_sources(entry: StageEntry) -> bool:
    """Whether a stage takes rows of sources."""
    return isinstance(entry.settings, MixtureConfig) and bool(entry.settings.sources)


def mixture_of(recipe: Recipe, entry: StageEntry) -> Mixture:
    """The sources of a stage; every row is read once.

    Raises:
        RecipeError: all faults of all sources.
    """
    config = entry.settings
    assert isinstance(config, MixtureConfig)
    return open_mixture(config, entry.name, config.row_kind, _seed(recipe, entry))


def encoder(recipe: Recipe, entry: StageEntry, policy: Path) -> Encoder:
    """What encodes the rows of a stage that starts from a policy.

    Raises:
        RecipeError, StageError: a fault of the sources, or of the tokenizer.
    """
    config: Any = entry.settings
    mixture = mixture_of(recipe, entry)
    return Encoder(mixture, chat_tokenizer(recipe, config, policy), config.max_length)


def chat_tokenizer(
    recipe: Recipe, config: MixtureConfig, policy: Path, taught: bool = False
) -> Any:
    """The tokenizer as the stage will have it. SFT teaches it the template's tokens; DPO finds them
    there, also in a tokenizer that a stage before it will have `taught`.

    Raises:
        StageError: it cannot write chats.
    """
    from align.training.chat_rows import prepare_tokenizer, template_faults, tokenizer_faults

    tokenizer = load_tokenizer(policy, recipe.model)
    if config.row_kind == "chats" or taught:
        prepare_tokenizer(tokenizer)
    faults = (tokenizer_faults if config.row_kind == "chats" else template_faults)(tokenizer)
    if faults:
        raise StageError("\n".join(faults))
    return tokenizer


def source_faults(recipe: Recipe) -> list[str]:
    """What is wrong with the sources of all stages; needs no weights.

    All rows are read. The first of each source are rendered too, where the tokenizer is at hand.
    """
    faults: list[str] = []
    for entry in filter(has_sources, recipe.stages):
        try:
            mixture = mixture_of(recipe, entry)
        except RecipeError as error:
            faults += error.problems
            continue
        try:
            base = Path(base_path(recipe.model))
            if (base / "tokenizer_config.json").is_file():
                tokenizer = load_tokenizer(base, recipe.model)
                faults += Encoder(mixture, tokenizer, 1).first_faults(CHECKED)[:CHECKED]
        except RecipeError:
            continue  # the model's own faults are told elsewhere
        except StageError as error:
            faults += str(error).splitlines()
    return faults


def _seed(recipe: Recipe, entry: StageEntry) -> int:
    return seed_of(recipe.seed, entry.share or entry.name, "rows")
