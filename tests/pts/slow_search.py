"""A search that dies: `python -m tests.pts.slow_search FOLDER [REQUESTS SECONDS]`.

SIGKILL strikes SECONDS after REQUESTS answers, wherever the process is then; without them it ends.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Timer

from pts.config import SearchConfig
from pts.engines.base import SampleRequest
from pts.runtime.search import search
from pts.types import Ids

from .scripted import ScriptedEngine, judge_odd, problems

CONFIG = SearchConfig(
    filter_rollouts=8, max_rollouts=60, confirm_rollouts=16, fdr=0.5, p_min=0.05, p_max=0.95
)


class DyingEngine(ScriptedEngine):
    """Writes each seed to `asked` before it draws."""

    def __init__(self, asked: Path, requests: int | None, seconds: float) -> None:
        super().__init__(max_new_tokens=8, width=5)
        self._asked = asked.open("a", buffering=1)
        self._left, self._seconds = requests, seconds

    def sample(
        self, requests: Iterator[SampleRequest | None]
    ) -> Iterator[tuple[SampleRequest, list[Ids]]]:
        for request, completions in super().sample(requests):
            self._asked.write(" ".join(map(str, request.seeds)) + "\n")
            if self._left is not None:
                time.sleep(0.0005)
                self._left -= 1
                if self._left == 0:
                    Timer(self._seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
            yield request, completions


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    requests, seconds = (int(sys.argv[2]), float(sys.argv[3])) if len(sys.argv) > 2 else (None, 0.0)
    engine = DyingEngine(folder / "asked.txt", requests, seconds)
    search(problems(20), engine, judge_odd, CONFIG, output=folder, window=4)
