"""Where rollouts come from, as a recipe says it: `engine` of the whole, of a stage, of `evaluate`.

engine: transformers
engine: {kind: vllm, options: {tensor_parallel_size: 2}}
engine: {kind: server, command: "vllm serve {model} --port {port}", options: {quantization: fp8}}
engine: {kind: server, urls: [http://node1:8000, http://node2:8000]}
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
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
    options: dict[str, Any] = {}
    """Further flags of the command: `tensor_parallel_size: 2` becomes `--tensor-parallel-size 2`,
    true a flag without a value, false one with `no-` before it, a mapping its JSON."""
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

    @property
    def whole_command(self) -> str:
        """The command with the options as its flags."""
        return " ".join([self.command, *map(shlex.quote, _flags(self.options))])

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if bool(self.command) == bool(self.urls):
            raise ValueError(
                "command, urls: give one of them; a command starts a server for each policy, "
                "urls name servers that run"
            )
        return self


def flag_of(name: str) -> str:
    """An option's flag, as vLLM's command line writes them."""
    return "--" + name.replace("_", "-")


def _flags(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        flag = flag_of(name)
        if isinstance(value, bool):
            yield flag if value else flag.replace("--", "--no-", 1)
        elif isinstance(value, list):
            yield from (flag, *map(str, value))
        else:
            yield from (flag, json.dumps(value) if isinstance(value, dict) else str(value))


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
    and of servers the options that were given but not where they were."""
    if config.kind == "transformers":
        return {}
    told = isinstance(config, InProcessEngine) or config.options
    options = {"options": config.options} if told else {}
    return {"engine": {"kind": config.kind, **options}}
