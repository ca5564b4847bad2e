"""`align compare`: figures by hand and from the tools' own summaries, formats, refusals."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.compare.inspect_logs import _content
from align.compare.pairing import compare, paired, unpaired_z
from align.compare.readers import read_results
from align.compare.records import Reading, Readings, ScoredItem
from align.compare.table import picture, sentences, to_json, to_text, write_page
from align.errors import CompareError
from align.evaluation.statistics import holm
from tests.align import evaluations

FILES = Path(__file__).parent / "compare_files"


def side(items: Mapping[str, Sequence[float]], key: tuple[str, str] = ("task", "acc")) -> Readings:
    scored = {name: ScoredItem(tuple(s), name, f"file, {name}") for name, s in items.items()}
    return {key: Reading("file", scored)}


def verdicts(text: str) -> dict[str, Sequence[float]]:
    return {str(k): (float(v),) for k, v in enumerate(text)}


def test_single_verdicts_get_the_exact_test() -> None:
    """6 items rise and 1 falls: of 2**7 ways of turning them 2 * (1 + 7) are as extreme."""
    [row] = compare(side(verdicts("0000001111")), side(verdicts("1111110111"))).rows
    assert (row.items, row.test.better, row.test.worse) == (10, 6, 1)
    assert row.means == (0.4, 0.9)
    assert row.test.difference.mean == pytest.approx(0.5)
    assert row.test.pvalue == pytest.approx(16 / 128)
    assert row.test.test == "McNemar, exact"


def test_samples_of_an_item_are_averaged_first() -> None:
    """Differences 1, 0.5, 0 and 0.5 by hand: mean 0.5, variance (0.25 + 0.25) / 3."""
    first = side({"a": (0, 0), "b": (0, 1), "c": (1, 1), "d": (0, 0, 0, 0)})
    second = side({"a": (1, 1), "b": (1, 1), "c": (1, 1), "d": (1, 0, 1, 0)})
    [row] = compare(first, second).rows
    error = math.sqrt(0.5 / 3 / 4)
    t975 = 3.182446305284263  # of 3 degrees of freedom
    assert row.test.difference.mean == pytest.approx(0.5)
    assert row.test.difference.high == pytest.approx(0.5 + t975 * error)
    assert row.test.test == "paired t"
    assert row.test.df == 3
    t = 0.5 / error
    tail = 0.5 - (math.atan(t / math.sqrt(3)) + t / math.sqrt(3) / (1 + t * t / 3)) / math.pi
    assert row.test.pvalue == pytest.approx(2 * tail)  # Student's distribution of 3 degrees
    assert row.samples == (2.5, 2.5)


def test_repeating_samples_does_not_make_an_interval_narrower() -> None:
    few = {"a": (0, 1), "b": (1, 1), "c": (0, 0), "d": (1, 0), "e": (0, 1)}
    more = {"a": (1, 1), "b": (1, 1), "c": (0, 1), "d": (1, 0), "e": (1, 1)}
    [row] = compare(side(few), side(more)).rows
    many = [side({name: values * 50 for name, values in items.items()}) for items in (few, more)]
    [again] = compare(*many).rows
    assert again.test.difference.low == pytest.approx(row.test.difference.low)
    assert again.test.pvalue == pytest.approx(row.test.pvalue)


def test_the_unpaired_test_is_that_of_the_standard_errors() -> None:
    """lm-evaluation-harness: z = (a - b) / sqrt(se_a**2 + se_b**2), se = sd / sqrt(n)."""
    a, b = np.array([0.0, 1, 1, 0, 1]), np.array([1.0, 1, 1, 0, 1])
    error = math.sqrt(0.3 / 5 + 0.2 / 5)  # sample variances 6/5/4 and 4/5/4
    found, pvalue = unpaired_z(a, b)
    assert found.mean == pytest.approx(0.2)
    assert found.high - found.mean == pytest.approx(1.959963984540054 * error)
    assert pvalue == pytest.approx(math.erfc(0.2 / error / math.sqrt(2)))


def test_worth_is_the_ratio_of_the_variances() -> None:
    a, b = np.array([0.0, 1, 1, 0, 1, 0]), np.array([1.0, 1, 1, 0, 1, 0])
    items = [side({str(k): (v,) for k, v in enumerate(x)}) for x in (a, b)]
    [row] = compare(*items).rows
    assert row.worth == pytest.approx((a.var(ddof=1) + b.var(ddof=1)) / (b - a).var(ddof=1))


@pytest.mark.parametrize("seed", range(5))
def test_holm_is_the_closed_test_of_bonferroni(seed: int) -> None:
    """Adjusted: the largest, over all families with the row, of size times smallest p."""
    rng = np.random.default_rng(seed)
    first: Readings = {}
    second: Readings = {}
    for task in "abcd":
        first |= side({str(k): (float(rng.random() < 0.4),) for k in range(30)}, (task, "acc"))
        second |= side({str(k): (float(rng.random() < 0.6),) for k in range(30)}, (task, "acc"))
    rows = compare(first, second).rows
    raw = [row.test.pvalue for row in rows]
    for k, row in enumerate(rows):
        families = [
            [raw[k], *(raw[j] for j in others)]
            for n in range(4)
            for others in itertools.combinations([j for j in range(4) if j != k], n)
        ]
        closed = min(1.0, max(len(family) * min(family) for family in families))
        assert row.adjusted == pytest.approx(closed)
    assert [row.adjusted for row in rows] == pytest.approx(holm(raw))


def test_items_of_one_side_are_counted_and_shown() -> None:
    first, second = verdicts("010101"), verdicts("1111")
    found = compare(side(first), side({**second, "extra": (1.0,)}))
    assert found.rows[0].only == (2, 1)
    assert found.rows[0].items == 4
    block = to_text(found).split("In no figure above")[1].splitlines()
    assert block[2].split() == ["task,", "acc", "2", "1", "0", "0"]


def test_other_tasks_are_told_and_named_ones_chosen() -> None:
    first = side(verdicts("0101")) | side(verdicts("0011"), ("other", "acc"))
    second = side(verdicts("1101")) | side(verdicts("1101"), ("task", "f1"))
    found = compare(first, second, ("x", "y"))
    assert found.remarks == (
        "Only x has other (acc): not compared.",
        "Only y has task (f1): not compared.",
    )
    with pytest.raises(CompareError, match=r"measure 'ac' is not on both sides; did you mean"):
        compare(first, second, measures=("ac",))
    with pytest.raises(CompareError, match="nothing to compare"):
        compare(first, side(verdicts("01"), ("third", "acc")))


def test_another_question_under_one_id_is_refused_with_its_place() -> None:
    first, second = side(verdicts("01")), side(verdicts("01"))
    second["task", "acc"].items["1"] = ScoredItem((1.0,), "other", "b.jsonl, line 2")
    with pytest.raises(CompareError, match=r"b\.jsonl, line 2: item 1 of task is another question"):
        compare(first, second)


# Formats.


def test_evaluations_of_a_run(tmp_path: Path) -> None:
    evaluations.store(tmp_path, "sft", [0, 0, 1, 0], [2, 3, 8, 0])
    evaluations.store(tmp_path, "dpo", [1, 0, 1, 1], [4, 3, 8, 8])
    a, b = (read_results(tmp_path / "eval" / name) for name in ("sft", "dpo"))
    greedy, sampled = compare(a, b).rows
    assert (greedy.measure, greedy.means) == ("greedy", (0.25, 0.75))
    assert sampled.means == pytest.approx((13 / 32, 23 / 32))
    assert sampled.samples == (8, 8)
    with pytest.raises(CompareError, match=r"dpo, sft; name one: .*eval/sft"):
        read_results(tmp_path)


def test_samples_of_lm_evaluation_harness() -> None:
    """Written by lm_eval 0.4.13; the figures are those of its results_*.json."""
    found = compare(read_results(FILES / "lm_eval_a"), read_results(FILES / "lm_eval_b"))
    assert {(row.task, row.measure): row.means for row in found.rows} == {
        ("pick", "acc"): (0.5, 0.75),
        ("pick", "acc_norm"): (0.5, 0.75),
        ("sums", "exact_match, first"): (0.0, 0.0),
        ("sums", "exact_match, maj"): (0.0, 0.0),
    }
    assert {row.items for row in found.rows} == {12}
    unpaired, errors = found.rows[0].unpaired, (0.15075567228888181, 0.1305582419667734)
    half = 1.959963984540054 * math.hypot(*errors)
    assert unpaired.high - unpaired.mean == pytest.approx(half)


@pytest.fixture(scope="module", params=["eval", "deflated", "json"])
def logs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logs of both models as inspect_ai wrote them, packed otherwise, and as JSON."""
    folder = tmp_path_factory.mktemp("logs")
    for file in sorted(FILES.glob("inspect_*/*.eval")):
        target = folder / file.parent.name / file.name
        target.parent.mkdir(exist_ok=True)
        members = unpacked(file)
        if request.param == "eval":
            target.write_bytes(file.read_bytes())
        elif request.param == "deflated":
            with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
        else:
            samples = [json.loads(v) for k, v in members.items() if k.startswith("samples/")]
            log = {**json.loads(members["header.json"]), "samples": samples}
            target.with_suffix(".json").write_text(json.dumps(log))
    return folder


