"""Where rollouts come from, as a recipe says it: `engine` of the whole, of a stage, of `evaluate`.

engine: transformers
engine: {kind: vllm, options: {tensor_parallel_size: 2}}
engine: {kind: server, command: "vllm serve {model} --port {port}"}
engine: {kind: server, urls: [http://node1:8000, http://node2:8000]}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from pts.config import Settings
from pts.engines.registry import ENGINES
from pts.errors import did_you_mean


class InProcessEngine(Settings):
    """The policy is loaded and sampled in the process of its stage."""

    kind: str = "transformers"
    """`transformers`; `vllm`, which the extra of that name installs; or the name of an engine of
    your own (`pts.engines.registry.ENGINES`), which is given the policy's folder."""
    options: dict[str, Any] = {}
    """Passed on: to transformers `max_rows` and `memory_bytes`, to vLLM `in_flight` and whatever
    `vllm.LLM` takes."""


class ServedEngine(Settings):
    """Servers of vLLM or llama.cpp are asked for rollouts."""

    kind: Literal["server"]
    """Names this kind of engine."""
    command: str = ""
    """Starts a server, without a shell, for each policy that is to be sampled, and ends it when
    that is done; `{model}` becomes the policy's folder, `{port}` a free port. What it prints goes
    to server.log in the stage's folder."""
    urls: tuple[str, ...] = ()
    """Servers that run already, all with the one policy that is to be sampled."""
    model: str = ""
    """Name by which the policy is served; the only one there if not given."""
    ready_timeout: float = Field(600.0, gt=0, le=86_400)
    """Seconds that a server may take from its start to its first answer."""
    in_flight: int | None = Field(None, ge=1, le=100_000)
    """Rollouts asked for at a time, of all servers together; if not given, each server gets as many
    as it is the faster for."""
    seeds: bool = True
    """Ask for each rollout with a seed; vLLM's CPU build cannot take them everywhere."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.command) == bool(self.urls):
            raise ValueError(
                "command, urls: give one of them; a command starts a server for each policy, "
                "urls name servers that run"
            )
        return self


def _told(value: Any) -> Any:
    """A bare name stands for an engine without settings. Another name than a known one is refused
    here, where the known ones can be told."""
    told = {"kind": value} if isinstance(value, str) else value
    if not isinstance(told, dict | Settings):
        raise ValueError(f"got {value!r}; give a name, or keys and values")
    if isinstance(told, dict):
        kind = told.get("kind", "transformers")
        if kind not in ENGINES:
            hint = did_you_mean(str(kind), ENGINES) or f"; known: {', '.join(ENGINES)}"
            raise ValueError(f"no engine {kind!r}{hint}")
    return told


def _form(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", "")
    return "server" if kind == "server" else "in process"


EngineConfig = Annotated[
    Annotated[InProcessEngine, Tag("in process")] | Annotated[ServedEngine, Tag("server")],
    Discriminator(_form),
    BeforeValidator(_told),
]
"""An engine of a recipe."""


def engine_inputs(config: EngineConfig) -> dict[str, Any]:
    """What a manifest keeps of the engine that a result was sampled from: nothing of the usual one,
    and of servers not where they were."""
    if config.kind == "transformers":
        return {}
    options = {"options": config.options} if isinstance(config, InProcessEngine) else {}
    return {"engine": {"kind": config.kind, **options}}
