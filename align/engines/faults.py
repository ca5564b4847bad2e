"""What is wrong with an engine of a recipe, found before any model is loaded."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
from collections.abc import Iterator

from align.engines.settings import EngineConfig, InProcessEngine, ServedEngine, flag_of
from pts.config import SamplingConfig
from pts.engines.registry import ENGINES
from pts.engines.server.endpoints import base_urls
from pts.errors import ConfigError, EngineError, MissingExtra, did_you_mean

PLACEHOLDERS = ("{model}", "{port}")
OF_TRANSFORMERS = ("max_rows", "memory_bytes")
SET_ALREADY = {
    "model": "the stage's policy",
    "tokenizer": "that of the policy",
    "chat_template": "model.chat_template",
    "stop_ids": "the policy's own",
    "policy_digest": "that of its files",
    "trust_remote_code": "never on",
}
"""Options of engines that are not for a recipe to give, and what they are."""
OF_COMMAND = {"port": "a free one, where the command says {port}", "host": "this machine"}
"""The same of a server's flags."""


def engine_faults(config: EngineConfig, sampling: SamplingConfig) -> Iterator[str]:
    """A line for each fault, which begins with the key that it is in."""
    if isinstance(config, ServedEngine):
        yield from _extra("httpx2", "server")
        if config.urls:
            try:
                base_urls(config.urls)
            except ConfigError as error:
                yield from (f"urls: {problem}" for problem in error.problems)
        else:
            yield from _command_faults(config.command)
        yield from _flag_faults(config)
        return
    yield from _option_faults(config)
    if config.kind == "vllm":
        from pts.engines.server.probe import check_policy

        yield from _extra("vllm", "vllm")
        try:
            check_policy("vLLM", sampling)
        except EngineError as error:
            yield f"kind: {error}"


def _extra(package: str, extra: str) -> Iterator[str]:
    if importlib.util.find_spec(package) is None:
        yield f"kind: {MissingExtra(package, extra)}"


def _option_faults(config: InProcessEngine) -> Iterator[str]:
    known = ENGINES[config.kind].options
    own = known is not None and [name for name in known if name not in SET_ALREADY]
    if config.kind == "transformers":
        own = list(OF_TRANSFORMERS)
    for name, value in config.options.items():
        if name in SET_ALREADY:
            yield f"options: {name} is {SET_ALREADY[name]}; leave it out"
        elif own is not False and name not in own:
            hint = did_you_mean(name, own) or f"; it has {', '.join(own) or 'none'}"
            yield f"options: {config.kind} has no option {name!r}{hint}"
        elif config.kind == "transformers" and (type(value) is not int or value < 1):
            yield f"options.{name}: got {value!r}; give a whole number of at least 1"
    if config.kind == "vllm":
        from pts.engines.vllm import option_faults

        rest = {name: value for name, value in config.options.items() if name not in SET_ALREADY}
        yield from (f"options: {fault}" for fault in option_faults(rest))


def _flag_faults(config: ServedEngine) -> Iterator[str]:
    from pts.engines.vllm import REQUIRED

    flags = {word.partition("=")[0] for word in config.command.split()}
    for name, value in config.options.items():
        plain = name.replace("-", "_").lstrip("_")
        flag = flag_of(plain)
        if config.urls:
            yield f"options.{name}: is a flag of a command; the servers of urls run already"
        elif plain in SET_ALREADY or plain in OF_COMMAND:
            yield f"options: {name} is {(SET_ALREADY | OF_COMMAND)[plain]}; leave it out"
        elif flag in flags or flag.replace("--", "--no-") in flags:
            yield f"options: {name} is in the command as well ({flag}); give it in one place"
        elif plain in REQUIRED and value != REQUIRED[plain]:
            yield f"options.{name}: got {value!r}, must be {REQUIRED[plain]!r}; leave it out"
        elif not isinstance(value, str | bool | int | float | dict | list):
            yield f"options.{name}: got {value!r}; give a text, a number, true, false or a mapping"


def _command_faults(command: str) -> Iterator[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:  # of a quotation mark without its fellow
        yield f"command: cannot be split into words ({error}): {command!r}"
        return
    found = {name for word in words for name in re.findall(r"\{[A-Za-z_]\w*\}", word)}
    for name in sorted(found - {*PLACEHOLDERS}):
        yield f"command: no placeholder {name}{did_you_mean(name, PLACEHOLDERS)}"
    lacking = [name for name in PLACEHOLDERS if name not in found]
    if lacking:
        yield (
            f"command: has no {' and no '.join(lacking)}, where the policy's folder and a free "
            "port go; e.g. vllm serve {model} --port {port}"
        )
    if words and shutil.which(os.path.expanduser(words[0])) is None:
        yield f"command: no program {words[0]!r} is found; install it, or give its whole path"
