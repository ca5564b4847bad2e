"""Sweeps on a run that makes up its results: plans, cells, tables, random search, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from align.errors import RecipeError, SweepError
from align.pipeline.check import check_recipe
from align.pipeline.recipe import parse_recipe
from align.sweep.cells import read_cell, write_cell
from align.sweep.claims import claimed
from align.sweep.file import load_sweep
from align.sweep.plan import at_edge, needed, plan
from align.sweep.publish import write_tables
from align.sweep.settings import Range, parse_seeds
from align.sweep.table import sweep_table
from align.sweep.tuning import tuning_log
from align.sweep.work import Work, begin, make_cells, run_sweep, what_is_left
from tests.align import sweeps
from tests.align.evaluations import store


def work(folder: Path, seeds: list[int], run: Any = sweeps.made_up, points: int = 0) -> Work:
    made = Work(plan(sweeps.sweep(folder), points), seeds, folder / "out", run)
    begin(made)
    return made


def made(folder: Path, seed: str = "seed0") -> list[str]:
    return (folder / "out" / "runs" / seed / "made.txt").read_text().split()


def test_arms_share_what_they_have_in_common(tmp_path: Path) -> None:
    assert make_cells(work(tmp_path, [0])) == []
    assert made(tmp_path) == ["sft", "pts", "pairs", "rejection", "chain"]


def test_a_cell_costs_what_its_policy_is_made_of(tmp_path: Path) -> None:
    asked = work(tmp_path, [0])
    make_cells(asked)
    ledgers = {key.arm: cell.ledger for key, cell in asked.cells().items()}
    # Each stage cost 1,000 tokens and 10 questions: SFT; SFT, PTS, DPO; SFT, rejection; and so on.
    assert {arm: ledger.generated_tokens for arm, ledger in ledgers.items()} == {
        "start": 1000, "pairs": 3000, "rejection": 2000, "chain": 4000,
    }  # fmt: skip
    assert ledgers["chain"].distinct_questions == 40


def test_questions_that_stages_share_are_counted_once(tmp_path: Path) -> None:
    text = sweeps.FILE.replace(
        "name: rejection, from: sft", "name: rejection, from: sft, share: pts"
    )
    asked = Work(plan(sweeps.sweep(tmp_path, text)), [0], tmp_path / "out", sweeps.made_up)
    begin(asked)
    make_cells(asked)
    found = {key.arm: cell.ledger for key, cell in asked.cells().items()}
    # The search whose problems are shared has to be named, and is no cost of the arm.
    assert found["rejection"].distinct_questions == 20
    assert found["rejection"].generated_tokens == 2000


def test_a_stopped_sweep_goes_on_without_its_run_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_cells(work(tmp_path, [0], sweeps.interrupted))
    asked = work(tmp_path, [0])
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out/cells").iterdir()}
    assert [key.arm for key in asked.missing(0)] == ["chain"]
    for path in (tmp_path / "out" / "runs" / "seed0").rglob("*"):
        if path.is_file():
            path.unlink()
    make_cells(asked)
    assert made(tmp_path) == ["sft", "pts", "pairs", "chain"]  # nothing that chain does not need
    kept = {name: (tmp_path / "out/cells" / name).stat().st_mtime_ns for name in before}
    assert kept == before


def test_an_arm_that_fails_leaves_the_others(tmp_path: Path) -> None:
    asked = work(tmp_path, [0, 1], sweeps.failing)
    failed = "rejection: no right answer"
    assert make_cells(asked) == [f"rejection-seed{seed}: {failed}" for seed in (0, 1)]
    assert {key.arm for key in asked.cells()} == {"start", "pairs", "chain"}
    table = sweep_table(asked.plan.sweep, asked.cells(), 2)
    assert [row.arms for row in table.contrasts if row.measure == "greedy"] == [
        ("start", "pairs"), ("pairs", "chain"),
    ]  # fmt: skip
    assert "2 cells are not there yet" in table.to_text()


def test_processes_share_the_seeds(tmp_path: Path) -> None:
    asked = work(tmp_path, [0, 1, 2])
    assert run_sweep(asked, jobs=2) == []
    assert len(asked.cells()) == 12
    assert [path.name for path in (tmp_path / "out" / "claims").iterdir()] == []
    assert run_sweep(asked, jobs=2) == []  # nothing is left, and no process is started


def test_a_seed_that_somebody_works_on_is_left_to_him(tmp_path: Path) -> None:
    asked = work(tmp_path, [0, 1])
    with claimed(tmp_path / "out" / "claims", "seed0"):
        make_cells(asked)
        assert {key.seed for key in asked.cells()} == {1}
        assert "(under way: " in what_is_left(asked)


def test_what_is_left_is_told_with_its_time(tmp_path: Path) -> None:
    asked = work(tmp_path, [0, 1])
    assert what_is_left(asked).splitlines()[0] == "8 of 8 cells are left"
    make_cells(replace(asked, seeds=[0]))
    # Five stages of 10 s and four evaluations of 5 s: 70 s.
    assert what_is_left(asked).splitlines() == [
        "4 of 8 cells are left; about 0.0 hours of one core",
        "seed 1: start, pairs, rejection, chain",
    ]


def test_discarded_models_leave_the_cells(tmp_path: Path) -> None:
    asked = replace(work(tmp_path, [0]), discard_models=True)
    make_cells(asked)
    assert not (tmp_path / "out" / "runs" / "seed0").exists()
    assert len(asked.cells()) == 4


def test_the_table_does_not_depend_on_the_order_of_the_cells(tmp_path: Path) -> None:
    one, other = work(tmp_path / "a", [0, 1, 2]), work(tmp_path / "b", [2, 0, 1])
    make_cells(one)
    make_cells(other)
    texts = [write_tables(replace(asked, seeds=[0, 1, 2])) for asked in (one, other)]
    assert texts[0] == texts[1]


def test_files_of_the_table(tmp_path: Path) -> None:
    asked = work(tmp_path, [0, 1, 2])
    assert write_tables(asked) == ""
    make_cells(asked)
    assert "chain - rejection" in write_tables(asked)
    data = json.loads((tmp_path / "out" / "table.json").read_text())
    primary = [row for row in data["contrasts"] if row["primary"] and row["measure"] == "greedy"]
    assert [row["arms"] for row in primary] == [["rejection", "chain"], ["start", "pairs"]]
    assert (tmp_path / "out" / "table.md").read_text().startswith("| Accuracy %")
    picture = (tmp_path / "out" / "gains.svg").read_text()
    assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
    assert picture.count("chain - ") == 2


def test_only_primary_contrasts_are_tested_and_adjusted(tmp_path: Path) -> None:
    asked = work(tmp_path, [0, 1, 2, 3])
    make_cells(asked)
    rows = [
        row for row in sweep_table(asked.plan.sweep, asked.cells()).contrasts
        if row.measure == "sampled"
    ]  # fmt: skip
    assert [row.primary for row in rows] == [True, True, False]
    assert rows[2].adjusted is None
    assert rows[2].verdict == ""
    greedy = [r for r in sweep_table(asked.plan.sweep, asked.cells()).contrasts if not r.decides]
    assert {row.measure for row in greedy} == {"greedy"}
    assert {row.verdict for row in greedy} == {""}, "a measure that decides nothing"
    ps = [row.found.over_seeds.pvalue for row in rows[:2] if row.found.over_seeds]
    assert sorted(row.adjusted for row in rows[:2]) == sorted(  # type: ignore[type-var]
        [min(1.0, 2 * min(ps)), max(2 * min(ps), max(ps))]
    )


def test_the_family_is_as_large_as_declared(tmp_path: Path) -> None:
    asked = work(tmp_path, [0, 1, 2, 3])
    make_cells(asked)
    cells = {key: cell for key, cell in asked.cells().items() if key.arm != "rejection"}
    row = next(r for r in sweep_table(asked.plan.sweep, cells).contrasts if r.decides)
    assert row.arms == ("start", "pairs")
    assert row.found.over_seeds is not None
    assert row.adjusted == min(1.0, 2 * row.found.over_seeds.pvalue), "two contrasts are primary"


def test_one_seed_says_nothing_of_new_runs(tmp_path: Path) -> None:
    asked = work(tmp_path, [0])
    make_cells(asked)
    text = sweep_table(asked.plan.sweep, asked.cells()).to_text()
    assert "one seed: nothing can be said of new training runs" in text


def test_further_sets_of_problems_stand_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Any, int]] = []

    def measure(recipe: Any, task: Any, name: str, policy: Path, folder: Path) -> None:
        asked.append((name, recipe.task.options, recipe.evaluate.problems))
        store(folder.parent, name, [1, 0, 0, 0], [8, 4, 0, 0])
        (folder.parent / "eval" / name).rename(folder / "made")
        for file in (folder / "made").iterdir():
            file.rename(folder / file.name)

    monkeypatch.setattr("align.sweep.work.measure", measure)
    text = sweeps.FILE + "also: {new: ['task.options.families=[relay]', evaluate.problems=20]}\n"
    work = Work(plan(sweeps.sweep(tmp_path, text)), [0, 1], tmp_path / "out", sweeps.made_up)
    begin(work)
    make_cells(work)
    assert asked[0] == ("sft", {"difficulty": "long", "families": ["relay"]}, 20)
    assert len(asked) == 8
    table = sweep_table(work.plan.sweep, work.cells())
    assert table.rows[0].also["new"]["greedy"].mean == 0.25
    assert table.rows[0].also["new"]["sampled"].mean == 12 / 32
    assert "Accuracy % on new, mean of the seeds" in table.to_text()
    with pytest.raises(SweepError, match="made with other settings: also"):
        begin(replace(work, plan=plan(sweeps.sweep(tmp_path))))


def test_the_benchmark_is_a_sweep() -> None:
    benchmark = load_sweep(Path(__file__).parents[2] / "benchmarks" / "three_stage.yaml")
    asked = plan(benchmark)
    check_recipe(asked.recipe_for(asked.cells(0)))
    assert {entry.name for entry in plan(benchmark, 1).recipe.stages} >= {
        "rejection-p1",
        "on_coin-p1",
    }


@pytest.mark.parametrize("world", ["soft", "late", "rare", "even", "fatal"])
def test_the_worlds_are_sweeps(world: str) -> None:
    loaded = load_sweep(Path(__file__).parents[2] / "benchmarks" / "worlds" / f"{world}.yaml")
    asked = plan(loaded)
    check_recipe(asked.recipe_for(asked.cells(0)))
    assert loaded.file.primary == (("twice", "chain"), ("rollouts", "both"), ("as-many", "pairs"))
    assert {*loaded.file.arms} >= {"start", "again", "full", "uncertain"}


@pytest.mark.parametrize("name", ["soft_more", "soft_questions", "late_more", "tune_again"])
def test_further_arms_share_the_start_of_their_world(name: str) -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "worlds"
    world = "late" if name == "late_more" else "soft"
    recipes = []
    for file in (f"{name}.yaml", f"{world}.yaml"):
        asked = plan(load_sweep(folder / file))
        check_recipe(asked.recipe_for(asked.cells(0)))
        recipes.append(asked.recipe_for(asked.cells(0)))
    more, first = recipes
    assert more.settings("start") == first.settings("start")
    assert more.task == first.task
    for stage in {"search", "pairs", "again"} & {entry.name for entry in more.stages}:
        assert more.settings(stage) == first.settings(stage)


def test_the_ablation_of_table_9_is_a_sweep() -> None:
    loaded = load_sweep(Path(__file__).parents[2] / "benchmarks" / "ablation.yaml")
    asked = plan(loaded)
    check_recipe(asked.recipe_for(asked.cells(0)))
    assert list(loaded.file.arms) == ["SFT", "DPO-1", "DPO-2", "both"]


def test_a_sweep_extends_another(tmp_path: Path) -> None:
    sweeps.sweep(tmp_path)
    (tmp_path / "below.yaml").write_text(
        sweeps.FILE.replace("[evaluate.problems=40]", "[evaluate.samples=2, evaluate.problems=30]")
    )
    above = tmp_path / "above.yaml"
    above.write_text("extends: below.yaml\nmargin: 3\noverrides: [evaluate.problems=40]\n")
    below, found = load_sweep(tmp_path / "below.yaml"), load_sweep(above)
    assert (found.file.arms, found.file.primary) == (below.file.arms, below.file.primary)
    assert found.file.margin == 3
    evaluate = found.recipe.evaluate
    assert (evaluate.samples, evaluate.problems) == (2, 40)
    (tmp_path / "below.yaml").write_text("extends: above.yaml")
    with pytest.raises(RecipeError, match=r"extends: got 'above\.yaml'; name a sweep file that"):
        load_sweep(above)


# Random search


def test_points_copy_what_they_change_and_what_comes_after(tmp_path: Path) -> None:
    asked = work(tmp_path, [100], points=2)
    make_cells(asked)
    assert made(tmp_path, "tuning-seed100") == [
        "sft", "pts", "pairs", "rejection", "chain",
        "pairs-p1", "rejection-p1", "chain-p1", "pairs-p2", "rejection-p2", "chain-p2",
    ]  # fmt: skip
    entries = {entry.name: entry for entry in asked.plan.recipe.stages}
    assert entries["chain-p1"].start == "pairs-p1"
    assert entries["chain-p1"].share == "chain"
    assert entries["pairs-p1"].settings.pairs == "pts"  # type: ignore[attr-defined]
    assert asked.plan.recipe.evaluate.split == "dev"
    whole = asked.plan.recipe_for(asked.plan.cells(100))
    assert parse_recipe(whole.plain(), "again").stages == whole.stages


def test_draws_belong_to_the_stage_and_the_point(tmp_path: Path) -> None:
    first = plan(sweeps.sweep(tmp_path), 2).draws
    text = sweeps.FILE.replace("  pairs: {beta: [0.3, 1, 3]}\n", "")
    alone = plan(sweeps.sweep(tmp_path, text), 3).draws
    assert [first[k]["rejection"] for k in (1, 2)] == [alone[k]["rejection"] for k in (1, 2)]
    assert all(1e-5 <= alone[k]["rejection"]["learning_rate"] <= 1e-3 for k in alone)


def test_the_log_names_winners_and_edges(tmp_path: Path) -> None:
    asked = work(tmp_path, [100, 101], points=3)
    make_cells(asked)
    log = tuning_log(asked.plan, asked.cells())
    assert [len(points) for points in log.arms.values()] == [4, 4, 4, 1]
    for points in log.arms.values():
        assert [p.mean for p in points] == sorted((p.mean for p in points), reverse=True)
        assert all(set(p.accuracy) == {100, 101} for p in points)
    best = log.arms["rejection"][0]
    assert any(f"rejection: point {best.point} is best" in line for line in log.sentences())
    write_tables(asked)
    kept = json.loads((tmp_path / "out" / "tuning.json").read_text())
    assert {p["point"] for p in kept["arms"]["rejection"]} == {0, 1, 2, 3}


def test_only_the_best_points_of_the_first_seed_go_on(tmp_path: Path) -> None:
    asked = replace(work(tmp_path, [100, 101], points=3), keep=2)
    assert what_is_left(asked).splitlines()[0] == "13 of 13 cells are left"  # 4 + 4 + 4 + 1
    assert run_sweep(asked) == []
    cells = asked.cells()
    first = tuning_log(asked.plan, {k: c for k, c in cells.items() if k.seed == 100}).arms
    for arm, points in first.items():
        later = {key.point for key in cells if key.arm == arm and key.seed == 101}
        assert later == {p.point for p in points[:2]}
    both = tuning_log(asked.plan, cells).arms
    for points in both.values():
        assert [len(p.accuracy) for p in points] == sorted(
            (len(p.accuracy) for p in points), reverse=True
        )
    assert {len(p.accuracy) for p in both["rejection"]} == {1, 2}


def test_edges_of_ranges_and_choices() -> None:
    wide = Range(low=1e-5, high=1e-3)
    assert [at_edge(wide, v) for v in (1e-5, 1.5e-5, 1.7e-5, 1e-4, 6e-4, 7e-4)] == [
        True, True, False, False, False, True,
    ]  # fmt: skip
    assert [at_edge([4, 8, 16], v) for v in (4, 8, 16)] == [True, False, True]


def test_a_seed_serves_tuning_or_measuring(tmp_path: Path) -> None:
    make_cells(work(tmp_path, [0]))
    with pytest.raises(SweepError, match=r"--seeds: 0 has cells without random search here"):
        work(tmp_path, [0], points=1)


# What is refused


def changed(change: Callable[[dict[str, Any]], object], path: Path) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_cells_of_other_settings_are_refused_with_what_differs(tmp_path: Path) -> None:
    make_cells(work(tmp_path, [0]))
    other = sweeps.sweep(tmp_path, sweeps.FILE, "rejection.samples=3")
    with pytest.raises(SweepError, match=r"rejection-seed0.json: made with other settings: stages"):
        begin(Work(plan(other), [0], tmp_path / "out", sweeps.made_up))
    begin(Work(plan(other), [1], tmp_path / "out", sweeps.made_up))


def test_an_arm_may_be_added_later(tmp_path: Path) -> None:
    make_cells(work(tmp_path, [0]))
    text = sweeps.FILE.replace("arms: {", "arms: {nothing: base, ")
    asked = Work(plan(sweeps.sweep(tmp_path, text)), [0], tmp_path / "out", sweeps.made_up)
    begin(asked)
    assert [key.arm for key in asked.missing(0)] == ["nothing"]


def test_cells_of_other_code_are_refused_unless_allowed(tmp_path: Path) -> None:
    asked = work(tmp_path, [0])
    make_cells(asked)
    file = tmp_path / "out" / "cells" / "chain-seed0.json"
    changed(lambda data: data.update(source="0123456789ab"), file)
    with pytest.raises(SweepError, match=r"made by other code .*--allow-other-source"):
        begin(asked)
    begin(replace(asked, other_source=True))
    text = sweep_table(asked.plan.sweep, replace(asked, other_source=True).cells()).to_text()
    assert "The cells were made by 2 sources." in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=99), "has format 99, and this version reads 1"),
        (lambda d: d.pop("ledger"), "ledger: Field required"),
        (lambda d: d["measured"]["items"]["passed"].pop(), "counts do not fit together"),
        (
            lambda d: d["measured"]["items"]["passed"].__setitem__(0, 9),
            "counts do not fit together",
        ),
    ],
)
def test_a_damaged_cell_is_told(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    asked = work(tmp_path, [0])
    make_cells(asked)
    changed(change, tmp_path / "out" / "cells" / "chain-seed0.json")
    with pytest.raises(SweepError, match=message):
        asked.cells()


def test_a_cell_is_read_as_it_was_written(tmp_path: Path) -> None:
    asked = work(tmp_path, [0])
    make_cells(asked)
    for cell in asked.cells().values():
        write_cell(tmp_path / "again.json", cell)
        assert read_cell(tmp_path / "again.json") == cell


def test_a_strange_folder_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(SweepError, match=r"it holds mine\.txt but no cells"):
        work(tmp_path, [0])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("chain: chain}", "chain: chian}", "arms.chain: no stage 'chian' that makes a policy; did"),
        ("chain: chain}", "chain: pts}", "arms.chain: no stage 'pts' that makes a policy"),
        ("[start, pairs]", "[start, pears]", "primary: no arm 'pears'; did you mean 'pairs'"),
        ("[start, pairs]", "[pairs, pairs]", "'pairs' is compared with itself"),
        ("[[pairs, chain]]", "[[start, pairs]]", "is primary already; name it once, one way round"),
        (
            "primary: [[rejection, chain], [start, pairs]]",
            "primary: [[start, pairs], [pairs, start]]",
            "primary: ['pairs', 'start'] stands twice; name it once, one way round",
        ),
        ("[evaluate.problems=40]", "[seed=7]", "overrides: got 'seed=7', but a sweep's seeds are"),
        ("  pairs: {beta", "  pears: {beta", "tune.pears: no such stage; did you mean 'pairs'"),
        ("{beta: [", "{beat: [", "tune.pairs.beat: no such setting; did you mean 'beta'"),
        ("[0.3, 1, 3]", "[0.3, 0]", "tune.pairs.beta: got 0"),
        ("[0.3, 1, 3]", "[0.3]", "tune.pairs.beta: got [0.3]; give two choices or more"),
        ("low: 1.0e-5", "low: 1", "low must lie below high"),
        ("margin: 2", "also: {x: [sft.epochs=2]}", "'sft.epochs=2', which changes nothing of an"),
        (
            "margin: 2",
            "also: {x: ['task.options.families=[swap]', evaluate.split=dev]}",
            "also.x: 'swap' is held out: it has a test split only",
        ),
        ("margin: 2", "margn: 2", "margn: no such key; did you mean 'margin'"),
        ("recipe: phi-nano", "recipe: phi-nona", "phi-nona: no such recipe; did you mean"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_told(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in sweeps.FILE
    with pytest.raises(RecipeError) as caught:
        sweeps.sweep(tmp_path, sweeps.FILE.replace(old, new))
    assert message in str(caught.value)


def test_random_search_needs_ranges(tmp_path: Path) -> None:
    text = sweeps.FILE.partition("tune:")[0]
    with pytest.raises(RecipeError, match="--sample: the sweep has no ranges"):
        plan(sweeps.sweep(tmp_path, text), 2)


def test_seeds_are_numbers_and_ranges() -> None:
    assert parse_seeds("0-3,7, 2") == [0, 1, 2, 3, 7]
    for text in ("", "a", "3-1", "1-", "-1"):
        with pytest.raises(RecipeError, match="--seeds: got"):
            parse_seeds(text)


def test_costs_leave_out_what_is_only_matched_or_shared(tmp_path: Path) -> None:
    recipe = sweeps.sweep(tmp_path).recipe
    assert needed(recipe, ["chain"]) == ["sft", "pts", "pairs", "chain"]
    assert needed(recipe, ["rejection"], costs=True) == ["sft", "rejection"]
