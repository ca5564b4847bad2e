"""The steps: what a model says of sources' rows becomes rows for SFT, DPO and searches.

Each takes the rows and a `Model`, and returns rows by the name of their file, with the fate of
every row (or of every sample) counted. Calls are journalled; a step that is run again makes none
twice.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from align.data.conversations import ConversationRow
from align.judging.asker import Asker, Prompt, spent
from align.judging.calls import Backend, Said
from align.judging.chat_answers import chat_answers
from align.judging.journal import CallJournal
from align.judging.judge import PromptedJudge
from align.judging.orders import judge_both, preference
from align.judging.prompt import Case
from align.judging.replies import Found
from align.synthesis import prompts
from align.synthesis.agreement import FATES, agree, answer_reader, passes
from align.synthesis.settings import SynthesisConfig
from pts.types import Message, Problem
from pts.verifiers.thinking import after_thinking

Row: TypeAlias = dict[str, Any]


@dataclass(slots=True)
class Made:
    """Rows by the name of their file, and what became of what."""

    files: dict[str, list[Row]]
    fates: dict[str, int]


@dataclass(slots=True)
class Model:
    """A model that is asked, and what it took so far."""

    backend: Backend
    journal: CallJournal
    config: SynthesisConfig
    name: str
    """Identity, for provenance."""
    progress: bool = False
    took: Counter[str] = field(default_factory=Counter)

    def answers(self, rows: Sequence[tuple[str, Sequence[Message]]], n: int) -> list[list[Said]]:
        """`n` answers to each conversation (id, messages)."""
        problems = [Problem(name, tuple(messages), "") for name, messages in rows]
        found = chat_answers(self.backend, self.journal, problems, n, self.progress)
        for said in (one for several in found for one in several):
            self.took.update(spent(said))
            self.took["cut"] += said.end == "length"
            self.took["refused"] += said.end == "refused"
            self.took["timed_out"] += said.end == "late"
            self.took["rejected"] += said.end == "rejected"
        return found

    def replies(
        self, asked: Sequence[Prompt], read: Callable[[str], tuple[Any, Found]], name: str
    ) -> list[Any]:
        """What was read of the reply to each prompt; None where nothing could be."""
        asker = Asker(
            self.backend, self.journal, self.config.attempts, prompts.VERSION, name, self.progress
        )
        found = asker.ask(asked, lambda prompt, text: read(text))
        self.took.update(asker.counts)
        return [value for value, _ in found]

    def about(self, row: ConversationRow, sample: int) -> Row:
        """Where a new row comes from."""
        origin = {"origin": row.row["provenance"]} if row.row.get("provenance") else {}
        return {
            "file": row.source,
            "row": row.number,
            "digest": row.digest,
            "step": self.config.step,
            "model": self.name,
            "sample": sample,
            **origin,
        }


def plurality(rows: Sequence[ConversationRow], model: Model) -> Made:
    """Questions on which the answers neither all agree nor all disagree, with the commonest one."""
    config, reader = model.config, answer_reader(model.config.answer)
    found = model.answers([(row.digest, row.messages) for row in rows], config.samples)
    fates, problems, chats = Counter[str](dict.fromkeys(FATES, 0)), list[Row](), list[Row]()
    for row, said in zip(rows, found, strict=True):
        together = agree(reader, [one.text if one.end == "stop" else None for one in said])
        fates[together.fate] += 1
        fates["answers_unread"] += together.unread
        if together.fate != "kept":
            continue
        label = together.votes[0]
        share = len(label.samples) / len(said)
        problems.append({
            "id": row.digest, "prompt": _turns(row.messages), "reference": label.answer,
            "share": share, "provenance": model.about(row, label.samples[0]),
        })  # fmt: skip
        for number in label.samples[: config.answers]:
            chats.append(_chat(row.messages, said[number].text, model.about(row, number)))
    return Made({"problems": problems, "sft": chats}, dict(fates))


def rewrite(rows: Sequence[ConversationRow], model: Model) -> Made:
    """New questions like the texts, none twice."""
    config = model.config
    asked = _sampled(
        rows, config.samples, lambda row: row.text, config.request, prompts.rewrite_prompt
    )
    said = model.replies([prompt for _, _, prompt in asked], prompts.read_question, "rewrite")
    fates, made = Counter[str](kept=0, identical=0, unread=0), list[Row]()
    known = {_plain(row.text) for row in rows}
    for (row, sample, _), text in zip(asked, said, strict=True):
        fate = "unread" if text is None else "identical" if _plain(text) in known else "kept"
        fates[fate] += 1
        if fate == "kept":
            known.add(_plain(text))
            made.append({"id": _name(text), "prompt": text, "provenance": model.about(row, sample)})
    return Made({"prompts": made}, dict(fates))


def reverse(rows: Sequence[ConversationRow], model: Model) -> Made:
    """Instructions that the texts answer; with `fidelity`, where the model's answer is alike."""
    config = model.config
    asked = _sampled(
        rows, config.samples, lambda row: row.text, config.request, prompts.reverse_prompt
    )
    said = model.replies([prompt for _, _, prompt in asked], prompts.read_instruction, "reverse")
    fates, known = Counter[str](kept=0, unlike=0, identical=0, unread=0), set[tuple[str, str]]()
    left: list[tuple[ConversationRow, int, str]] = []
    for (row, sample, _), text in zip(asked, said, strict=True):
        if text is None or (row.digest, _plain(text)) in known:
            fates["unread" if text is None else "identical"] += 1
            continue
        known.add((row.digest, _plain(text)))
        left.append((row, sample, text))
    again: list[list[Said]] = [[] for _ in left]
    if config.fidelity:
        again = model.answers([(_name(t), (Message("user", t),)) for _, _, t in left], 1)
    made = []
    for (row, sample, text), answers in zip(left, again, strict=True):
        alike = likeness(row.text, after_thinking(answers[0].text)) if answers else None
        if alike is not None and alike < config.fidelity:
            fates["unlike"] += 1
            continue
        fates["kept"] += 1
        chat = _chat((Message("user", text),), row.text, model.about(row, sample))
        made.append(chat if alike is None else {**chat, "fidelity": alike})
    return Made({"sft": made}, dict(fates))


