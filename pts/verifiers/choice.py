"""A verifier for multiple choice: reads the letter that a completion settles on.

    verifier = ChoiceVerifier("ABCD")

What a completion says is read statement by statement (`_statements`):

* **Declarations** outrank everything: \\boxed{C}, <answer>C</answer>, "the answer is C", "the
  correct option would be C", "answer: C" in some thirty languages. The last one counts.
* **Conclusions** count where there is no declaration: "so it must be C.", "C is correct", "I choose
  C", "it's C.", a letter alone on the first or last line ("C", "C) 42 km").
* **Corrections** ("wait", "actually", "that is wrong") make what was said before them stale: what
  is said after them counts, be it a declaration or a conclusion.

No answer is what names several letters ("A or B"), and what was taken back. What is denied,
supposed, reported or asked declares nothing ("the answer is not C", "some say the answer is C", "is
the answer C?"), nor do the options listed again, a letter in a formula ("B = 5"), the article "A",
the pronoun "I", or what stands in <think>. Small letters count where no word can be meant. Markup,
brackets, quotes, full-width letters and the option's text behind a letter do not matter.

Not covered: completions that repeat the option's text instead of its letter.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from pts.errors import ConfigError
from pts.types import Grade, Problem, Verdict
from pts.verifiers.thinking import after_thinking

MOST_TEXT = 20_000
"""Characters that are read, from the end of a completion: the answer is there."""

_OPEN, _CLOSE, _SEVERAL, _FIRST = "\ue000", "\ue001", "\ue002", 0xE010
"""Characters of no script: ends of \\boxed{...} and <answer>...</answer>, a list of letters, the
first option's letter."""
_X = "[\ue002\ue010-\ue030]"
_ANY_MARK = "[\ue000-\ue030]"
_WORD = "A-Za-z0-9_À-ɏͰ-ӿ"
"""What a letter may be a part of; scripts without blanks between words are not among it."""
_BRACKETS = r"[(\[<'~]{0,4}"

