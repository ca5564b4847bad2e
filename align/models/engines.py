"""The engine of a policy: the one place that makes it from what the recipe says.

    with policy_engines(recipe.engine_of(entry), policy, recipe.model, folder) as load:
        engine = load(recipe.sampling)

A policy is loaded, or its server started, when an engine is first asked for. Engines of other
sampling settings share it. It ends with the block.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.context import StageContext
from align.engines.process import ServerProcess, running
from align.engines.settings import EngineConfig, InProcessEngine, ServedEngine
from align.models.load import chat_template, load_policy, whole_folder
from align.settings import ModelConfig
from pts.config import SamplingConfig
from pts.engines.base import Engine
from pts.engines.digest import model_digest
from pts.engines.registry import make_engine
from pts.errors import EngineError

if TYPE_CHECKING:
    from pts.engines.server.engine import ServerEngine
    from pts.engines.transformers.engine import TransformersEngine
    from pts.engines.vllm import VLLMEngine

Load = Callable[[SamplingConfig], Engine]
"""Gives the policy at hand, to be sampled as the settings say."""
LOG = "server.log"


@contextmanager
def policy_engines(
    config: EngineConfig,
    policy: Path,
    model: ModelConfig,
    folder: Path,
    *,
    few_shot: bool = False,
    progress: bool = False,
) -> Iterator[Load]:
    """Engines of a policy, one per sampling.

    Args:
        folder: where a server's log goes.
        few_shot: a rollout also stops where the model begins a question of its own.

    Raises:
        EngineError: by what is yielded: the policy cannot be loaded or served.
        MissingExtra: the same, for the engine's library.
    """
    with ExitStack() as stack:
        if isinstance(config, ServedEngine):
            served = _Served(config, policy, model, folder / LOG, few_shot, progress, stack)
            yield served.load
        elif config.kind == "transformers":
            yield loader(policy, model, few_shot, **config.options)
        else:
            yield _in_process(config, policy, model, few_shot, stack)


@contextmanager
def load_engine(context: StageContext) -> Iterator[Engine]:
    """The policy that a stage starts from, to be sampled as the recipe says."""
    recipe = context.recipe
    with policy_engines(
        recipe.engine_of(context.entry), context.policy, recipe.model, context.folder,
        progress=context.progress,
    ) as load:  # fmt: skip
        yield load(recipe.sampling)


def loader(path: Path, model: ModelConfig, few_shot: bool = False, **options: Any) -> Load:
    """Engines of transformers; the weights are read once, at the first use."""
    loaded: list[TransformersEngine] = []

    def load(sampling: SamplingConfig) -> Engine:
        from pts.engines.text import stop_ids_of
        from pts.engines.transformers.engine import TransformersEngine

        if loaded:
            policy, tokenizer = loaded[0].model, loaded[0].tokenizer
        else:
            policy, tokenizer = load_policy(path, model)
        stops = stop_ids_of(policy, tokenizer) | _question(tokenizer) if few_shot else None
        engine = TransformersEngine(
            policy,
            tokenizer,
            sampling,
            stop_ids=stops,
            policy_digest=loaded[0].policy_digest if loaded else model_digest(path),
            **options,
        )
        loaded[:] = [engine]
        return engine

    return load


def _in_process(
    config: InProcessEngine, policy: Path, model: ModelConfig, few_shot: bool, stack: ExitStack
) -> Load:
    """Engines of vLLM over one `vllm.LLM`; or engines that others have registered."""
    made: list[VLLMEngine] = []

    def load(sampling: SamplingConfig) -> Engine:
        if config.kind != "vllm":
            own = make_engine(f"{config.kind}:{policy}", sampling, **config.options)
            stack.callback(getattr(own, "close", lambda: None))
            return own
        from pts.engines.vllm import VLLMEngine

        folder = whole_folder(policy)
        template, stops = chat_template(model), _stops(folder, few_shot)
        if made:
            first = made[0]
            return VLLMEngine(
                first.llm, folder, sampling, policy_digest=first.policy_digest,
                chat_template=template, stop_ids=stops, in_flight=first.in_flight,
            )  # fmt: skip
        _make_room()
        options: dict[str, Any] = {"dtype": model.dtype, **config.options}
        engine = VLLMEngine.load(
            folder, sampling, chat_template=template, stop_ids=stops, **options
        )
        made.append(engine)
        stack.callback(engine.close)
        return engine

    return load


class _Served:
    """Engines of a policy on servers, which are started first if the recipe tells how."""

    def __init__(
        self,
        config: ServedEngine,
        policy: Path,
        model: ModelConfig,
        log: Path,
        few_shot: bool,
        progress: bool,
        stack: ExitStack,
    ) -> None:
        self.config, self.policy, self.model, self.log = config, policy, model, log
        self.few_shot, self.progress, self.stack = few_shot, progress, stack
        self._process: ServerProcess | None = None
        self._digest = ""

    def load(self, sampling: SamplingConfig) -> Engine:
        from pts.engines.server.engine import ServerEngine

        config, folder = self.config, whole_folder(self.policy)
        self._digest = self._digest or model_digest(folder)
        if config.command and self._process is None:
            _make_room()
            self._process = self.stack.enter_context(
                running(config.whole_command, folder, self.log, config.ready_timeout, self.progress)
            )
        engine = ServerEngine.connect(
            [self._process.url] if self._process else config.urls,
            config.model or None,
            folder,
            sampling,
            chat_template=chat_template(self.model),
            stop_ids=_stops(folder, self.few_shot),
            policy_digest=self._digest,
            seeds=config.seeds,
            in_flight=config.in_flight,
            ended=self._process.ended if self._process else None,
        )
        self.stack.enter_context(engine)
        if self._process is None:
            self._check_served(engine)
        return engine

    def _check_served(self, engine: ServerEngine) -> None:
        """That running servers have the policy, as far as they tell: where its files are."""
        root, urls = engine.served.root, ", ".join(self.config.urls)
        if Path(root).exists():
            if model_digest(root) != self._digest:
                raise EngineError(
                    f"{urls}: serves {root}, which is another model than {self.policy}, the policy "
                    "that is to be sampled; start it on that one, or give a command"
                )
        elif root != str(self.policy) and not self.config.model:
            raise EngineError(
                f"{urls}: serves {root!r}, which is not on this machine, so that nothing shows "
                f"that it is {self.policy}; if it is, say so by its name: engine.model="
                f"{engine.served.model}"
            )


def _make_room() -> None:
    """Give back what PyTorch keeps of a device for later: another program needs it now."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def _stops(folder: Path, few_shot: bool) -> frozenset[int] | None:
    """Stop ids that differ from the policy's own ones."""
    if not few_shot:
        return None
    from pts.engines.text import load_tokenizer

    tokenizer, stops, _ = load_tokenizer(folder, None)
    return stops | _question(tokenizer)


def _question(tokenizer: Any) -> frozenset[int]:
    """The token "Question" where it is one: the next few-shot example begins there."""
    question = tokenizer("Question", add_special_tokens=False)["input_ids"]
    return frozenset(question if len(question) == 1 else ())
