"""A verifier for multiple choice: reads the letter that a completion settles on.

    verifier = ChoiceVerifier("ABCD")

A letter counts where it is declared: in \\boxed{C}, after "answer is", "answer:" or "option"
(with or without brackets and asterisks), or alone on the last line. Declared letters are capitals,
so that "the answer is a matter of taste" declares nothing. The last declaration counts. Not
covered: completions that repeat the option's text instead of its letter.
"""

from __future__ import annotations

import re

from pts.errors import ConfigError
from pts.types import Grade, Problem, Verdict


class ChoiceVerifier:
    """Compares the last declared letter with the reference ("C", "(C)" or "C.").

    `options` are the letters that may be chosen. Raises ConfigError unless they are two or more
    distinct capitals. A reference that is none of them is UNSCORED.
    """

    def __init__(self, options: str = "ABCD") -> None:
        if len(set(options)) != len(options) or len(options) < 2 or not _capitals(options):
            raise ConfigError(f"options must be distinct capital letters, got {options!r}")
        self.options = options
        letter = rf"[*(\s]*([{options}])(?![\w'’])"
        declared = rf"\\boxed\{{\s*(?:\\text\{{)?{letter}"
        said = rf"(?i:\banswer(?:\s+is)?\s*:?|\boption){letter}"
        alone = rf"(?:\A|\n)[*(\s]*([{options}])[*).\s]*\Z"
        self._pattern = re.compile(f"{declared}|{said}|{alone}")

    def __call__(self, problem: Problem, text: str) -> Grade:
        expected = problem.reference.strip().strip("().")
        if len(expected) != 1 or expected not in self.options:
            reason = f"reference of {problem.id}: {problem.reference!r} is none of {self.options}"
            return Grade(Verdict.UNSCORED, reason=reason)
        found = [next(filter(None, match)) for match in self._pattern.findall(text)]
        if not found:
            return Grade(Verdict.FAIL, reason="no letter declared")
        if found[-1] == expected:
            return Grade(Verdict.PASS, found[-1])
        return Grade(Verdict.FAIL, found[-1], f"expected {expected}")


def _capitals(options: str) -> bool:
    return options.isascii() and options.isalpha() and options.isupper()
