"""The engines that a conformance check runs through: one for each sampling configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from pts.config import SamplingConfig
from pts.engines.base import Engine
from pts.errors import PTSError
from pts.testing.report import FindingCollector, clipped

MakeEngine: TypeAlias = Callable[[SamplingConfig], Engine]

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


@dataclass(frozen=True)
class EngineUnderTest:
    """An engine under one sampling configuration."""

    label: str
    engine: Engine


class EngineFactory:
    """Makes the engines to check, and a plain one to compare their rows with."""

    def __init__(self, notes: FindingCollector, max_new_tokens: int) -> None:
        self.notes, self.max_new_tokens = notes, max_new_tokens
        self.plain: Engine | None = None

    def all_tested(
        self, engine: Engine | MakeEngine, samplings: Mapping[str, SamplingConfig] | None
    ) -> list[EngineUnderTest]:
        """Engines that have all the protocol's parts."""
        if not callable(engine):
            self.notes.skip(
                "other settings than the engine's own, and what truncation should do to the "
                "plain distribution: give a function from SamplingConfig to an engine"
            )
            label = _label("own settings", engine.sampling) if self._whole(engine) else ""
            return [EngineUnderTest(label, engine)] if label else []
        wanted = samplings or {
            name: SamplingConfig.model_validate({**changes, "max_new_tokens": self.max_new_tokens})
            for name, changes in SETTINGS.items()
        }
        made = [self._made(engine, name, sampling) for name, sampling in wanted.items()]
        self.plain = self._plain(engine, [s for s in made if s])
        return [tested for tested in made if tested is not None]

    def _made(
        self, make: MakeEngine, name: str, sampling: SamplingConfig
    ) -> EngineUnderTest | None:
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
        return EngineUnderTest(label, engine)

    def _plain(self, make: MakeEngine, made: Sequence[EngineUnderTest]) -> Engine | None:
        """An engine at temperature 1 without truncation, for what truncation should do."""
        sampling = SamplingConfig(max_new_tokens=self.max_new_tokens)
        known = next((s.engine for s in made if _is_plain(s.engine.sampling)), None)
        if known is not None or not made:
            return known
        try:
            return make(sampling)
        except PTSError as error:
            self.notes.skip(f"rows against the plain distribution: it is refused ({error})")
            return None

    def _whole(self, engine: Engine) -> bool:
        missing = [name for name in (*ATTRIBUTES, *METHODS) if not hasattr(engine, name)]
        if missing:
            cause = "see the protocol in pts.engines.base"
            self.notes.add(
                "protocol", type(engine).__name__, "all attributes and methods of Engine",
                f"no {', '.join(missing)}", cause,
            )  # fmt: skip
            return False
        faults = _attribute_faults(engine)
        for expected, observed, cause in faults:
            self.notes.add("protocol", type(engine).__name__, expected, observed, cause)
        return not faults


def _attribute_faults(engine: Engine) -> list[tuple[str, str, str]]:
    """(expected, observed, cause) of attributes that cannot be used."""
    faults = []
    if not isinstance(engine.sampling, SamplingConfig):
        faults.append(("sampling is a SamplingConfig", repr(engine.sampling), "keep the one given"))
    if not isinstance(engine.policy_digest, str) or not engine.policy_digest:
        faults.append(
            (
                "policy_digest is a digest of the weights, as text",
                repr(engine.policy_digest),
                "pairs carry it",
            )
        )
    if not isinstance(engine.reproducible, bool):
        cause = "declare whether seeds are honoured"
        faults.append(("reproducible is True or False", repr(engine.reproducible), cause))
    stops = engine.stop_ids
    if not isinstance(stops, frozenset) or not stops or {type(s) for s in stops} != {int}:
        cause = "without a stop id every completion is cut and fails"
        faults.append(("stop_ids is a frozenset of ints, not empty", clipped(stops), cause))
    return faults


def _is_plain(sampling: SamplingConfig) -> bool:
    return sampling.temperature == 1 and not _told(sampling)


def _told(sampling: SamplingConfig) -> dict[str, object]:
    """The settings that differ from plain sampling."""
    plain = SamplingConfig(max_new_tokens=sampling.max_new_tokens)
    return {k: v for k, v in sampling.model_dump().items() if v != getattr(plain, k)}


def _label(name: str, sampling: SamplingConfig) -> str:
    settings = ", ".join(f"{key}={value:g}" for key, value in _told(sampling).items())
    return f"{name} ({settings})" if settings else name
