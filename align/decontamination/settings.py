"""Settings of a decontamination. The Phi-4 report tells the two lengths and no threshold."""

from __future__ import annotations

from pydantic import Field, model_validator

from pts.config import Settings

LONG, SHORT = 13, 7
"""Words of the n-grams of Algorithm 1: one of the long ones is contamination by itself, the share
of short ones is its second test."""


class DecontaminationConfig(Settings):
    """When a row counts as contaminated. Each value is our choice: the report gives none."""

    contaminated_ratio: float = Field(0.5, gt=0, le=1)
    """Share of common 7-grams from which a row is removed. Half a question is hardly chance: on our
    tuning data 0.3 removed no clean row either, and 0.8 misses one edited question in 20 more."""
    partial_ratio: float = Field(0.3, gt=0, le=1)
    """Share of common 7-grams above which a row that stays is listed as partial, for a person to
    look at. The report's worked example has 0.39."""
    distinct_words: int = Field(4, ge=0, le=LONG)
    """A 13-gram with fewer distinct words that hold a letter is no evidence: rows of numbers ("1 2
    3 4 …", "0 0 0 0 …", the primes) stand in tests and tables of every kind. A question full of
    numbers is still found by its 7-grams."""
    allowed_rows: int = Field(2, ge=1)
    """With texts to learn the allow-list from: in how many of their distinct rows a 13-gram must
    stand to be allowed. 1 would allow what a single page quotes from an evaluation set."""

    @model_validator(mode="after")
    def _ordered(self) -> DecontaminationConfig:
        if self.partial_ratio > self.contaminated_ratio:
            raise ValueError(
                f"partial_ratio: {self.partial_ratio:g} is above contaminated_ratio "
                f"({self.contaminated_ratio:g}); lower it"
            )
        return self
