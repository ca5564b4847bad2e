"""Stages that train on rows of sources: from a recipe to a policy, and what was lost by the way."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from align.context import StageContext
from align.errors import ManifestError, RecipeError, StageError
from align.pipeline import run as pipeline
from align.pipeline.check import check_recipe
from align.pipeline.recipe import Recipe, parse_recipe
from align.pipeline.source_rows import encoder, source_rows
from align.run_folder import read_manifest
from align.stages import full_dpo, sft
from align.training.record import CHECKPOINTS
from align.training.trl import lengths_of, mapped, pair_rows
from tests.align import tiny
from tests.align.test_mixture import numbered, write
from tests.align.test_sft import kill_at

FAST = {"batch_size": 4, "learning_rate": 1e-2, "save_steps": 2, "max_length": 64}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("base"))


def pairs(path: Path, count: int) -> str:
    rows = [{"prompt": f"{k}", "chosen": f"yes {k}", "rejected": f"no {k}"} for k in range(count)]
    return write(path, *rows)


def recipe(base: Path, stages: Any, **more: Any) -> Recipe:
    data = {
        "name": "own",
        "model": {"path": str(base), "device": "cpu", "few_shot_base": False},
        "task": {"kind": "word_problems"},
        "sampling": {"max_new_tokens": 16},
        "stages": stages,
        "evaluate": {"skip": ["base", "sft", "full_dpo"]},
        **more,
    }
    return parse_recipe(data, "own.yaml")


def with_rows(made: StageContext) -> StageContext:
    found = source_rows(made.recipe, made.entry, made.policy, made.folder / CHECKPOINTS, {})
    return dataclasses.replace(made, rows=found)


def run(made: Recipe, folder: Path) -> dict[str, Any]:
    pipeline.run(made, folder, Console(file=io.StringIO()), progress=False, parallel=False)
    stages: dict[str, Any] = read_manifest(folder)["stages"]
    return stages


def test_two_stages_on_two_sources_each(base: Path, tmp_path: Path) -> None:
    a, b = numbered(tmp_path / "a.jsonl", 12), numbered(tmp_path / "b.jsonl", 12, "b")
    chats = [{"path": a, "name": "a", "weight": 2}, {"path": b, "name": "b", "weight": 1}]
    sides = [{"path": pairs(tmp_path / "p.jsonl", 6), "name": "p"}]
    stages = [
        {"kind": "sft", "sources": chats, **FAST},
        {"kind": "full_dpo", "sources": sides, **FAST},
    ]
    made = recipe(base, stages)
    check_recipe(made)
    found = run(made, tmp_path / "run")
    told = found["sft"]["metrics"]
    # Twelve rows of the first allow six of the second.
    assert {name: counts["drawn"] for name, counts in told["sources"].items()} == {"a": 12, "b": 6}
    assert told["rows"] == 18
    assert told["assistant_tokens"] == sum(s["trained_tokens"] for s in told["sources"].values())
    assert told["trained_tokens"] == told["assistant_tokens"]
    assert set(found["sft"]["inputs"]) >= {"sources.a", "sources.b"}
    assert found["full_dpo"]["metrics"]["pairs"] == 6
    assert found["full_dpo"]["metrics"]["steps"] == 2
    assert found["full_dpo"]["metrics"]["sources"]["p"]["kept"] == 6
    assert not (tmp_path / "run" / "sft" / CHECKPOINTS).exists()
    assert run(made, tmp_path / "run").keys() == found.keys()
    Path(b).write_text(Path(b).read_text() + json.dumps({"prompt": "q", "completion": "a"}) + "\n")
    with pytest.raises(ManifestError, match=r"sources\.b"):
        run(made, tmp_path / "run")


def test_rows_of_sources_train_as_the_same_demonstrations_do(base: Path, tmp_path: Path) -> None:
    """One source with all rows in the order of the task's chats: the same policy, bit by bit."""
    task = tiny.Sums()
    usual = tiny.context(base, tmp_path / "usual", task, sft={**FAST, "num_examples": 12})
    chats = task.demonstrations(12, usual.problem_seed)
    rows = [{"messages": [{"role": m.role, "content": m.content} for m in chat]} for chat in chats]
    source = {"path": write(tmp_path / "a.jsonl", *rows)}
    made = tiny.context(base, tmp_path / "sources", task, sft={**FAST, "sources": [source]})
    first, second = sft.run(usual), sft.run(with_rows(made))
    assert first.model is not None
    assert second.model is not None
    assert tiny.same(first.model, second.model)
    same = ("rows", "assistant_tokens", "steps", "final_loss", "rows_too_long")
    assert {k: first.metrics[k] for k in same} == {k: second.metrics[k] for k in same}


