"""The journal of a model's calls: every reply as it came, under a digest of what was asked.

It survives a kill at any byte, and a call that it holds is never made again. Replies are kept as
text, so that a person can look what a judge said of which answer's faults.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType

from pydantic import TypeAdapter, ValidationError

from align.judging.calls import Said
from pts.errors import JournalError
from pts.files import complete_lines, damaged, dumps, write_all

FORMAT = 1
"""Version of the file."""

_SAID = TypeAdapter(Said)


class CallJournal:
    """Replies by the digest of their call; with a `path`, kept in that file."""

    def __init__(self, path: Path | None = None) -> None:
        """Create the file, or read it to go on.

        Raises JournalError if it is damaged, or of another format.
        """
        self.path = path
        self._said: dict[str, Said] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            for number, _, line in complete_lines(path):
                self._read(path, number, json.loads(line))
        self._file = path.open("ab", buffering=0)
        if not self._file.tell():
            write_all(self._file, (dumps({"format": FORMAT}) + "\n").encode())

    def _read(self, path: Path, number: int, entry: dict[str, object]) -> None:
        if number == 1:
            if entry != {"format": FORMAT}:
                raise JournalError(
                    f"{path}: its format is {entry.get('format')!r}, this version writes {FORMAT}; "
                    "move the file away to ask the judge anew"
                )
            return
        try:
            self._said[str(entry.pop("call"))] = _SAID.validate_python(entry)
        except (KeyError, ValidationError) as error:
            raise damaged(path, number, f"it tells of no call: {type(error).__name__}") from None

    def get(self, call: str) -> Said | None:
        """What came back from a call that was made before."""
        return self._said.get(call)

    def put(self, call: str, said: Said) -> None:
        """Record what came back."""
        self._said[call] = said
        if self.path is not None:
            entry = {"call": call, **_SAID.dump_python(said, exclude_defaults=True)}
            write_all(self._file, (dumps(entry) + "\n").encode())

    def __enter__(self) -> CallJournal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.path is not None:
            self._file.close()