def unpacked(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: _content(file, archive, name) for name in archive.namelist()}


def test_logs_of_inspect_ai(logs: Path) -> None:
    """Written by inspect_ai 0.3.285 with its mockllm; the accuracies are those of its headers."""
    found = compare(read_results(logs / "inspect_a"), read_results(logs / "inspect_b"))
    assert {(row.task, row.measure): row.means for row in found.rows} == {
        (task, score["name"]): tuple(
            pytest.approx(scores_of(side, task)[score["name"]]) for side in "ab"
        )
        for task in ("sums", "adds")
        for score in header_of("a", task)["results"]["scores"]
    }
    assert {row.task: row.samples for row in found.rows} == {"sums": (2, 2), "adds": (1, 1)}
    assert {row.task: row.items for row in found.rows} == {"sums": 4, "adds": 5}


def header_of(side: str, task: str) -> dict[str, Any]:
    [file] = (FILES / f"inspect_{side}").glob(f"*_{task}_*.eval")
    header: dict[str, Any] = json.loads(unpacked(file)["header.json"])
    return header


def scores_of(side: str, task: str) -> dict[str, float]:
    scores = header_of(side, task)["results"]["scores"]
    return {score["name"]: score["metrics"]["accuracy"]["value"] for score in scores}


def log(folder: Path, samples: Sequence[Mapping[str, Any]], **changes: Any) -> Path:
    """A log of inspect_ai with these samples."""
    file = folder / "log.json"
    header = {"version": 2, "status": "success", "eval": {"task": "t", "model": "m"}, **changes}
    file.write_text(json.dumps({**header, "samples": samples}))
    return file


