"""A verifier for multiple choice: reads the letter that a completion settles on.

    verifier = ChoiceVerifier("ABCD")

**Declarations** outrank mentions, and the last one counts: \\boxed{C}, <answer>C</answer>, "the
answer is C", "the correct option would be C", "C is correct", "I choose C", "so it must be C." and
"answer:" in some thirty languages. Markup, brackets and quotes around the letter, the option's text
behind it, full-width letters and colons do not matter. Without a declaration, a letter alone on the
last or the first line counts ("C", "C) 42 km"), unless lines with other letters make a list of it.

**No answer** is what names several letters ("A or B"), and a letter that is taken back later ("C is
wrong", "it cannot be C"). What is denied, supposed, possible or asked declares nothing: "the answer
is not C", "if the answer is C", "is the answer C?". Small letters count where no word can be meant:
in brackets, before punctuation, alone on a line. A capital A before a plain word is the article.

Not covered: completions that repeat the option's text instead of its letter.
"""

from __future__ import annotations

import re
import unicodedata

from pts.errors import ConfigError
from pts.types import Grade, Problem, Verdict

_OPEN, _CLOSE, _SEVERAL, _FIRST = "\ue000", "\ue001", "\ue002", 0xE010
"""Characters of no script: the ends of \\boxed{...} and <answer>...</answer>, a list of letters,
and the first option's letter."""
_WORD = "A-Za-z0-9_À-ɏͰ-ӿ"
"""What a letter is a part of; scripts without blanks between words are not among it."""
_LETTER = "[\ue002\ue010-\ue030]"

_ANSWER = (  # of the languages of MMLU's translations and more; words between blanks
    r"\b(?:answer|solution|antwort|lösung|réponse|respuesta|risposta|resposta|antwoord|odpowiedź"
    r"|odpověď|svar|svaret|vastaus|válasz|răspuns(?:ul)?|cevap|yanıt|ответ|відповідь|απάντηση"
    r"|jawaban|đáp án|jibu|ìdáhùn|idahun|उत्तर|উত্তর|الإجابة|إجابة|الجواب|תשובה)(?![a-z])"
    "|答案|正解|答え|回答|解答|答|คำตอบ|정답|답변|답"
)
_OPTION = r"\b(?:option|choice|opción|opzione|opção)\b|选项|選項|選択肢"
"""A letter right behind one of these is a mention: "option C would be too large"."""
_IS = r"(?:\b(?:is|was|would be|must be|should be|has to be|es|è|é)\b|是|为|為|は|:)"
_FILLER = (
    r"(?:\b(?:is|was|would be|must be|should be|will be|has to be|(?:seems|appears) to be|the|that"
    r"|it|la|el|le|il|definitely|clearly|therefore|thus|then|indeed|actually|option|choice|letter"
    r"|answer|correct|right|best|final|ist|lautet|wäre|die|est|es|sería|correcta|correcte|è"
    r"|corretta|é|seria|correta|juiste|to|je|är|er|on|este|это|adalah|yang benar|là|đúng|ni|है|হল"
    r"|হলো|সঠিক|الصحيحة|هي|هو|היא)(?![a-z])"
    r"|应该|應該|是|为|為|は|选|選|คือ|는|은|[\s:=→>#—-])*"
)
_SO = (
    r"(?:(?<!if )\b(?:so|thus|hence|therefore|consequently|leav(?:es|ing)|also|donc|luego|quindi"
    r"|portanto)\b,?|因此|所以)"
)
_PICK = (
    r"(?:\b(?:i|we)(?:'ll|'d| will| would| should| must)? (?:pick|choose|select|go with|opt for)\b"
    r"|\bgoing with\b|选择?|選擇?)"
)
_RIGHT = (
    r"[)\]]* (?:is|ist|est|es|è|é)(?: (?:clearly|therefore|thus|indeed|the|die|la|le|a))*"
    r" (?:correct|right|true|best|answer|richtige?|correcte|correcta|corretta|correta)\b(?! if)"
)
_DECLARED = re.compile(
    rf"(?:{_OPEN}\s*|(?:{_ANSWER}){_FILLER}|(?:{_OPTION})\s*{_IS}{_FILLER}|{_PICK}{_FILLER}"
    rf"|#### )(?P<letter>{_LETTER})(?!\W*\?)"
    rf"|\bnot {_LETTER},? (?:but|rather|it is|it's|sondern){_FILLER}(?P<instead>{_LETTER})"
    rf"|{_SO}{_FILLER}(?P<then>{_LETTER})(?=[)\]]*\s*(?:[.,;!—–]|\n|\Z))"
    rf"|(?P<right>{_LETTER}){_RIGHT}",
    re.IGNORECASE,
)
_NOT = r"(?:(?:not|n't|n’t| not| never)\b)"
_TAKEN_BACK = re.compile(
    rf"\b(?:answer|option|choice|it|that)(?:'s| is| can| could| must)?{_NOT}(?: be)?{_FILLER}"
    rf"(?P<letter>{_LETTER})"
    rf"|(?P<wrong>{_LETTER})[)\]]* (?:is|was|can|must)(?:{_NOT}| (?:wrong|incorrect|false|out)\b)",
    re.IGNORECASE,
)
_UNSURE = re.compile(
    r"\b(?:not|never|cannot|none|neither|nor|if|suppos\w+|assum\w+|imagine|whether|unless|doubt\w*|might"
    r"|may|could|tempt\w+|nicht|kein\w*|falls|wenn|pas|no es|non è|não|не)\b|n['’]t\b|不|如果|아니",
    re.IGNORECASE,
)
"""In a sentence before a declaration: what follows is denied, supposed or possible."""
_SENTENCE = re.compile(r"[.!?;:\n。！？]")
_MARKUP = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mathit|operatorname|emph|bf|rm|left|right)"
    r"(?![a-z])|\\[()\[\],;!]|[{}$*`\"“”„«»「」『』\u200b-\u200f]|__"
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)