def revise(rows: Sequence[ConversationRow], model: Model) -> Made:
    """The model's own answers, improved by itself, where a check says that they are better.

    With a reference: the first answer is wrong and the revision right. Without: the model prefers
    the revision, whichever of the two stands first.
    """
    config = model.config
    found = model.answers([(row.digest, row.messages) for row in rows], config.samples)
    fates = Counter[str](kept=0, cut=0, unread=0, no_faults=0, identical=0)
    firsts = [
        (row, number, after_thinking(one.text).strip())
        for row, said in zip(rows, found, strict=True)
        for number, one in enumerate(said)
        if one.end == "stop" and one.text.strip()
    ]
    fates["cut"] = len(rows) * config.samples - len(firsts)
    asked = [Prompt(prompts.revise_prompt(r.messages, text), number) for r, number, text in firsts]
    revisions: list[prompts.Revision | None] = model.replies(asked, prompts.read_revision, "revise")
    left: list[tuple[ConversationRow, int, str, str]] = []
    for (row, number, text), revision in zip(firsts, revisions, strict=True):
        if revision is None or not revision.faults or _plain(revision.answer) == _plain(text):
            without = "no_faults" if revision and not revision.faults else "identical"
            fates["unread" if revision is None else without] += 1
        else:
            left.append((row, number, text, revision.answer.strip()))
    check = _by_reference if config.reference else _by_itself
    chats, pairs = list[Row](), list[Row]()
    for (row, number, text, better), fate in zip(left, check(left, model), strict=True):
        fates[fate] += 1
        if fate == "kept":
            about = model.about(row, number)
            chats.append(_chat(row.messages, better, about))
            pairs.append({
                "prompt": _turns(row.messages), "chosen": better, "rejected": text,
                "provenance": about,
            })  # fmt: skip
    return Made({"sft": chats, "pairs": pairs}, dict(fates))