def sample(name: object, value: object, epoch: int = 1, **changes: Any) -> dict[str, Any]:
    base = {"id": name, "epoch": epoch, "input": f"q{name}", "target": "1"}
    scores = {} if value is None else {"match": {"value": value}}
    return {**base, "scores": scores, **changes}


def test_values_of_inspect_scores(tmp_path: Path) -> None:
    values = ["C", "I", "P", "N", "yes", True, 0.25, "0.5", [1], None, math.nan]
    [reading] = read_results(log(tmp_path, [*map(sample, range(11), values)])).values()
    assert [item.scores[0] for item in reading.items.values()] == [1, 0, 0.5, 0, 1, 1, 0.25, 0.5]
    assert reading.unscored == 3


def test_a_mapping_of_scores_is_several_measures(tmp_path: Path) -> None:
    readings = read_results(log(tmp_path, [sample(1, {"a": 1, "b": "I"}), sample(2, "C")]))
    assert {key[1]: [i.scores for i in r.items.values()] for key, r in readings.items()} == {
        "match.a": [(1.0,)],
        "match.b": [(0.0,)],
        "match": [(1.0,)],
    }
    assert readings["t", "match.a"].unscored == 1


def test_an_unfinished_log_is_told(tmp_path: Path) -> None:
    file = log(tmp_path, [sample(1, "C"), sample(2, "I")], status="error")
    found = compare(read_results(file), read_results(file))
    assert found.remarks == (f"{file}: the log is not finished (status error)",)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([sample(1, "C"), sample(1, "I")], "sample '1', epoch 1: stands twice"),
        ([sample(1, "C"), sample(1, "C", 2, input="other")], "is another question than"),
        ([{"epoch": 1}], "no log of inspect_ai that can be read"),
        ([sample(1, None)], "no item has a score"),
    ],
)
def test_logs_that_cannot_be_compared(
    samples: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CompareError, match=message):
        read_results(log(tmp_path, samples))


def line(doc: int, **changes: Any) -> dict[str, Any]:
    """A line of lm-evaluation-harness."""
    base = {"doc_id": doc, "doc": {"q": doc}, "target": "1", "filter": "none", "metrics": ["acc"]}
    return {**base, "doc_hash": f"h{doc}", "target_hash": "t", "acc": 1.0, **changes}


