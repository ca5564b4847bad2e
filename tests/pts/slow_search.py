"""A search to be killed: `python -m tests.pts.slow_search FOLDER SECONDS_PER_WISH`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pts.api import search
from pts.config import SearchConfig
from pts.engines.base import Wish
from pts.types import Ids

from .scripted import ScriptedEngine, judge_odd, problems

CONFIG = SearchConfig(
    filter_rollouts=8, max_rollouts=60, confirm_rollouts=16, fdr=0.5, p_min=0.05, p_max=0.95
)


class SlowEngine(ScriptedEngine):
    """Writes each seed to `asked` before it draws, and takes its time."""

    def __init__(self, asked: Path, delay: float) -> None:
        super().__init__(max_new_tokens=8, width=5)
        self._asked, self._delay = asked.open("a", buffering=1), delay

    def sample(self, wishes: Iterator[Wish | None]) -> Iterator[tuple[Wish, list[Ids]]]:
        for wish, completions in super().sample(wishes):
            self._asked.write(" ".join(map(str, wish.seeds)) + "\n")
            time.sleep(self._delay)
            yield wish, completions


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    engine = SlowEngine(folder / "asked.txt", float(sys.argv[2]))
    search(problems(12), engine, judge_odd, CONFIG, output=folder, window=4)
