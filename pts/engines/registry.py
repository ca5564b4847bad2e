"""Engines by name, as recipes and command lines give them.

    engine = make_engine("transformers:models/phi-4", SamplingConfig(top_p=0.95))
    engine = make_engine(
        "server:http://localhost:8000", SamplingConfig(), tokenizer="models/phi-4", in_flight=2000
    )

An engine of your own joins by one line: `ENGINES["mine"] = EngineKind("mine:NAME", make)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pts.config import SamplingConfig
from pts.engines.base import Engine
from pts.engines.server.endpoints import base_urls
from pts.errors import ConfigError, did_you_mean


def _no_faults(argument: str, options: Mapping[str, Any]) -> Iterable[str]:
    return ()


@dataclass(frozen=True, slots=True)
class EngineKind:
    """How an engine is named, checked and made."""

    form: str
    """How it is written, for messages: "transformers:PATH"."""
    make: Callable[..., Engine]
    """`make(argument, sampling, **options)`, the argument being what follows the colon. What is
    heavy is imported inside of it."""
    options: tuple[str, ...] | None = None
    """Names of the options that `make` takes; None: any."""
    faults: Callable[[str, Mapping[str, Any]], Iterable[str]] = _no_faults
    """What is wrong with an argument and options, one line a fault, found before `make`."""


def make_engine(spec: str, sampling: SamplingConfig, **options: Any) -> Engine:
    """The engine of `transformers:PATH`, `vllm:PATH` or `server:URL[,URL...]`.

    Options are those of `TransformersEngine.load`, of `VLLMEngine.load`, and of
    `ServerEngine.connect`, which needs `tokenizer`, a folder. Raises ConfigError with every fault
    (another name, a missing folder, a malformed URL, an option that the engine does not have)
    before anything is loaded; MissingExtra without the engine's library, EngineError for a model
    or a server that cannot be used.
    """
    if faults := engine_faults(spec, options):
        raise ConfigError(*faults)
    name, _, argument = spec.partition(":")
    return ENGINES[name].make(argument, sampling, **options)


def engine_faults(spec: str, options: Mapping[str, Any]) -> list[str]:
    """What is wrong with the name and the options of an engine, a line a fault; nothing is made."""
    name, _, argument = spec.partition(":")
    kind = ENGINES.get(name)
    if kind is None or not argument:
        *forms, last = [known.form for known in ENGINES.values()]
        hint = did_you_mean(name, ENGINES) if kind is None else ""
        return [f"no engine {spec!r}{hint}; give {', '.join(forms)} or {last}"]
    known = options if kind.options is None else kind.options
    others = f"; it has {', '.join(known)}"
    faults = [
        f"{name}: no option {option!r}{did_you_mean(option, known) or others}"
        for option in options
        if option not in known
    ]
    return [*faults, *kind.faults(argument, options)]


def _folder_faults(folder: Path, what: str, *names: str) -> Iterator[str]:
    """A line unless the folder holds one of these files of a model or a tokenizer."""
    if not any((folder / name).is_file() for name in names):
        yield (
            f"{folder}: no {what} here (no {' or '.join(names)}); give a local folder that holds "
            f"the {what}'s files"
        )


def _transformers_faults(path: str, options: Mapping[str, Any]) -> Iterator[str]:
    gguf = options.get("gguf_file")
    names = (gguf,) if gguf else ("config.json", "adapter_config.json")
    return _folder_faults(Path(path), "model", *names)


def _transformers(path: str, sampling: SamplingConfig, **options: Any) -> Engine:
    from pts.engines.transformers.engine import TransformersEngine

    return TransformersEngine.load(path, sampling, **options)


def _vllm_faults(path: str, options: Mapping[str, Any]) -> Iterator[str]:
    from pts.engines.vllm import option_faults

    yield from _folder_faults(Path(path), "model", "config.json")
    yield from (f"vllm: {fault}" for fault in option_faults(options))


def _vllm(path: str, sampling: SamplingConfig, **options: Any) -> Engine:
    from pts.engines.vllm import VLLMEngine

    return VLLMEngine.load(path, sampling, **options)


def _server_faults(urls: str, options: Mapping[str, Any]) -> Iterator[str]:
    try:
        base_urls(_split(urls))
    except ConfigError as error:
        yield from error.problems
    tokenizer, in_flight = options.get("tokenizer"), options.get("in_flight")
    if tokenizer is None:
        yield "server: tokenizer is missing; give the folder of the served model's tokenizer"
    else:
        yield from _folder_faults(Path(tokenizer), "tokenizer", "tokenizer_config.json")
    if in_flight is not None and (type(in_flight) is not int or in_flight < 1):
        yield (
            f"server: in_flight must be a whole number of at least 1, got {in_flight!r}; leave it "
            "out to let the servers' speed say"
        )


def _server(urls: str, sampling: SamplingConfig, **options: Any) -> Engine:
    from pts.engines.server.engine import ServerEngine

    given = {"model": None, **options}
    return ServerEngine.connect(_split(urls), sampling=sampling, **given)


def _split(urls: str) -> list[str]:
    return [url.strip() for url in urls.split(",")]


ENGINES: dict[str, EngineKind] = {
    "transformers": EngineKind(
        "transformers:PATH",
        _transformers,
        (
            *("adapter", "gguf_file", "dtype", "device", "chat_template", "stop_ids"),
            *("max_rows", "memory_bytes", "policy_digest"),
        ),
        _transformers_faults,
    ),
    # Options that the engine does not know go to vllm.LLM.
    "vllm": EngineKind("vllm:PATH", _vllm, None, _vllm_faults),
    "server": EngineKind(
        "server:URL[,URL...]",
        _server,
        (
            *("tokenizer", "model", "in_flight", "seeds", "revision"),
            *("chat_template", "stop_ids", "retry", "policy_digest"),
        ),
        _server_faults,
    ),
}
"""The engines by their names. Add your own before `make_engine` is called."""
