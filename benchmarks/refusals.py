"""Does data on refusals lower the share of wrong answers, and what of the known ones is lost?

    python benchmarks/refusals.py --seeds 0-4 --output runs/refusals

phi-nano's base model knows a made-up world by heart, a third of it well, a third half, a third not
at all. Of a seed, two thirds of its people are asked eight times each; `align benchmark` and
`align refusals` make rows and pairs of the answers. Three policies, all from the base model: SFT on
word problems and the right replies that the base usually knows; SFT with refusals beside them; and
DPO on the pairs, cut to five tokens. Each is asked about the other third of the people, and about
nobody, at T = 0.7. Chats are written as the pretraining text writes questions: a model of this size
does not carry what it knows over into ChatML (of what it knew 91 % before SFT, it then knew 11 %).
The same command goes on after a kill.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from align.benchmarks.run import run_benchmark
from align.benchmarks.settings import Benchmark
from align.evaluation.records import read_evaluation
from align.evaluation.statistics import mean_interval
from align.models.engines import loader
from align.models.load import base_path
from align.pipeline.recipe import Recipe, parse_recipe
from align.pipeline.run import run
from align.refusals.run import make_refusals
from align.refusals.settings import RefusalConfig
from align.settings import ModelConfig
from align.sweep.settings import parse_seeds
from align.tasks.registry import build_task
from align.tasks.word_problems.facts import facts

RESULTS = Path(__file__).parent / "results" / "refusals.json"
CHATS = 750
"""Demonstrations of word problems in SFT."""
TEMPLATE = """{% for message in messages %}{% if message['role'] == 'user' %}\
Question: {{ message['content'] }}
Answer:{% else %}{% generation %} {{ message['content'] }}<|endoftext|>{% endgeneration %}\
{% endif %}{% endfor %}"""
ASKED: dict[str, Any] = {
    "kind": "generate", "prompt": "{{ question }}", "chat": True, "reference": "answers",
    "score": "simpleqa", "samples": 8, "temperature": 0.7, "max_new_tokens": 16,
}  # fmt: skip
NOBODY = ["there is no such person"]
SCORES = ("correct", "not_attempted", "incorrect")


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--output", type=Path, default=Path("runs/refusals"))
    options = parser.parse_args()
    seeds = parse_seeds(options.seeds)
    found = {seed: of_seed(seed, options.output / f"seed{seed}") for seed in seeds}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(list(found.values())))


def of_seed(seed: int, folder: Path) -> Mapping[str, Any]:
    """Shares of the three ends, by policy and kind of question."""
    folder.mkdir(parents=True, exist_ok=True)
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    write_questions(seed, train, test)
    recipe = recipe_of(seed, folder, "refusals")
    base = Path(recipe.model.path)
    write_base(base)
    ask(base, train, folder / "know")
    known = ask(base, test, folder / "base")
    config = RefusalConfig(
        sometimes=0.25, seed=seed, bogus="{{ bogus }}", refusals=("Sorry, I do not know.",)
    )
    make_refusals(folder / "know/train", folder / "data", config)
    write_chats(recipe, seed, folder / "data")
    result: dict[str, Any] = {"base": shares(known, known)}
    for arm, stages in (("answers", ("sft",)), ("refusals", ("sft", "full_dpo"))):
        run(recipe_of(seed, folder, arm), folder / arm, Console(quiet=True), progress=False,
            parallel=False)  # fmt: skip
        for stage in stages:
            items = ask(folder / arm / stage / "model", test, folder / arm / "asked" / stage)
            problems = read_evaluation(folder / arm / "eval" / stage).summary.sampled.mean
            result[f"{arm}: {stage}"] = {**shares(items, known), "problems": problems}
    return result


def write_base(folder: Path) -> None:
    """The base model with a chat template of its own form of questions."""
    if folder.is_dir():
        return
    whole = shutil.copytree(
        base_path(ModelConfig(path="builtin:phi-nano")), folder.with_name("copy")
    )
    (whole / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    whole.rename(folder)


def write_questions(seed: int, train: Path, test: Path) -> None:
    """Rows of two thirds of the people, and of the others, with a question about nobody each."""
    world = facts()
    people = sorted({fact.id.rpartition("-")[2] for fact in world})
    random.Random(f"refusals {seed}").shuffle(people)
    held = set(people[: len(people) // 3])
    rows: dict[Path, list[dict[str, Any]]] = {train: [], test: []}
    for fact in world:
        row = {"question": fact.question, "answers": [fact.answer], "kind": fact.tier}
        if fact.id.rpartition("-")[2] in held:
            rows[test] += [row, {"question": fact.bogus, "answers": NOBODY, "kind": "bogus"}]
        else:
            rows[train].append({**row, "bogus": fact.bogus})
    for file, its in rows.items():
        file.write_text("".join(json.dumps(row) + "\n" for row in its), encoding="utf-8")


def ask(model: Path, source: Path, output: Path) -> Sequence[Mapping[str, Any]]:
    """What a policy answers, a row a question."""
    benchmark = Benchmark(name=source.stem, source=str(source), **ASKED)
    file = output / source.stem / f"samples_{source.stem}.jsonl"
    if not file.is_file():
        load = loader(model, ModelConfig(path=str(model), chat_template="keep"))
        run_benchmark(benchmark, load, output, False)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write_chats(recipe: Recipe, seed: int, folder: Path) -> None:
    """The demonstrations, and those SFT rows that are no refusals, as files."""
    chats = build_task(recipe.task).demonstrations(CHATS, seed)
    rows = [{"messages": [{"role": m.role, "content": m.content} for m in chat]} for chat in chats]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "problems.jsonl").write_text(text, encoding="utf-8")
    lines = (folder / "sft.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    known = [line for line in lines if json.loads(line)["kind"] == "known"]
    (folder / "answers.jsonl").write_text("".join(known), encoding="utf-8")


def recipe_of(seed: int, folder: Path, arm: str) -> Recipe:
    """SFT on problems and facts; with refusals, DPO on the pairs after it."""
    rows = {"answers": "answers", "refusals": "sft"}[arm]
    data = folder / "data"
    training = {"batch_size": 4, "gradient_accumulation": 4}
    return parse_recipe(
        {
            "name": f"refusals-{arm}",
            "seed": seed,
            "model": {"path": str(folder / "model"), "chat_template": "keep"},
            "task": {"kind": "word_problems", "options": {"difficulty": "long"}},
            "sampling": {"temperature": 0.7, "max_new_tokens": 140},
            "stages": ["sft"] if arm == "answers" else ["sft", "full_dpo"],
            "sft": {
                "sources": [
                    {"path": str(data / "problems.jsonl"), "name": "problems", "weight": 1},
                    {"path": str(data / f"{rows}.jsonl"), "name": "facts", "weight": 1},
                ],
                "num_rows": 2 * CHATS, "when_short": "repeat", "learning_rate": 5e-4, **training,
            },
            **({} if arm == "answers" else {"full_dpo": {
                "sources": [{"path": str(data / "pairs.jsonl"), "first_tokens": 5}],
                "learning_rate": 4e-5, "beta": 0.3, "epochs": 4, **training,
            }}),
            "evaluate": {"problems": 100, "samples": 2, "split": "dev", "skip": ["base"]},
        },
        "refusals",
    )  # fmt: skip


def shares(
    items: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """The three ends of questions about somebody, of those that the base usually knows, and of
    questions about nobody."""
    kinds: dict[str, list[Mapping[str, Any]]] = {"facts": [], "known": [], "bogus": []}
    for item, before in zip(items, known, strict=True):
        if item["doc"]["kind"] == "bogus":
            kinds["bogus"].append(item)
            continue
        kinds["facts"].append(item)
        if sum(before["correct"]) > len(before["correct"]) / 2:
            kinds["known"].append(item)
    return {
        kind: {
            name: sum(sum(item[name]) for item in its) / sum(len(item[name]) for item in its)
            for name in SCORES
        }
        for kind, its in kinds.items()
    }


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Means over the seeds with Student's intervals, and the changes that were asked for."""
    lines = ["| policy | questions | correct | not attempted | incorrect | problems |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for policy in found[0]:
        for kind in ("facts", "known", "bogus"):
            cells = [_interval([one[policy][kind][name] for one in found]) for name in SCORES]
            last = ""
            if kind == "facts" and "problems" in found[0][policy]:
                last = _interval([one[policy]["problems"] for one in found])
            lines.append(f"| {policy} | {kind} | {' | '.join(cells)} | {last} |")
    for policy in ("refusals: sft", "refusals: full_dpo"):
        wrong = [one[policy]["facts"]["incorrect"] - one["answers: sft"]["facts"]["incorrect"]
                 for one in found]  # fmt: skip
        right = [one[policy]["known"]["correct"] - one["answers: sft"]["known"]["correct"]
                 for one in found]  # fmt: skip
        lines.append(
            f"\n{policy} - answers: sft: incorrect {_interval(wrong)}, known and right "
            f"{_interval(right)} points"
        )
    return "\n".join(lines)


def _interval(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{100 * values[0]:.1f}"
    found = mean_interval(values)
    return f"{100 * found.mean:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


if __name__ == "__main__":
    main()
