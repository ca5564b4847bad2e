"""Which engine `pts search` and `pts plan` run on: checked before, and loaded after, the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pts.config import SamplingConfig
    from pts.engines.base import Engine

IN_FLIGHT = 512
"""Requests to servers at a time, unless said otherwise."""


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """A model in this process (or in each worker), or on servers if there are URLs."""

    model: Path
    """Folder of a model or LoRA adapter; with servers, of the served model's tokenizer."""
    urls: tuple[str, ...] = ()
    served_name: str | None = None
    in_flight: int | None = None
    seeds: bool = True
    revision: str = ""

    def faults(self) -> list[str]:
        """What the folder lacks, and what is said of servers though there are none, as lines."""
        return [*self._stray_options(), *self._folder_faults()]

    def _stray_options(self) -> list[str]:
        given = {
            "--served-name": self.served_name is not None,
            "--in-flight": self.in_flight is not None,
            "--no-seeds": not self.seeds,
            "--revision": self.revision != "",
        }
        stray = [] if self.urls else [name for name, present in given.items() if present]
        return [f"{name} is for servers: give --server as well" for name in stray]

    def _folder_faults(self) -> list[str]:
        wanted = ("tokenizer_config.json",) if self.urls else ("config.json", "adapter_config.json")
        if any((self.model / name).is_file() for name in wanted):
            return []
        if self.urls:
            return [
                f"{self.model}: no tokenizer here (tokenizer_config.json); with --server, --model "
                "is the folder of the served model's tokenizer"
            ]
        return [f"{self.model}: no model here (neither config.json nor adapter_config.json)"]

    def load(self, sampling: SamplingConfig) -> Engine:
        """The engine; the heavy imports happen here, so that a parent of workers has none."""
        from pts.engines.registry import make_engine

        if self.urls:
            return make_engine(
                f"server:{','.join(self.urls)}", sampling, tokenizer=self.model,
                model=self.served_name, in_flight=self.in_flight or IN_FLIGHT, seeds=self.seeds,
                revision=self.revision,
            )  # fmt: skip
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # type: ignore[no-untyped-call]
        return make_engine(f"transformers:{self.model}", sampling)
