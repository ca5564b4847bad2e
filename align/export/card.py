"""The model card: README.md with the front matter that the Hugging Face hub reads.

Everything is taken from the run folder, so that the same run gives the same card.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from align.circumstances import circumstances_of
from align.evaluation.tables import build_table
from align.export.policy import Policy
from align.export.private import redacted
from align.models import smollm2
from align.models.load import NANO, SMOLLM2
from align.run_folder import chain_of
from align.settings import data_folder

TAGS = ("three-stage", "post-training")
_KINDS = {"sft": "sft", "rejection_sft": "rejection-sampling", "pts": "pivotal-token-search",
          "token_dpo": "dpo", "full_dpo": "dpo"}  # fmt: skip


def front_matter(text: str) -> dict[str, Any]:
    """The YAML between the first two lines `---` of a card; empty where there is none."""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    try:
        held = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return {}
    return held if isinstance(held, dict) else {}


def base_model(path: str) -> tuple[str, str | None, dict[str, Any]]:
    """How a recipe's base model is called, its name on the hub (if it has one), and its license.

    The license is what the front matter of the base model's own card says (`license`,
    `license_name`, `license_link`); of a hub model that is not in the cache nothing is known.
    """
    if path == SMOLLM2:
        return path, smollm2.HUB_NAME, {"license": smollm2.LICENSE}
    if path == NANO:
        card = data_folder("recipes") / "phi-nano" / "base" / "README.md"
        return path, None, _license(card)
    folder = Path(path).expanduser()
    if folder.is_dir() or path.startswith((".", "/", "~")):
        return folder.name, None, _license(folder / "README.md")
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(path, "README.md")
    return path, path, _license(Path(found)) if isinstance(found, str) else {}


def _license(card: Path) -> dict[str, Any]:
    if not card.is_file():
        return {}
    held = front_matter(card.read_text(encoding="utf-8", errors="replace"))
    return {key: held[key] for key in ("license", "license_name", "license_link") if key in held}


def model_card(policy: Policy, weights: Mapping[str, str], contents: str = "") -> str:
    """The text of README.md.

    Args:
        weights: SHA-256 of each file of weights, by its name.
        contents: lines on further files of the folder (GGUF, Modelfile).
    """
    called, hub, license_ = base_model(str(policy.recipe.get("model", {}).get("path", "unknown")))
    chain = _chain(policy)
    kinds = [_KINDS[stage["kind"]] for stage in chain if stage["kind"] in _KINDS]
    head = {
        **license_,
        **({"base_model": hub} if hub else {}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": [*TAGS, *dict.fromkeys(kinds)],
    }
    yaml_head = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    parts = [
        f"# {policy.name}",
        _summary(policy, chain, called),
        "Sampling defaults of the recipe and the stop ids are in `generation_config.json`; chats "
        "are written by the tokenizer's chat template." + (f" {contents}" if contents else ""),
        "## Results",
        _results(policy),
        "## Data",
        "\n".join(_data(policy, chain)),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(policy, license_)),
        "## Recipe",
        _fenced(yaml.safe_dump(dict(policy.recipe), sort_keys=False, allow_unicode=True,
                               width=10**6), "yaml"),
        "## Provenance",
        "\n".join(f"- {line}" for line in _provenance(policy, weights)),
    ]  # fmt: skip
    body = redacted("\n\n".join(part for part in parts if part))
    return f"---\n{redacted(yaml_head)}---\n\n{body}\n"


def _chain(policy: Policy) -> list[dict[str, Any]]:
    """Stages of the recipe up to the exported one, those that ran."""
    found: list[dict[str, Any]] = []
    for stage in chain_of(policy.manifest)[1:]:
        if stage["name"] in policy.manifest["stages"]:
            found.append(stage)
        if stage["name"] == policy.stage:
            break
    return found


def _summary(policy: Policy, chain: list[dict[str, Any]], base: str) -> str:
    steps = " → ".join(stage["label"] for stage in chain)
    task = policy.recipe.get("task", {}).get("kind", "unknown")
    return (
        f"`{base}` after {steps}, trained by the recipe `{policy.recipe.get('name', 'run')}` "
        f"(seed {policy.seed}) of three-stage on the task `{task}`. This is the policy of stage "
        f"`{policy.stage}` ({policy.label})."
    )


def _results(policy: Policy) -> str:
    chain = chain_of(policy.manifest)
    names = [s["name"] for s in chain if f"eval/{s['name']}" in policy.manifest["stages"]]
    if not names:
        return "This run was not evaluated."
    labels = {stage["name"]: stage["label"] for stage in chain}
    starts = {stage["name"]: stage["from"] for stage in chain if stage.get("from")}
    own = "" if policy.stage in names else "\nThe exported stage itself was not evaluated.\n"
    return f"{build_table(policy.run, names, labels, starts).to_markdown()}{own}".rstrip()


def _data(policy: Policy, chain: list[dict[str, Any]]) -> list[str]:
    lines = ["| stage | counts |", "|---|---|"]
    for stage in chain:
        metrics = policy.manifest["stages"][stage["name"]]["metrics"]
        counts = [f"{name} {value:,}" for name, value in _counts(metrics)]
        lines.append(f"| {stage['label']} | {', '.join(counts) or '-'} |".replace("\n", " "))
    return lines


def _counts(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    """Whole numbers among a stage's metrics, nested ones by their path."""
    for key, value in metrics.items():
        name = f"{prefix}{key}".replace("|", "/")
        if isinstance(value, dict):
            yield from _counts(value, f"{name}.")
        elif type(value) is int:
            yield name, value


def _limits(policy: Policy, license_: Mapping[str, Any]) -> Iterator[str]:
    task = policy.recipe.get("task", {}).get("kind", "unknown")
    measured = any(name.startswith("eval/") for name in policy.manifest["stages"])
    yield (
        f"Measured on held-out problems of the task `{task}` alone. Nothing is known of other "
        "tasks, other languages, safety or facts."
        if measured
        else "Nothing of this model was measured."
    )
    yield "One training run: another seed gives another model, and the intervals do not cover that."
    yield (
        "Trained and measured with token ids from this tokenizer and this chat template; another "
        "template asks the model something it has not learnt."
    )
    if "license" not in license_:
        yield (
            "The license of the base model is not known here, so this card names none: whoever "
            "publishes the model must look it up and add it."
        )


def _provenance(policy: Policy, weights: Mapping[str, str]) -> Iterator[str]:
    made = circumstances_of(policy.manifest, policy.stage)
    git = made.get("git", {})
    yield from (f"SHA-256 of `{name}`: `{digest}`" for name, digest in weights.items())
    yield f"Digest of the stage's policy in the run's manifest: `{policy.digest}`"
    changed = " with uncommitted changes" if git.get("changes") else ""
    yield f"Commit of the code that ran: {git.get('commit') or 'unknown'}{changed}"
    versions = (f"{name} {version}" for name, version in made.get("versions", {}).items())
    yield f"Versions: {', '.join(versions) or 'unknown'}"


def _fenced(text: str, language: str) -> str:
    longest = max((len(ticks) for ticks in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