def test_a_killed_stage_goes_on_with_the_rows_it_had(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = {"path": numbered(tmp_path / "a.jsonl", 24), "name": "a"}
    calm = tiny.context(base, tmp_path / "calm", sft={**FAST, "sources": [source]})
    torn = tiny.context(base, tmp_path / "torn", sft={**FAST, "sources": [source]})
    whole = sft.run(with_rows(calm))
    with monkeypatch.context() as patch:
        kill_at(3, patch)
        with pytest.raises(KeyboardInterrupt):
            sft.run(with_rows(torn))
    Path(source["path"]).unlink()  # they are not read again
    again = sft.run(with_rows(torn))
    assert whole.model is not None
    assert again.model is not None
    assert tiny.same(whole.model, again.model)


def test_pairs_of_sources_stand_beside_sampled_ones(base: Path, tmp_path: Path) -> None:
    start = sft.run(
        tiny.context(
            base, tmp_path / "sft", tiny.ParityTask(),
            sft={"num_examples": 320, "batch_size": 8, "learning_rate": 1e-2},
        )
    ).model  # fmt: skip
    assert start is not None
    told = {
        **FAST, "num_problems": 12, "samples": 4, "with_sampled": True,
        "sources": [{"path": pairs(tmp_path / "p.jsonl", 5), "name": "p"}],
    }  # fmt: skip
    made = tiny.context(start, tmp_path / "dpo", tiny.ParityTask(), full_dpo=told)
    result = full_dpo.run(with_rows(made))
    sampled = len((tmp_path / "dpo" / full_dpo.PAIRS).read_text().splitlines())
    assert sampled
    assert result.metrics["pairs"] == sampled + 5
    assert result.metrics["questions"] == 12


def test_a_loss_above_its_limit_stops_the_run_before_a_model_is_loaded(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": "q", "completion": "a" * n} for n in (1, 1, 99)]
    source = {"path": write(tmp_path / "a.jsonl", *rows), "name": "web"}
    made = recipe(base, [{"kind": "sft", "sources": [source], **FAST}])
    monkeypatch.setattr("align.training.loop.load_policy", None)
    with pytest.raises(StageError, match=r"web: 1 of 3 rows are too long and dropped \(33\.3%\)"):
        run(made, tmp_path / "run")


def test_check_names_every_fault_of_sources_with_all_others(base: Path, tmp_path: Path) -> None:
    good = {"prompt": "q", "completion": "a"}
    odd = {"prompt": "q", "completion": "a<|im_end|>"}
    a = write(tmp_path / "a.jsonl", good, {"text": "x"}, {"messages": 7})
    b = write(tmp_path / "b.jsonl", good, odd)
    stages = [
        {"kind": "sft", "name": "first", "sources": [{"path": a}]},
        {"kind": "sft", "name": "second", "sources": [{"path": b}]},
        {"kind": "full_dpo", "sources": [{"path": b, "format": "alpaca"}]},
    ]
    made = recipe(base, stages, evaluate={"skip": ["base", "first", "second", "full_dpo"]})
    with pytest.raises(RecipeError) as caught:
        check_recipe(made)
    told = [fault.removeprefix(f"{tmp_path}/") for fault in caught.value.problems]
    assert told[0].startswith("a.jsonl, line 2: no columns that are known: it has 'text'")
    assert told[1].startswith("a.jsonl, line 3: messages: messages with role and content")
    assert told[2] == "b.jsonl, line 2: the assistant's text holds the special token <|im_end|>"
    assert told[3] == "full_dpo.sources.0.format: 'alpaca' is no form of pairs"


def test_a_task_of_files_needs_no_chats_beside_sources(base: Path, tmp_path: Path) -> None:
    problems = [{"id": k, "prompt": f"{k}?", "reference": k} for k in range(3)]
    task = {
        "kind": "files",
        "problems": {"test": write(tmp_path / "test.jsonl", *problems)},
        "verifier": "exact:(.)",
    }
    source = {"path": numbered(tmp_path / "a.jsonl", 4)}
    more = {"task": task, "evaluate": {"skip": []}}
    check_recipe(recipe(base, [{"kind": "sft", "sources": [source], **FAST}], **more))
    with pytest.raises(RecipeError, match=r"task\.chats: holds no chats"):
        check_recipe(recipe(base, ["sft"], **more))


def test_dpo_wants_the_templates_tokens_to_be_there(tmp_path: Path) -> None:
    bare = tiny.save(tmp_path / "bare", chat=False)
    source = {"path": pairs(tmp_path / "p.jsonl", 3)}
    made = recipe(bare, [{"kind": "full_dpo", "sources": [source]}])
    with pytest.raises(StageError, match=r"<\|im_start\|> is 12 tokens; add it as a special token"):
        encoder(made, made.stages[0], bare)


def test_lengths_are_read_without_the_ids(tmp_path: Path) -> None:
    rows = pair_rows([((1, 2), (3,), (4, 5, 6)), ((1,), (2, 3), (4,))])
    assert lengths_of(rows, "rejected_ids").tolist() == [3, 1]
    from align.data.chat import IdPair
    from align.mixture.store import write_rows

    file = tmp_path / "rows.arrow"
    write_rows(file, [IdPair((7,), (8,), (9, 9))] * 300)
    both = pair_rows([((1, 2), (3,), (4, 5, 6))], file)
    assert len(mapped(file)) == 300
    assert lengths_of(both, "rejected_ids").tolist() == [3, *[2] * 300]
    assert both[0] == {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5, 6]}
