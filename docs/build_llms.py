"""Write llms.txt: the pages of the docs, each with its first sentence, for language models.

The pages, their titles and order are those of docs/README.md; the form is that of llmstxt.org.
"""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parent
TARGET = DOCS.parent / "llms.txt"


def files() -> dict[Path, str]:
    """What `python docs/build.py` writes for this part."""
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    lines = ["# three-stage", "", f"> {first_sentence(readme)}"]
    for line in index.splitlines():
        if section := re.match(r"\*\*(.+)\*\*$", line):
            lines += ["", f"## {section[1]}", ""]
        elif page := re.match(r"- \[(.+?)\]\((.+\.md)\)", line):
            said = first_sentence((DOCS / page[2]).read_text(encoding="utf-8"))
            lines.append(f"- [{page[1]}](docs/{page[2]}): {said}")
    return {TARGET: "\n".join(lines) + "\n"}


def first_sentence(page: str) -> str:
    """The first sentence of a page's first paragraph, on one line and without emphasis."""
    paragraphs = re.split(r"\n\s*\n", re.sub(r"```.*?```", "", page, flags=re.DOTALL))
    text = next(p for p in paragraphs if re.match(r"[^\W\d_]|[`*\[]", p.strip()))
    joined = " ".join(text.replace("**", "").split())
    found = re.match(r".*?[.:](?=\s+[A-Z`\[-]|$)", joined)
    sentence = found[0] if found else joined
    return re.sub(r"\[(.*?)\]\(.*?\)", r"\1", sentence).rstrip(":.") + "."