class ChoiceVerifier:
    """Compares the letter that is declared last with the reference ("C", "(C)", "c" or "C. 42").

    `options` are the letters that may be chosen. Raises ConfigError unless they are two or more
    distinct capitals. A reference that is none of them is UNSCORED; so is a number, for some data
    sets count from 0 and others from 1.
    """

    def __init__(self, options: str = "ABCD") -> None:
        if len(set(options)) != len(options) or len(options) < 2 or not _capitals(options):
            raise ConfigError(f"options must be distinct capital letters, got {options!r}")
        self.options = options
        small = options.lower()
        # A small letter at the very end may be the beginning of a word that was cut off.
        self._letter = re.compile(
            rf"(?<![{_WORD}'’\\.-])[(\[<']*(?:([{options}])(?![{_WORD}'’])|([{small}])(?=[)\]{_CLOSE}]"
            rf"|[.,;!]?\n|[.,;!](?!\w))|(?<=[(\[])([{small}])(?=[)\]]))"
        )

    def __call__(self, problem: Problem, text: str) -> Grade:
        expected = self._reference(problem.reference)
        if expected is None:
            reason = f"reference of {problem.id}: {problem.reference!r} is none of {self.options}"
            return Grade(Verdict.UNSCORED, reason=reason)
        found = self._choice(_plain(text))
        if not found:
            return Grade(Verdict.FAIL, reason="no letter declared")
        if found == _SEVERAL:
            return Grade(Verdict.FAIL, reason="several letters declared")
        letter = self.options[ord(found) - _FIRST]
        if letter == expected:
            return Grade(Verdict.PASS, letter)
        return Grade(Verdict.FAIL, letter, f"expected {expected}")

    def _reference(self, text: str) -> str | None:
        found = re.fullmatch(r"[(\[]*([A-Za-z])(?:[)\].:]*|[)\].:]+\s.*)", _plain(text).strip())
        letter = found[1].upper() if found else ""
        return letter if letter and letter in self.options else None

    def _choice(self, text: str) -> str:
        """The character of the letter that a text settles on; empty without one."""
        alone = re.fullmatch(rf"\s*[(\[']*([{self.options.lower()}])(?:\W*|[).:]\s.*)", text)
        if alone:
            return self._mark(alone[1])
        text = self._marked(text)
        declared = [
            (match.end(), match[match.lastgroup or 0])
            for match in _DECLARED.finditer(text)
            if match["then"]
            or match["instead"]
            or not _UNSURE.search(_SENTENCE.split(text[: match.start()])[-1])
        ]
        taken = {(m[m.lastgroup or 0], m.end()) for m in _TAKEN_BACK.finditer(text)}
        standing = [x for end, x in declared if not any(x == y and end < at for y, at in taken)]
        if declared:
            return standing[-1] if standing else ""
        return _alone(text)

    def _marked(self, text: str) -> str:
        """Text with each letter of an option, and each list of letters, as one character."""

        def mark(match: re.Match[str]) -> str:
            letter = next(filter(None, match.groups()))
            rest = text[match.end() :]
            return match[0] if letter == "A" and _ARTICLE.match(rest) else self._mark(letter)

        return _LIST.sub(_SEVERAL, self._letter.sub(mark, text))

    def _mark(self, letter: str) -> str:
        return chr(_FIRST + self.options.index(letter.upper()))


_ARTICLE = re.compile(
    r" (?!(?:because|since|as|for|by|with|which|and|or|due|instead|is|was|would|can|cannot|could"
    r"|rather|not|but)\b)[a-z]"
)
_LIST = re.compile(
    rf"{_LETTER}(?:[)\].]*\s*(?:,(?:\s*(?:or|and)\b)?|/|&|\bor\b|\band\b|\boder\b|\bund\b|或|和|、)"
    rf"\s*(?:option )?{_LETTER})+(?![)\]]* (?:is|was|are|would|can|could|does|has)\b)",
    re.IGNORECASE,
)


_EDGE = r"[^\w\ue000-\ue030]*"


def _alone(text: str) -> str:
    """The letter of a first or last line that is a letter, or a letter and its option's text."""
    lines = [line for line in text.splitlines() if line.strip()]
    heads = [
        re.match(rf"{_EDGE}({_LETTER})[)\].:]*(?:\s*\Z|(?<=[)\].:])\s+(?!{_LETTER})\S)", x)
        for x in lines
    ]
    found = {head[1] for head in heads if head}
    if len(found) == 1 and (heads[0] or heads[-1]):
        return found.pop()
    last = re.fullmatch(rf"{_EDGE}({_LETTER})[)\].\s]*", lines[-1]) if lines else None
    return last[1] if last else ""


def _plain(text: str) -> str:
    """Text without markup; \\boxed{...} and <answer> become brackets of their own."""
    text = re.sub("[\ue000-\ue030]", "", unicodedata.normalize("NFKC", text))
    text = _TAG.sub(lambda tag: _CLOSE if tag[1] else _OPEN, text)
    while box := _BOX.search(text):
        depth, end = 1, box.end()
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        inner = text[box.end() : end].removesuffix("}")
        text = f"{text[: box.start()]}{_OPEN}{inner}{_CLOSE}{text[end:]}"
    return _MARKUP.sub("", text)


def _capitals(options: str) -> bool:
    return options.isascii() and options.isalpha() and options.isupper()
