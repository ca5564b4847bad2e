"""Settings of judges, of further sources of answers, and of the pairs that are made of both."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from align.settings import ChatTemplate, RolloutsConfig
from pts.config import Settings, parse_settings

CHAT = "chat:"
"""Begins the name of a generator that is a chat endpoint."""
POLICY = "policy"
"""Names a stage's own policy as a source of answers."""


class ChatEndpoint(Settings):
    """How an OpenAI-compatible endpoint is asked, which answers at URL/v1/chat/completions."""

    model: str = ""
    """Name of the model at that endpoint."""
    key_variable: str = ""
    """Name of the environment variable that holds the API key, never the key; empty sends none."""
    extra: dict[str, Any] = {}
    """Further keys of a request; null leaves a key out, e.g. {max_tokens: null,
    max_completion_tokens: 2048}."""
    concurrency: int = Field(8, ge=1, le=1024)
    """Calls in flight at a time."""
    timeout: float = Field(120.0, gt=0, le=86_400)
    """Seconds until a reply is late."""
    patience: float = Field(600.0, gt=0, le=864_000)
    """Seconds that a call is tried while the endpoint is busy (429) or down; then the stage stops,
    and the same command continues it."""

    @field_validator("key_variable")
    @classmethod
    def _is_name(cls, name: str) -> str:
        if name and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", name):
            raise ValueError(  # what was given may be the key itself: it is not shown
                "must be the name of an environment variable in capitals, as in OPENAI_API_KEY; "
                "never write a key into a recipe"
            )
        return name


class JudgeModel(ChatEndpoint):
    """Who judges: a chat endpoint (`url`) or a local model (`path`)."""

    url: str = ""
    """Base URL of an OpenAI-compatible endpoint; `model` is the judge's name there."""
    path: str = ""
    """Instead of `url`: folder or name of a local model, which is asked greedily, on the device and
    in the dtype of the recipe's `model`. Of the keys above only `concurrency` is about it."""
    chat_template: ChatTemplate = "keep"
    """Of `path`: the chat template that it is asked in."""
    temperature: float = Field(0.0, ge=0, le=10)
    """Of `url`: temperature that its replies are sampled at."""
    max_tokens: int = Field(1024, ge=1, le=10**6)
    """Length limit of a reply; one that is cut by it is asked for again."""
    attempts: int = Field(3, ge=1, le=100)
    """How often one question is put: a reply that cannot be read, is refused or does not come in
    time is asked for again, then the answers are UNSCORED."""

    @model_validator(mode="after")
    def _one_backend(self) -> Self:
        if bool(self.url) == bool(self.path):
            raise ValueError("give either url (with model) or path")
        if self.url and not self.model:
            raise ValueError("model is missing; give the name of the judge at that url")
        of_url = ("model", "key_variable", "temperature", "extra", "timeout", "patience")
        idle = of_url if self.path else ("chat_template",)
        defaults = {key: type(self).model_fields[key].default for key in idle}
        told = [key for key in idle if getattr(self, key) != defaults[key]]
        if told:
            raise ValueError(
                f"{', '.join(told)} has no place beside {'path' if self.path else 'url'}"
            )
        return self


class JudgeConfig(JudgeModel):
    """Who scores answers: a chat endpoint (`url`) or a local model (`path`)."""

    accuracy: Literal["judge", "verifier"] = "judge"
    """Who scores accuracy: the judge, or the task's verifier (a right answer has 5, a wrong one
    1)."""


class AnswerSource(Settings):
    """What answers are drawn from."""

    engine: str
    """`transformers:PATH`, `vllm:PATH` or `server:URL[,URL...]`, as `pts.make_engine` takes it; or
    `chat:URL`, an OpenAI-compatible endpoint that returns text alone."""
    options: dict[str, Any] = {}
    """Of the engine; a server needs {tokenizer: FOLDER}. Of a chat endpoint: model, key_variable,
    extra, concurrency, timeout and patience, as of a judge."""

    @property
    def url(self) -> str:
        """Of a chat endpoint its URL; empty for engines."""
        return self.engine.removeprefix(CHAT) if self.engine.startswith(CHAT) else ""

    @property
    def endpoint(self) -> ChatEndpoint:
        """The options of a chat endpoint. Raises ConfigError for any other."""
        return parse_settings(ChatEndpoint, self.options, "", path="options")

    @model_validator(mode="after")
    def _check_endpoint(self) -> Self:
        if self.engine.startswith(CHAT) and not self.endpoint.model:
            raise ValueError("options.model is missing; give the name of the model at that url")
        return self


class GeneratorConfig(AnswerSource):
    """A further source of answers."""

    name: str = Field(pattern=r"^[\w-]{1,64}$")
    """Names it in pairs, counts and messages."""
    samples: int = Field(2, ge=1, le=100_000)
    """Answers of it to each question."""


class JudgedPairsConfig(Settings):
    """Which answers are compared, and which pairs are made of the scores."""

    comparisons: int = Field(2, ge=1, le=100_000)
    """Pairs of answers to a question that the judge is shown, drawn evenly from all that its
    answers allow, whoever gave them; each is asked in both orders."""
    accuracy_share: float = Field(2 / 3, ge=0, le=1)
    """Share of the pairs whose chosen side has the higher accuracy; in the others it has the higher
    mean of accuracy, style and detail. The report has 532,000 of the one kind and 266,000 of the
    other."""
    margin: float = Field(0.0, ge=0, lt=4)
    """Smallest difference of the scores, means of the two orders; 0 takes any difference."""
    flips: Literal["drop", "mean"] = "drop"
    """A pair of which the two orders prefer different sides is dropped, or the mean of both orders
    decides. Both are counted."""


class JudgedConfig(RolloutsConfig):
    """What training stages share that can let a judge choose among sampled answers."""

    judge: JudgeConfig | None = None
    """Who scores answers; without it the verifier alone decides, and the keys that tell of judged
    answers have no place."""

    generators: tuple[GeneratorConfig, ...] = ()
    """With a `judge`, further sources of answers beside the policy; what they write is encoded in
    the policy's chat template, unless they share its tokens."""

    of_judge: ClassVar[tuple[str, ...]] = ("generators",)
    """Keys that mean nothing without a judge."""
    beside_judge: ClassVar[tuple[str, ...]] = ("rollouts",)
    """Keys that mean nothing with one."""

    @model_validator(mode="after")
    def _check_judge(self) -> Self:
        judged = self.judge is not None
        for key in self.beside_judge if judged else self.of_judge:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} {'has no place beside' if judged else 'needs'} a judge")
        return self

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [POLICY, *(generator.name for generator in self.generators)]
        if len(set(names)) < len(names):
            raise ValueError(f"generators: each name may stand once, got {names}")
        return self

    @model_serializer(mode="wrap")
    def _without_idle_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return self._without_judge(RolloutsConfig._without_defaults(self, handler))

    def _without_judge(self, data: dict[str, Any]) -> dict[str, Any]:
        idle = () if self.judge is not None else ("judge", *self.of_judge)
        return {key: value for key, value in data.items() if key not in idle}
