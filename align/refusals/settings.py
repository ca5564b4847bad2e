"""Which rows are made of what a model knows (Phi-4 report, appendix A.1)."""

from __future__ import annotations

from pydantic import Field

from pts.config import Settings

REFUSALS = (
    "I do not know.",
    "I'm not sure, and I would rather not guess.",
    "Sorry, I do not know the answer to that.",
    "I have no information about that.",
)


class RefusalConfig(Settings):
    """Rows for SFT and pairs for DPO of what a model knows."""

    question: str = Field("{{ question }}", min_length=1)
    """What a user asks (a template over the question's row). The model may have been asked in
    another form, with examples or as plain text."""
    reply: str = Field("{{ answer }}", min_length=1)
    """A reply made of an `answer` of the model, right or wrong (a template), e.g. "The answer is
    {{ answer }}."; the one that it gave most often is taken."""
    correct: str = ""
    """The right reply (a template, for a column of replies that were written); empty: `reply`."""
    refusal: str = ""
    """The reply of one who does not know (a template, for a column of refusals that were written
    for each question); empty: one of `refusals`."""
    refusals: tuple[str, ...] = Field(REFUSALS, min_length=1)
    """Refusals to draw from."""
    bogus: str = ""
    """A question like it that has no answer (a template, for a column of them); SFT learns to
    refuse it. Empty: none; so is a row in which it gives nothing."""
    bogus_refusal: str = ""
    """The reply to that question (a template, for a column); empty: as `refusal`."""
    usually: float = Field(0.5, ge=0, lt=1)
    """SFT has the right reply where the model is right in more than this share of its answers, a
    refusal where it is wrong in more than this share, else nothing. The report: "usually"."""
    sometimes: float = Field(0.0, ge=0, lt=1)
    """DPO prefers the right reply to a refusal where the model is right in more than this share,
    and a refusal to a wrong answer where it is wrong in more; both can hold. 0 is the report's; a
    question with few possible answers is guessed sometimes."""
    seed: int = Field(0, ge=0)
    """Of the choice among `refusals`."""
