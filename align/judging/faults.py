"""What is wrong with a judge or a source of answers, told before anything is asked."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

from align.judging.settings import AnswerSource, ChatEndpoint, JudgeModel
from align.models.load import base_path
from align.settings import ModelConfig
from pts.engines.registry import engine_faults
from pts.engines.server.endpoints import base_urls
from pts.errors import ConfigError, MissingExtra

EXTRAS = {"server": ("httpx2", "server"), "vllm": ("vllm", "vllm")}
"""Packages that engines need, and the extras that install them."""


def source_faults(source: AnswerSource) -> list[str]:
    """What is wrong with an engine or a chat endpoint, a line a fault."""
    if source.url:
        return [*_endpoint_faults(source.url, source.endpoint)]
    needed = EXTRAS.get(source.engine.partition(":")[0], ())
    return [*engine_faults(source.engine, source.options), *_missing(*needed)]


def backend_faults(judge: JudgeModel) -> Iterator[str]:
    """What is wrong with a judge, a line a fault."""
    if judge.path:
        try:
            base_path(ModelConfig(path=judge.path))
        except ConfigError as error:
            yield from (fault.removeprefix("model.") for fault in error.problems)
        return
    yield from _endpoint_faults(judge.url, judge)


def _endpoint_faults(url: str, endpoint: ChatEndpoint) -> Iterator[str]:
    variable = endpoint.key_variable
    try:
        base_urls([url], variable or "an environment variable")
    except ConfigError as error:
        yield from (f"url: {fault}" for fault in error.problems)
    if variable and not os.environ.get(variable):
        yield (
            f"key_variable: the environment variable {variable} is not set; set it to the API key"
        )
    yield from (f"url: {fault}" for fault in _missing(*EXTRAS["server"]))


def _missing(package: str = "", extra: str = "") -> list[str]:
    if not package or importlib.util.find_spec(package):
        return []
    return [str(MissingExtra(package, extra))]