_ANSWER = (  # in the languages of MMLU's translations and more
    r"(?:\b(?:answer|ans\.?|antwort|lösung|réponse|respuesta|risposta|resposta|antwoord|odpowiedź|odpověď"
    r"|svar|svaret|vastaus|válasz|răspuns(?:ul)?|cevap|yanıt|ответ|відповідь|απάντηση|jawaban"
    r"|đáp án|jibu|ìdáhùn|idahun|उत्तर|উত্তর|الإجابة|إجابة|الجواب|תשובה)(?![a-z])"
    r"|答案|正解|答え|回答|解答|答|คำตอบ|정답|답변|답)"
)
_NAMED = (
    r"(?:\b(?:option|choice|letter|solution|correct|final|selection|opción|opzione|opção"
    r"|lettre|letra)(?![a-z])|选项|選項|選択肢)"
)
"""Words that declare only with a verb or a colon: "option C would be too large" does not."""
_BE = (
    r"(?:\b(?:is|was|would be|will be|must be|should be|has to be|must therefore be"
    r"|(?:seems|appears) to be|ist|lautet|wäre|est|serait|es|sería|è|sarebbe|é|seria|jest|je|är|er"
    r"|on|este|это|adalah|là|ni|है|হল|হলো|هي|هو|היא|to)(?![a-z])|应该是|應該是|是|为|為|は|คือ|는|은)"
)
_FILLER = (
    r"(?:(?:\b(?:the|that|la|el|le|il|die|definitely|clearly|therefore|thus|then|indeed|actually"
    r"|simply|most|likely|probably|option|choice|letter|answer|number|correct|right|best|final"
    r"|correcta|correcte|corretta|correta|juiste|richtige|yang benar|đúng|সঠিক|الصحيحة|lettre|letra"
    r"|lettera|buchstabe|a letra|a opção|a alternativa)(?![a-z])|选|選|选项|[\s:=→>#-])){0,12}"
)
_GAP = f"[^,.!?\\n:;{_ANY_MARK[1:-1]}]"
_END = (
    rf"(?=[)\]'~]{{0,4}}\s*(?:[.!—–\n{_CLOSE}]|\Z|,? (?:because|since|as|for)\b"
    r"| है| ?です| ?입니다))"
)
_DECLARES = re.compile(
    rf"{_OPEN}\s{{0,4}}(?:the |final |answer |option |choice |is |: ?){{0,4}}(?P<boxed>{_X})"
    r"(?!\s*(?:\?|is wrong))"
    rf"|(?:{_ANSWER}|{_NAMED}(?=[^.\n]{{0,30}}?(?:{_BE}|:)))"
    rf"(?P<gap>(?:,{_GAP}{{0,25}},)?{_GAP}{{0,40}}?)(?:{_BE}|:|-|—|=){_FILLER}(?P<said>{_X})"
    rf"(?![)\]]? (?:(?:only )?(?:if|unless)|is (?:wrong|incorrect|not))\b)"
    rf"|{_ANSWER}{_FILLER}(?P<bare>{_X}){_END}"
    rf"|#### {_FILLER}(?P<hashes>{_X})",
    re.IGNORECASE,
)
_CONCLUDES = re.compile(
    rf"(?:(?<!if )\b(?:so|thus|hence|therefore|consequently|then|leav(?:es|ing)|also|donc|luego"
    rf"|quindi|portanto)\b,?|因此|所以|\b(?:it|this|that|which)(?:'s| is| must be"
    rf"| has to be| should be)\b|\b(?:corresponds? to|matches|i\.e\.,?|namely)\b"
    rf"|\b(?:actually|no|correction|wait)\b[,:]?)"
    rf"(?:\s+(?:it|this|that))?(?:\s*{_BE})?{_FILLER}(?P<then>{_X}){_END}"
    rf"|(?:\b(?:i|we)(?:'ll|'d| will| would| should| must)? (?:pick|choose|select|go with|opt for"
    rf"|believe it's)|(?:^|[.!]\s+|\n\s*)(?:select|choose|pick|let's go with|final)|\bgoing with"
    rf"|选择?|選擇?){_FILLER}(?P<picked>{_X})(?! as (?!the answer)| to )"
    rf"|\b(?:not|nicht|no es|non è|n'est pas|pas|不是)\s*{_X},? ?(?:but|rather|it is|it's|sondern"
    rf"|sino|mais|ma|而是){_FILLER}(?P<instead>{_X})"
    rf"|(?<!{_X}, )(?P<right>{_X})[)\]'~]{{0,4}}(?:\s*(?:✅|✔|✓)|:? ?correct\b(?! only| if)"
    rf"| (?:is|must be|would be|seems to be|ist|est|es|è|é)(?: (?:clearly|therefore|thus|indeed|the"
    rf"|most|only|die|la|le|a)){{0,4}} (?:correct|right|best|answer|likely|option|choice|richtige?"
    rf"|correcte|correcta|corretta|correta)\b(?! only| if)|(?:が|は)正(?:解|しい))"
    rf"|\bis (?P<bracketed>{_X})\)|\bonly (?P<only>{_X}) (?:works|fits|is)\b",
    re.IGNORECASE | re.MULTILINE,
)
_CORRECTS = re.compile(
    r"\b(?:wait|actually|correction|scratch that|on second thought|hmm|(?:was|made|is) a mistake"
    r"|my mistake|mistaken|reconsider"
    r"|however|turned out|that(?:'s| is) (?:wrong|incorrect|not right)|this is wrong)\b"
    r"|(?:^|[.!?]\s+|\n\s*)no\b[,.]?|->",
    re.IGNORECASE,
)
_REVOKES = re.compile(
    r"\b(?:wrong|incorrect|mistake|mistaken|not right|turned out|scratch that|correction)\b"
    r"|(?:^|[.!?]\s+|\n\s*)no\b|->",
    re.IGNORECASE,
)
_UNSURE = re.compile(
    r"\b(?:not|never|none|cannot|no way|neither|nor|unless|if|whether|suppos\w+|assum\w+|imagine"
    r"|doubt\w*|might|may|could|false|wrong|incorrect|students?|people|some|one would|thought"
    r"|at first|first glance|initially|mistake|tempt\w+|nicht|kein\w*|falls|wenn|pas"
    r"|no es|non è|não|не)\b"
    r"|n['’]t\b|不|如果|아니",
    re.IGNORECASE,
)
"""In a clause before a declaration, or inside it: denied, supposed, reported or possible."""
_REPORTED = re.compile(
    r"\b(?:at first|first glance|initially|thought|first answer)\b", re.IGNORECASE
)
"""In the sentence of a declaration: it is about an earlier opinion."""
_CLAUSE = re.compile(
    r"[.,;:!?\n。！？，；：、]| [-—–] |\b(?:so|thus|therefore|hence|then|and|but)\b", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"[.!?\n。！？]")
