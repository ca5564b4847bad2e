"""The engines that a conformance check runs through: one for each sampling configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from pts.config import SamplingConfig
from pts.engines.base import Engine
from pts.errors import PTSError
from pts.testing.report import FindingCollector, clipped

MakeEngine: TypeAlias = Callable[[SamplingConfig], Engine]

LabelledEngine: TypeAlias = tuple[str, Engine]
"""An engine under one sampling configuration, and the name and settings of that."""

ATTRIBUTES = ("sampling", "policy_digest", "reproducible", "stop_ids")
METHODS = ("encode", "decode", "token_texts", "score", "sample")

SETTINGS: Mapping[str, Mapping[str, float]] = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "top-k": {"temperature": 0.8, "top_k": 4},
    "top-p": {"temperature": 0.6, "top_p": 0.8},
    "min-p": {"temperature": 0.7, "min_p": 0.1},
    "together": {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
    "greedy": {"temperature": 0},
}
"""What `check_engine` tries unless told otherwise, apart from `max_new_tokens`."""


class EngineFactory:
    """Makes the engines to check, and a plain one to compare their rows with."""

    def __init__(self, notes: FindingCollector, max_new_tokens: int) -> None:
        self.notes, self.max_new_tokens = notes, max_new_tokens
        self.plain: Engine | None = None

    def all_tested(
        self, engine: Engine | MakeEngine, samplings: Mapping[str, SamplingConfig] | None
    ) -> list[LabelledEngine]:
        """Engines that have all the protocol's parts."""
        if not callable(engine):
            self.notes.skip(
                "other settings than the engine's own, and what truncation should do to the "
                "plain distribution: give a function from SamplingConfig to an engine"
            )
            whole = self._whole(engine)
            return [(_label("own settings", engine.sampling), engine)] if whole else []
        wanted = samplings or {
            name: SamplingConfig.model_validate({**changes, "max_new_tokens": self.max_new_tokens})
            for name, changes in SETTINGS.items()
        }
        made = [self._made(engine, name, sampling) for name, sampling in wanted.items()]
        tested = [labelled for labelled in made if labelled is not None]
        self.plain = self._plain(engine, tested)
        return tested

    def _made(self, make: MakeEngine, name: str, sampling: SamplingConfig) -> LabelledEngine | None:
        label = _label(name, sampling)
        try:
            engine = make(sampling)
        except PTSError as error:
            self.notes.skip(f"{label}: the engine refuses it ({error})")
            return None
        if not self._whole(engine):
            return None
        if engine.sampling != sampling:
            self.notes.add(
                "protocol", label, f"sampling = {sampling}", f"sampling = {engine.sampling}",
                "the engine keeps another configuration than the one it was made with",
            )  # fmt: skip
        return label, engine

    def _plain(self, make: MakeEngine, made: Sequence[LabelledEngine]) -> Engine | None:
        """An engine at temperature 1 without truncation, for what truncation should do."""
        known = next((engine for _, engine in made if not _told(engine.sampling)), None)
        if known is not None or not made:
            return known
        try:
            return make(SamplingConfig(max_new_tokens=self.max_new_tokens))
        except PTSError as error:
            self.notes.skip(f"rows against the plain distribution: it is refused ({error})")
            return None

    def _whole(self, engine: Engine) -> bool:
        faults = list(_protocol_faults(engine))
        for fault in faults:
            self.notes.add("protocol", type(engine).__name__, *fault)
        return not faults


def _protocol_faults(engine: Engine) -> Iterator[tuple[str, str, str]]:
    """(expected, observed, cause) of parts that are missing, or cannot be used."""
    missing = [name for name in (*ATTRIBUTES, *METHODS) if not hasattr(engine, name)]
    if missing:
        cause = "see the protocol in pts.engines.base"
        yield "all attributes and methods of Engine", f"no {', '.join(missing)}", cause
        return
    if not isinstance(engine.sampling, SamplingConfig):
        yield "sampling is a SamplingConfig", repr(engine.sampling), "keep the one given"
    digest = engine.policy_digest
    if not isinstance(digest, str) or not digest:
        yield "policy_digest is a digest of the weights, as text", repr(digest), "pairs carry it"
    if not isinstance(engine.reproducible, bool):
        cause = "declare whether seeds are honoured"
        yield "reproducible is True or False", repr(engine.reproducible), cause
    stops = engine.stop_ids
    if not isinstance(stops, frozenset) or not stops or {type(s) for s in stops} != {int}:
        cause = "without a stop id every completion is cut and fails"
        yield "stop_ids is a frozenset of ints, not empty", clipped(stops), cause


def _told(sampling: SamplingConfig) -> dict[str, Any]:
    """The settings that differ from plain sampling."""
    return sampling.model_dump(exclude_defaults=True, exclude={"max_new_tokens"})


def _label(name: str, sampling: SamplingConfig) -> str:
    settings = ", ".join(f"{key}={value:g}" for key, value in _told(sampling).items())
    return f"{name} ({settings})" if settings else name
