"""How rows are made by a model (Phi-4 report, section 2)."""

from __future__ import annotations

from typing import Literal, Self, TypeAlias

from pydantic import Field, model_validator

from align.judging.settings import AnswerSource
from pts.config import SamplingConfig

Step: TypeAlias = Literal["plurality", "rewrite", "reverse", "revise", "bogus", "refusal"]


class SynthesisConfig(AnswerSource):
    """What one model makes of the rows of sources."""

    step: Step
    """`plurality`: questions that are neither too easy nor ambiguous, with the commonest answer as
    label; `rewrite`: new questions; `reverse`: the instruction that a text answers; `revise`: the
    model's own answer, criticised and improved; `bogus`: a question that sounds right and asks
    about nothing that exists; `refusal`: the reply of one who does not know."""
    column: str = Field("prompt", min_length=1)
    """Column of the sources that holds the question (text or messages) or, for `rewrite` and
    `reverse`, the text."""
    samples: int = Field(8, ge=1, le=100_000)
    """Answers, new questions, instructions or revisions of each row; of `bogus` questions the one
    that the model rates highest is taken. A `refusal` is written once."""
    temperature: float = Field(0.7, ge=0, le=10)
    """That they are sampled at; 0 is greedy, and then `samples` must be 1."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Keep the smallest set of tokens that holds this much probability."""
    max_tokens: int = Field(1024, ge=1, le=10**6)
    """Length limit of a reply; an answer that is cut by it votes for nothing, any other reply is
    asked for again."""
    answer: str = ""
    """`plurality`, and `revise` with a reference: how the final answer is read and compared, a
    verifier: `math`, `choice`, `choice:LETTERS` or `exact:REGEX`."""
    answers: int = Field(1, ge=1, le=100_000)
    """`plurality`: the model's own answers that become rows for SFT, at most so many of a question,
    of those that give the commonest answer, in the order of their numbers."""
    request: str = ""
    """`rewrite`, `reverse`, `bogus`, `refusal`: what is asked for, in words of yours; empty: the
    step's own."""
    fidelity: float = Field(0.0, ge=0, le=1)
    """`reverse`: the model answers the instruction, and the pair is kept where that answer and the
    text have at least this share of words in common, in order; 0 does not ask."""
    reference: str = ""
    """`revise`: column with the right answer, by which the revision is checked; empty: the model
    itself must prefer it, whichever of the two stands first. `refusal`: column with the right
    answer, or a list of them; a refusal that tells it is dropped."""
    quality: int = Field(3, ge=1, le=5)
    """`bogus`: least rating, from 1 to 5, that the model must give to its own question."""
    attempts: int = Field(3, ge=1, le=100)
    """How often a call is made whose reply must have a form and cannot be read; not of answers."""

    @property
    def sampling(self) -> SamplingConfig:
        """Of all calls."""
        return SamplingConfig(
            temperature=self.temperature, top_p=self.top_p, max_new_tokens=self.max_tokens
        )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        of: dict[str, tuple[Step, ...]] = {
            "answer": ("plurality", "revise"),
            "answers": ("plurality",),
            "samples": ("plurality", "rewrite", "reverse", "revise", "bogus"),
            "request": ("rewrite", "reverse", "bogus", "refusal"),
            "fidelity": ("reverse",),
            "reference": ("revise", "refusal"),
            "quality": ("bogus",),
            "attempts": ("rewrite", "reverse", "revise", "bogus", "refusal"),
        }
        for key, steps in of.items():
            idle = self.step not in steps or (
                key == "answer" and self.step == "revise" and not self.reference
            )
            if idle and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} means nothing where step is {self.step}; drop it")
        if self.step == "plurality" and self.samples < 2:
            raise ValueError("samples: one answer agrees with itself; plurality needs 2 at least")
        if self.step != "refusal" and self.samples > 1 and self.temperature == 0:
            raise ValueError("samples: several greedy replies are one; raise temperature")
        checked = self.step == "revise" and self.reference
        if not self.answer and (self.step == "plurality" or checked):
            raise ValueError("answer is missing; say how the final answer is read, e.g. math")
        return self
