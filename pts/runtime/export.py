"""Pairs as a Hugging Face dataset: a folder with a card, as the Hub and `load_dataset` take it.

export_dataset(pairs, Path("pairs-hf"), folder)     # README.md and data/train.parquet
datasets.load_dataset("pairs-hf", split="train")
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pts.data.pairs import pairs_dataset
from pts.errors import DataError
from pts.files import output_fault, replacing
from pts.runtime.run_folder import RunFolder
from pts.types import TokenPair

_HEADER = """\
---
task_categories:
- text-generation
tags:
- preference
- dpo
- pivotal-token-search
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train.parquet
---
"""

_COLUMNS = """
## Columns

| Column | Type | Meaning |
|---|---|---|
| `prompt_ids` | list of int64 | the prompt and the completion up to the pair, as sampled |
| `chosen_ids` | list of int64, length 1 | the better next token |
| `rejected_ids` | list of int64, length 1 | the worse next token |
| `problem_id` | string | the question |
| `criterion` | string | `path`: a token of the completion against a sibling; `fork`: two siblings |
| `gap` | float64 | p(success) after the chosen token minus p(success) after the rejected one |
| `expected_gain` | float64 | π(rejected) · gap |

Token ids belong to the tokenizer of the policy. There is no text: decoding and encoding again may
cut tokens differently.
"""


def export_dataset(pairs: Sequence[TokenPair], output: Path, run: RunFolder | None = None) -> None:
    """Write `data/train.parquet` and a card, README.md, to the folder `output`.

    The card tells the policies' digests, counts, columns and, with `run`, the settings of the
    search. It names no license: whoever publishes the pairs chooses one.

    Raises DataError for no pairs at all, and for a folder that holds something else.
    """
    if not pairs:
        raise DataError("no pair was selected, so there is no dataset to write")
    data = output / "data"
    if fault := output_fault(output, "data/train.parquet", ("README.md", "data")):
        raise DataError(f"{output}: {fault}")
    data.mkdir(parents=True, exist_ok=True)
    part = data / ".train.parquet.tmp"
    pairs_dataset(pairs).to_parquet(str(part))
    os.replace(part, data / "train.parquet")
    with replacing(output / "README.md") as file:
        file.write(dataset_card(pairs, run))


def dataset_card(pairs: Sequence[TokenPair], run: RunFolder | None = None) -> str:
    """The text of the card: YAML header and Markdown."""
    criteria = Counter(pair.criterion for pair in pairs)
    counts = ", ".join(f"{n:,} `{criterion}`" for criterion, n in sorted(criteria.items()))
    questions = len({pair.problem_id for pair in pairs})
    policies = ", ".join(f"`{policy}`" for policy in sorted({pair.policy_digest for pair in pairs}))
    lines = [
        "# Token pairs from a pivotal token search",
        "",
        f"{len(pairs):,} preference pairs of two next tokens ({counts}), {questions:,} questions.",
        "",
        f"- Policy, by digest: {policies}. What p(success) says holds for this policy only.",
        f"- Confirmation: {_confirmation(pairs)}",
    ]
    return "\n".join([_HEADER, *lines, _COLUMNS, *(_settings(run) if run is not None else [])])


def _confirmation(pairs: Sequence[TokenPair]) -> str:
    rollouts = [n for pair in pairs for n in (pair.p_chosen.n, pair.p_rejected.n)]
    if not any(rollouts):
        return "none; the probabilities are as reported by the source."
    few, many = min(rollouts), max(rollouts)
    sides = f"{few}" if few == many else f"{few} to {many}"
    return f"{sides} fresh rollouts on each side of a pair, never seen by the search."


def _settings(run: RunFolder) -> list[str]:
    known = run.fingerprint
    settings = {**known["sampling"], **known["config"]}
    settings |= {name: known[name] for name in ("verifier", "seed")}
    rows = [f"| `{name}` | `{_cell(value)}` |" for name, value in settings.items()]
    return ["## Settings of the search", "", "| Setting | Value |", "|---|---|", *rows, ""]


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("`", "'").replace("\n", " ")
