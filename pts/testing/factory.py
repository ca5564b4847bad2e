"""The engines that a conformance check runs through: one for each sampling configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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


def engines_to_check(
    engine: Engine | MakeEngine,
    samplings: Mapping[str, SamplingConfig] | None,
    max_new_tokens: int,
    notes: FindingCollector,
) -> tuple[list[LabelledEngine], Engine | None]:
    """Engines that have all the protocol's parts, and a plain one to compare their rows with.

    The plain one is at temperature 1 without truncation: it shows what truncation should do.
    """
    if not callable(engine):
        notes.skip(
            "other settings than the engine's own, and what truncation should do to the "
            "plain distribution: give a function from SamplingConfig to an engine"
        )
        if not _whole(engine, notes):
            return [], None
        return [(_label("own settings", engine.sampling), engine)], None
    wanted = samplings or {
        name: SamplingConfig.model_validate({**changes, "max_new_tokens": max_new_tokens})
        for name, changes in SETTINGS.items()
    }
    tested: list[LabelledEngine] = []
    for name, sampling in wanted.items():
        label = _label(name, sampling)
        try:
            made = engine(sampling)
        except PTSError as error:
            notes.skip(f"{label}: the engine refuses it ({error})")
            continue
        if _whole(made, notes):
            tested.append((label, made))
            if made.sampling != sampling:
                cause = "the engine keeps another configuration than the one it was made with"
                expected, observed = f"sampling = {sampling}", f"sampling = {made.sampling}"
                notes.add("protocol", label, expected, observed, cause)
    plain = next((made for _, made in tested if not _told(made.sampling)), None)
    if plain is None and tested:
        try:
            plain = engine(SamplingConfig(max_new_tokens=max_new_tokens))
        except PTSError as error:
            notes.skip(f"rows against the plain distribution: it is refused ({error})")
    return tested, plain


def _whole(engine: Engine, notes: FindingCollector) -> bool:
    faults = list(_protocol_faults(engine))
    for fault in faults:
        notes.add("protocol", type(engine).__name__, *fault)
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