_MARKUP = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mathit|operatorname|emph|bf|rm|left|right)"
    r"(?![a-z])|\\[()\[\],;!]|[{}$*`\"“”„«»「」『』\u200b-\u200f|]|__"
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,4}\{|[{}]")
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_NO_LETTER = r"(?!\s{0,2}(?:[=+^≈≤≥∪∩→]|\\(?!\s)|->|_[A-Za-z0-9{]|-[A-Za-z0-9]))"
"""Behind a letter: it is a part of a formula."""
_PROSE = re.compile(
    r" (?!(?:because|since|as|for|by|with|which|and|or|due|instead|is|was|would|can|cannot|could"
    r"|must|should|seems|rather|not|but|only|correct|best|fits|works)\b)[a-z]"
    r"|,? (?:am|would|think|do|being|as)\b(?! it| the)"
)
"""Behind an A or an I: it is the article or the pronoun."""
_LIST = re.compile(
    rf"{_X}[)\].']{{0,3}}(?:\s*(?:[,;/&+]|\b(?:and|or|oder|und|possibly|maybe)\b|或|和|、|\()){{1,3}}"
    rf"\s*(?:option )?{_X}"
    rf"(?:[)\].']{{0,3}}(?:\s*(?:[,;/&+]|\b(?:and|or|oder|und)\b|或|和|、))+\s*{_X})*"
    rf"(?![)\]']{{0,3}} (?!are\b|or\b|and\b|both\b)[a-z])|{_X} +{_X}(?![)\]])|{_X} or\s*\Z"
    rf"|{_X}[)\].']{{0,3}},? or (?:option )?{_X}",
    re.IGNORECASE,
)
_TWO_BOXES = re.compile(rf"{_OPEN}{_X}{_CLOSE}(?:[\s,]|and|or){{1,3}}{_OPEN}{_X}{_CLOSE}")
_ITEM = re.compile(rf"(?:(?<=\n)|\A|(?<=[,;] ))[ \t#>-]{{0,6}}({_X})[)\].:]{{1,2}}\s(?!\s*{_X})")
_INLINE = re.compile(rf"(?<=\s)({_X})[)\].:]{{1,2}}\s(?!\s*{_X})")
_GRADED = re.compile(rf"({_X})[)\].:]{{0,2}} ?(?:✅|✔|✓|correct\b(?! only| if))", re.IGNORECASE)
"""An option of a list that is marked as right."""
_EDGE = r"[^\w\ue000-\ue030]{0,8}"


@dataclass(frozen=True, slots=True)
class _Statement:
    """A letter that a completion settles on at a place, declared or concluded."""

    end: int
    letter: str
    strong: bool


class ChoiceVerifier:
    """Compares the letter that a completion settles on with the reference ("C", "(C)" or "C. 42").

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
            rf"(?<![{_WORD}'’\\.-]){_BRACKETS}(?:([{options}])(?![{_WORD}’]|'[a-z]){_NO_LETTER}"
            rf"|([{small}])(?=[)\]{_CLOSE}]|[.,;!]?\n|[.,;!](?!\w))|(?<=[:(\[] )([{small}])\Z)"
        )

    def __call__(self, problem: Problem, text: str) -> Grade:
        expected = self._reference(problem.reference)
        if expected is None:
            reason = f"reference of {problem.id}: {problem.reference!r} is none of {self.options}"
            return Grade(Verdict.UNSCORED, reason=reason)
        found = self._choice(_plain(after_thinking(text)[-MOST_TEXT:]))
        if not found:
            return Grade(Verdict.FAIL, reason="no letter declared")
        if found == _SEVERAL:
            return Grade(Verdict.FAIL, reason="several letters declared")
        letter = self.options[ord(found) - _FIRST]
        if letter == expected:
            return Grade(Verdict.PASS, letter)
        return Grade(Verdict.FAIL, letter, f"expected {expected}")

    def _reference(self, text: str) -> str | None:
        text = _plain(text[:MOST_TEXT]).strip()
        found = re.fullmatch(r"[(\[]?([A-Za-z])(?:[)\].:]{0,2}|[)\].:]{1,2}\s.*)", text, re.DOTALL)
        letter = found[1].upper() if found else ""
        return letter if letter and letter in self.options else None

    def _choice(self, text: str) -> str:
        """The character of the letter that a text settles on; empty without one."""
        small = self.options.lower()
        alone = re.fullmatch(rf"\s*[(\[']?([{small}])(?:\W*|[).:]\s.*)", text, re.DOTALL)
        if alone:
            return self._mark(alone[1])
        text = self._marked(text)
        graded = {match[1] for match in _GRADED.finditer(text)}
        text = _without_lists(_LIST.sub(_SEVERAL, text))
        if _TWO_BOXES.search(text):
            return _SEVERAL
        said = _statements(text)
        corrected = [cue for cue in _CORRECTS.finditer(text) if said and cue.start() > said[0].end]
        if corrected:
            cue = next((c for c in corrected if not _restated(said, c.start())), corrected[-1])
            after = [statement for statement in said if statement.end > cue.start()]
            last = _settled(after) or _alone(text[cue.end() :], last_only=True)
            if last or _REVOKES.search(text[said[-1].end :]):
                return last
        return _settled(said) or _alone(text) or (graded.pop() if len(graded) == 1 else "")

    def _marked(self, text: str) -> str:
        """Text with each letter of an option as one character."""

        def mark(match: re.Match[str]) -> str:
            letter = next(filter(None, match.groups()))
            prose = letter in "AI" and _PROSE.match(text, match.end())
            return match[0] if prose else self._mark(letter)

        return self._letter.sub(mark, text)

    def _mark(self, letter: str) -> str:
        return chr(_FIRST + self.options.index(letter.upper()))


def _restated(said: list[_Statement], place: int) -> bool:
    """Whether something is declared after a place: then it is no longer the last word."""
    return any(statement.strong and statement.end > place for statement in said)


def _settled(said: list[_Statement]) -> str:
    """The last declaration, or without one the last conclusion."""
    strong = [statement for statement in said if statement.strong]
    return (strong or said)[-1].letter if said else ""


def _statements(text: str) -> list[_Statement]:
    """Declarations and conclusions that are neither denied nor asked, in their order."""
    found = []
    for pattern, strong in ((_DECLARES, True), (_CONCLUDES, False)):
        for match in pattern.finditer(text):
            kind = match.lastgroup or ""
            if kind != "boxed" and (_is_unsure(text, match) or _is_asked(text, match.end())):
                continue
            found.append(_Statement(match.end(), match[kind], strong))
    return sorted(found, key=lambda statement: statement.end)


def _is_unsure(text: str, match: re.Match[str]) -> bool:
    sentence = _SENTENCE_END.split(text[max(0, match.start() - 200) : match.start()])[-1]
    before = _CLAUSE.split(sentence)[-1]
    if _REPORTED.search(re.split(r"\bbut\b|, and\b", sentence)[-1] + match[0]):
        return True
    groups = match.groupdict()
    if groups.get("instead"):
        return False
    gap = groups.get("gap") or ""
    return bool(_UNSURE.search(before) or _UNSURE.search(gap) or re.search(r"\bno$", gap.strip()))


def _is_asked(text: str, place: int) -> bool:
    end = _SENTENCE_END.search(text, place)
    return end is not None and end[0] in "?？"


def _without_lists(text: str) -> str:
    """Text in which options that are listed one after the other are no letters any more."""
    listed = {
        place
        for pattern, least in ((_ITEM, 2), (_INLINE, 3))
        for run in _runs([(match.start(1), match[1]) for match in pattern.finditer(text)])
        for place, _ in run
        if len(run) >= least
    }
    return "".join("·" if place in listed else c for place, c in enumerate(text))


def _runs(items: list[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Items in pieces whose letters follow one another."""
    run: list[tuple[int, str]] = []
    for place, letter in items:
        if run and ord(letter) != ord(run[-1][1]) + 1:
            yield run
            run = []
        run.append((place, letter))
    yield run


def _alone(text: str, last_only: bool = False) -> str:
    """The letter of a first or last line that is a letter, or a letter and its option's text."""
    lines = [line for line in text.splitlines() if line.strip()]
    found = [
        re.match(
            rf"{_EDGE}({_X})[)\].:']{{0,3}}(?:\s*\Z|(?<=[)\].:])\s+(?!{_X})\S"
            rf"|\s*[,—–-]?\s*(?:because|since|as)\b)",
            line,
        )
        for line in lines
    ]
    heads = [head[1] for head in found if head]
    if len(set(heads)) == 1 and (found[-1] or (found[0] and not last_only)):
        return heads[0]
    last = re.fullmatch(rf"{_EDGE}({_X})[)\].\s]{{0,4}}", lines[-1]) if lines else None
    single = heads.count(last[1]) == 1 and len(heads) <= 2 if last else False
    return last[1] if last and (single or len(set(heads)) == 1) else ""


def _plain(text: str) -> str:
    """Text without markup; \\boxed{...} and <answer> become brackets of their own."""
    text = re.sub(_ANY_MARK, "", unicodedata.normalize("NFKC", text))
    text = re.sub(r"\n\s*\n", "\n\n", re.sub(r"[^\S\n]+", " ", text))
    text = _TAG.sub(lambda tag: _CLOSE if tag[1] else _OPEN, text)
    boxes: list[bool] = []

    def bracket(match: re.Match[str]) -> str:
        """Which braces are a box's: those that close what it opened."""
        if match[0] == "}":
            return _CLOSE if boxes and boxes.pop() else ""
        boxes.append(match[0] != "{")
        return _OPEN if boxes[-1] else ""

    return _MARKUP.sub("", _BOX.sub(bracket, text))


def _capitals(options: str) -> bool:
    return options.isascii() and options.isalpha() and options.isupper()
