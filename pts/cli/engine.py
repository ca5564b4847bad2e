"""Which engine `pts search` and `pts plan` run on: checked before, and loaded after, the inputs."""

from __future__ import annotations

from typing import Any

from pts.cli.options import SearchOptions
from pts.config import SamplingConfig
from pts.engines.base import Engine
from pts.engines.registry import ENGINES, make_engine


def _named(given: SearchOptions) -> tuple[str, str, dict[str, Any]]:
    """Kind, argument and options for `make_engine`: servers if there are URLs, else a model in this
    process (or in each worker)."""
    if not given.server:
        return "transformers", str(given.model), {}
    options = {
        "tokenizer": given.model,
        "model": given.served_name,
        "seeds": given.seeds,
        "in_flight": given.in_flight,
        "revision": given.revision,
    }
    return "server", ",".join(given.server), options


def engine_faults(given: SearchOptions) -> list[str]:
    """What is wrong with the model or the servers, and what is said of servers though there are
    none, as lines."""
    of_servers = {
        "--served-name": given.served_name is not None,
        "--in-flight": given.in_flight is not None,
        "--no-seeds": not given.seeds,
        "--revision": given.revision != "",
    }
    stray = [] if given.server else [name for name, present in of_servers.items() if present]
    name, argument, options = _named(given)
    lacks = list(ENGINES[name].faults(argument, options))
    if given.server and any(line.startswith(f"{given.model}: ") for line in lacks):
        lacks.append("with --server, --model is the folder of the served model's tokenizer")
    return [*(f"{option} is for servers: give --server as well" for option in stray), *lacks]


def load_engine(given: SearchOptions, sampling: SamplingConfig) -> Engine:
    """The engine; the heavy imports happen here, so that a parent of workers has none."""
    name, argument, options = _named(given)
    if name == "transformers":
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # type: ignore[no-untyped-call]
    return make_engine(f"{name}:{argument}", sampling, **options)