def samples_file(folder: Path, *lines: Mapping[str, Any], name: str = "samples_x_y.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return file


def test_filters_repeats_and_metrics_of_lm_eval(tmp_path: Path) -> None:
    lines = [line(0, acc=[0, 1, 1]), line(0, filter="strict", acc=False)]
    lines += [line(1, metrics=["acc", "f1"], f1=[[0, 1], "x"]), line(2, acc=None)]
    readings = read_results(samples_file(tmp_path, *lines))
    assert {key: [i.scores for i in r.items.values()] for key, r in readings.items()} == {
        ("x_y", "acc"): [(0.0, 1.0, 1.0), (1.0,)],
        ("x_y", "acc, strict"): [(0.0,)],
    }
    assert readings["x_y", "acc"].unscored == 1


def test_lines_without_names_of_metrics(tmp_path: Path) -> None:
    old = {"doc_id": 3, "doc": {"q": 1}, "target": "1", "arguments": [], "resps": [], "acc": 1.0}
    file = samples_file(tmp_path, old, name="samples_a_b_2024-01-02T03-04-05.678901.jsonl")
    [(key, reading)] = read_results(file).items()
    assert key == ("a_b", "acc")
    assert reading.items["3"].scores == (1.0,)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line(0), line(0)], "line 2: item 0 stands twice for acc"),
        ([{"text": "x"}], "line 1: no line of lm-evaluation-harness"),
        ([line(0, acc="good")], "no item has a score"),
    ],
)
def test_samples_that_cannot_be_compared(
    lines: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CompareError, match=message):
        read_results(samples_file(tmp_path, *lines))


def test_folders_that_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(CompareError, match="no such file"):
        read_results(tmp_path / "x")
    with pytest.raises(CompareError, match="no samples_"):
        read_results(tmp_path)
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(CompareError, match="unknown kind of file"):
        read_results(tmp_path / "x.txt")
    for day in (1, 2):
        samples_file(tmp_path, line(0), name=f"samples_t_2026-01-0{day}T00-00-00.1.jsonl")
    with pytest.raises(CompareError, match=r"same task \(t\); name one"):
        read_results(tmp_path)
    (tmp_path / "bad.eval").write_bytes(b"PK")
    with pytest.raises(CompareError, match="no log of inspect_ai"):
        read_results(tmp_path / "bad.eval")


# What is written.


def test_measures_that_are_no_rates_are_not_told_in_points() -> None:
    first = side({str(k): (10.0 + k,) for k in range(6)})
    second = side({str(k): (12.0 + 1.1 * k,) for k in range(6)})
    found = compare(first, second)
    assert not picture(found)
    assert sentences(found)[0].startswith("task, acc: B is higher (+2.25 [")


def test_the_page_escapes_and_shows_the_picture(tmp_path: Path) -> None:
    found = compare(side(verdicts("0101")), side(verdicts("1101")), ("<b>", "x&y"))
    write_page(found, tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text()
    assert "<svg" in page
    assert "<b>" not in page
    assert "x&amp;y" in page


def test_differences_in_reverse_are_the_same() -> None:
    rng = np.random.default_rng(4)
    a, b = (rng.random(40) for _ in range(2))
    forth, back = paired(a, b, single=True), paired(b, a, single=True)
    assert forth.pvalue == pytest.approx(back.pvalue)
    assert forth.difference.low == pytest.approx(-back.difference.high)
    assert (forth.better, forth.worse) == (back.worse, back.better)


def test_the_command(tmp_path: Path) -> None:
    evaluations.store(tmp_path, "sft", [0, 0, 1, 0], [2, 3, 8, 0])
    evaluations.store(tmp_path, "dpo", [1, 0, 1, 1], [4, 3, 8, 8])
    words = [sys.executable, "-m", "align.cli", "compare", str(tmp_path / "eval" / "sft")]
    words += [str(tmp_path / "eval" / "dpo"), "--measure", "greedy"]
    page = tmp_path / "new" / "page.html"
    told = [*words, "--json", "--html", str(page)]
    done = subprocess.run(told, capture_output=True, text=True, check=True)
    [row] = json.loads(done.stdout)["rows"]
    assert row["test"]["difference"]["mean"] == pytest.approx(0.5)
    assert page.is_file()
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "evaluation, greedy: no difference is established (+50.0" in done.stdout


def test_json_holds_no_nan() -> None:
    found = compare(side(verdicts("1111")), side(verdicts("1111")))
    assert json.loads(json.dumps(to_json(found), allow_nan=False))["rows"][0]["worth"] is None
