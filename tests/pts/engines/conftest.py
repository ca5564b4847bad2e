"""What the tests of server engines share: machines, and a tokenizer folder that is made once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from pts.config import SamplingConfig
from pts.engines.server.endpoints import RetryPolicy
from pts.engines.server.engine import ServerEngine
from pts.testing.shapes import wandering
from tests.pts.engines.faulty_server import save_tokenizer

MACHINES = [wandering(np.random.default_rng(seed), 14, 7).machine for seed in range(4)]
SAMPLING = SamplingConfig(top_p=0.95, max_new_tokens=24)
QUICK = RetryPolicy(reply=60.0, total=60.0, first=0.005)


class Connect(Protocol):
    def __call__(self, *urls: str, **options: Any) -> ServerEngine: ...


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def connect(tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Engines on URLs, closed when the test ends. Few draws are compared with a row: quicker."""
    monkeypatch.setattr("pts.engines.server.engine.DRAWS", 40)
    with ExitStack() as stack:

        def connected(*urls: str, **options: Any) -> ServerEngine:
            settings: dict[str, Any] = {
                "model": None, "tokenizer": tokenizer_folder, "sampling": SAMPLING,
                "retry": QUICK, **options,
            }  # fmt: skip
            return stack.enter_context(ServerEngine.connect(list(urls), **settings))

        yield connected