def bogus(rows: Sequence[ConversationRow], model: Model) -> Made:
    """The rows with the columns `bogus` and `bogus_refusal`: a question that resembles theirs and
    asks about nothing that exists, the best rated of the samples, and the refusal of it.

    Both are empty where there is none.
    """
    config = model.config
    asked = _sampled(
        rows, config.samples, lambda row: row.text, config.request, prompts.bogus_prompt
    )
    said: list[prompts.Bogus | None] = model.replies(
        [prompt for _, _, prompt in asked], prompts.read_bogus, "bogus"
    )
    fates = Counter[str](kept=0, spare=0, poor=0, identical=0, unread=0)
    known = {_plain(row.text) for row in rows}
    best: dict[str, tuple[int, prompts.Bogus]] = {}
    for (row, sample, _), found in zip(asked, said, strict=True):
        if found is None or found.rating < config.quality:
            fates["unread" if found is None else "poor"] += 1
        elif _plain(found.question) in known:
            fates["identical"] += 1
        else:
            fates["spare"] += 1
            if row.digest not in best or found.rating > best[row.digest][1].rating:
                best[row.digest] = sample, found
    fates["kept"], fates["spare"] = len(best), fates["spare"] - len(best)
    made = []
    for row in rows:
        sample, found = best.get(row.digest, (0, None))
        texts = (found.question.strip(), found.refusal.strip()) if found else ("", "")
        columns = dict(zip(("bogus", "bogus_refusal"), texts, strict=True))
        made.append({**row.row, **columns, "provenance": model.about(row, sample)})
    return Made({"rows": made}, {**fates, "rows_without": len(rows) - len(best)})


def refusal(rows: Sequence[ConversationRow], model: Model) -> Made:
    """The rows with the column `refusal`: the reply of one who does not know; empty where there is
    none that keeps the answer to itself."""
    config = model.config
    asked = _sampled(rows, 1, lambda row: row.text, config.request, prompts.refusal_prompt)
    said: list[str | None] = model.replies(
        [prompt for _, _, prompt in asked], prompts.read_refusal, "refusal"
    )
    fates, made = Counter[str](kept=0, tells=0, unread=0), list[Row]()
    for row, text in zip(rows, said, strict=True):
        answers = row.row.get(config.reference) if config.reference else ()
        fate = "unread" if text is None else "tells" if _tells(text, answers) else "kept"
        fates[fate] += 1
        written = text if text is not None and fate == "kept" else ""
        made.append({**row.row, "refusal": written, "provenance": model.about(row, 0)})
    return Made({"rows": made}, dict(fates))


STEPS: Mapping[str, Callable[[Sequence[ConversationRow], Model], Made]] = {
    "plurality": plurality,
    "rewrite": rewrite,
    "reverse": reverse,
    "revise": revise,
    "bogus": bogus,
    "refusal": refusal,
}


def likeness(first: str, second: str) -> float:
    """Share of words that two texts have in common, in order (Ratcliff & Obershelp's ratio)."""
    return difflib.SequenceMatcher(None, first.split(), second.split(), autojunk=False).ratio()


def _by_reference(
    left: Iterable[tuple[ConversationRow, int, str, str]], model: Model
) -> Iterable[str]:
    reader = answer_reader(model.config.answer)
    for row, _, text, better in left:
        reference = str(row.row[model.config.reference])
        before, after = (passes(reader, reference, said) for said in (text, better))
        if before is None or after is None:
            yield "unscored"
        elif before:
            yield "right_before" if after else "spoilt"
        else:
            yield "kept" if after else "still_wrong"


def _by_itself(
    left: Sequence[tuple[ConversationRow, int, str, str]], model: Model
) -> Iterable[str]:
    judge = PromptedJudge(model.backend, model.journal, model.config.attempts, model.progress)
    found = judge_both(judge, [Case(row.messages, (better, text)) for row, _, text, better in left])
    model.took.update(judge.counts)
    said = {"first": "kept", "second": "worse"}
    for both in found:
        told = preference(both, "overall")
        yield said.get(told, told)


def _sampled(
    rows: Sequence[ConversationRow], samples: int, text: Callable[[ConversationRow], str],
    request: str, write: Callable[[str, str], str],
) -> list[tuple[ConversationRow, int, Prompt]]:  # fmt: skip
    return [
        (row, sample, Prompt(write(text(row), request), sample))
        for row in rows
        for sample in range(samples)
    ]


def _chat(messages: Sequence[Message], answer: str, about: Row) -> Row:
    return {"messages": _turns((*messages, Message("assistant", answer))), "provenance": about}


def _turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _name(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _tells(text: str, answers: Any) -> bool:
    """Whether one of the answers stands in a text, as words."""
    said = f" {_words(text)} "
    several = answers if isinstance(answers, list | tuple) else [answers]
    return any(f" {words} " in said for answer in several if (words := _words(str(answer))))


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
