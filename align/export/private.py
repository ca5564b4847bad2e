"""What a published text must not tell: folders of a machine, credentials."""

from __future__ import annotations

import re

_PART = r"[^\s/'\",:;<>()|`]+"
_HOME = re.compile(rf"(?:file://|(?<![\w./…]))/(?:home|Users)/{_PART}(?![\w/])")
_FOLDERS = re.compile(rf"(?:file://(?=/)|(?<![\w./…]))(?:~\w*|/{_PART})/(?:{_PART}/)*")
"""The folders of an absolute path, its last part excepted; none inside a URL."""
_LOGIN = re.compile(r"(?<=://)[^\s/@]+@")
_KEY = re.compile(r"(--?(?:api-?)?(?:key|token|password)[=\s]+)[^\s'\",]+", re.IGNORECASE)
_TOKEN = re.compile(r"\b(?:hf|sk|pk|ghp)[-_][A-Za-z0-9_-]{16,}")


def redacted(text: str) -> str:
    """The text with `…/` for folders of absolute paths, and `…` for logins, keys and tokens.

    Relative paths and URLs stay: `/home/ann/data/chats.jsonl` becomes `…/chats.jsonl`.
    """
    for pattern, said in (
        (_LOGIN, "…@"),
        (_KEY, r"\1…"),
        (_TOKEN, "…"),
        (_HOME, "…"),
        (_FOLDERS, "…/"),
    ):
        text = pattern.sub(said, text)
    return text
