"""Reads a run folder back: its settings, results, pairs and token texts."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pts.config import SearchConfig
from pts.data.pairs import stream_pairs
from pts.data.rollouts import QuestionRollouts, read_rollouts
from pts.errors import DataError, JournalError
from pts.files import JsonLines
from pts.runtime.journal import read_header
from pts.runtime.results import Record, read_records
from pts.types import Ids, TokenPair

OF_A_SEARCH = ("policy_digest", "sampling", "config", "verifier", "seed")
"""What the header of a search's journal tells."""


class RunFolder:
    """A folder that `pts.search` has written, finished or not.

    Raises DataError if the folder holds no run, JournalError if its journal has no header.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        for name in ("journal.jsonl", "results.jsonl"):
            if not (self.path / name).is_file():
                raise DataError(
                    f"{self.path}: no {name}; give the folder that was the --output of a search"
                )
        self.format, self.fingerprint = read_header(self.path / "journal.jsonl")
        lacking = [key for key in OF_A_SEARCH if key not in self.fingerprint]
        if lacking:
            raise JournalError(
                f"{self.path}/journal.jsonl, line 1: the header tells no "
                f"{' and no '.join(lacking)}; restore the file"
            )

    @cached_property
    def config(self) -> SearchConfig:
        """The settings of the search."""
        try:
            return SearchConfig.model_validate(self.fingerprint["config"])
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(
                f"{self.path}: settings of another version ({where}: {first['msg']}); read this "
                "run with the version that made it"
            ) from None

    @property
    def records(self) -> JsonLines[Record]:
        """Results with their costs, read anew at each iteration."""
        return read_records(self.path / "results.jsonl")

    @property
    def each_pair(self) -> JsonLines[TokenPair] | tuple[TokenPair, ...]:
        """The selected pairs, read anew at each iteration; none while the run is not finished."""
        path = self.path / "pairs.jsonl"
        return stream_pairs(path) if path.is_file() else ()

    @property
    def rollouts(self) -> JsonLines[QuestionRollouts]:
        """The rollouts that are kept, read anew at each iteration. DataError if none are."""
        return read_rollouts(self.path)

    @cached_property
    def pairs(self) -> list[TokenPair]:
        """The selected pairs, all at once."""
        return list(self.each_pair)

    @cached_property
    def summary(self) -> dict[str, Any] | None:
        """Totals, None while the run is not finished."""
        return self._json("summary.json")

    @cached_property
    def stored_texts(self) -> dict[str, str]:
        """Texts of tokens by id, as they stand in token_texts.json."""
        texts = self._json("token_texts.json") or {}
        strange = [text for text in texts.values() if not isinstance(text, str)]
        if strange:
            raise DataError(
                f"{self.path}/token_texts.json: damaged ({str(strange[0])[:40]} is no text); "
                "delete it, and the search writes it again"
            )
        return texts

    @cached_property
    def _token_texts(self) -> dict[str, str]:
        return {token: _whole(text) for token, text in self.stored_texts.items()}

    def token_text(self, token: int) -> str:
        """Text of a token; ⟨id⟩ if the run was killed before the texts were written."""
        return self._token_texts.get(str(token), f"⟨{token}⟩")

    def text(self, ids: Ids) -> str:
        """Texts of tokens in a row. A character of several tokens may come out broken."""
        return "".join(map(self.token_text, ids))

    def _json(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        if not path.is_file():
            return None
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path}: damaged ({error}); delete it, and the search writes it again"
            ) from None


def has_token_texts(folder: Path) -> bool:
    """Whether the texts of a finished run's tokens are there and can be read."""
    with suppress(DataError):
        RunFolder(folder).stored_texts  # noqa: B018
        return (folder / "token_texts.json").is_file()
    return False


def _whole(text: str) -> str:
    """Text with halves of surrogate pairs replaced, which neither files nor browsers take."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
