"""Decontamination against a plain reference of Algorithm 1, and its files."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.decontamination import index as index_module
from align.decontamination.index import EvaluationIndex, Finding, Item, judged
from align.decontamination.ngrams import hashes_of
from align.decontamination.run import Request, decontaminate
from align.decontamination.words import words_of
from align.settings import DecontaminationConfig
from pts.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It costs $1.8, he's sure.", "it costs 1 8 he s sure"),
        ("snake_case\tand\r\n new-lines\u00a0here", "snake case and new lines here"),
        ("Straße STRASSE ﬁne “quoted”", "strasse strasse fine quoted"),
        ("co\u00adop zero\u200bwidth", "coop zerowidth"),
        ("数学は 楽しい", "数 学 は 楽 し い"),
        ("e\u0301tude étude ÉTUDE", "étude étude étude"),
        ("हिन्दी \ud800 x", "हिन्दी x"),
        ("…!?", ""),
    ],
)
def test_words(text: str, words: str) -> None:
    assert words_of(text) == words.split()


def test_ascii_and_other_texts_are_cut_alike() -> None:
    """A text's ASCII words are the same with and without another character in it."""
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(chr(rng.randrange(128)) for _ in range(60))
        assert words_of(f"{text} é") == [*words_of(text), "é"]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 13])
def test_hashes_are_the_polynomial(length: int) -> None:
    rng = np.random.default_rng(length)
    words = rng.integers(0, 2**63, size=40).astype(np.uint64)
    factor = 0x9E3779B97F4A7C15
    plain = [
        sum(int(w) * factor ** (length - 1 - k) for k, w in enumerate(words[i : i + length]))
        % 2**64
        for i in range(40 - length + 1)
    ]
    assert hashes_of(words, length).tolist() == plain
    assert len(hashes_of(words[: length - 1], length)) == 0


def grams(texts: Sequence[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(w[i : i + n]) for w in map(str.split, texts) for i in range(len(w) - n + 1)}


def reference(
    items: Sequence[str], row: Sequence[str], config: DecontaminationConfig
) -> tuple[str | None, float]:
    """Algorithm 1 with sets, for texts of plain words: kind, and the ratio that decided."""
    mine = grams(row, 7)
    ratios = []
    for item in items:
        theirs = grams([item], 7)
        if mine and theirs:
            ratio = len(mine & theirs) / min(len(mine), len(theirs))
            complete = theirs <= mine if len(theirs) < 7 else len(mine) >= 7
            if not complete and len(theirs) >= 7 and len(theirs) <= len(mine):
                complete = True
            ratios.append(ratio if complete else 0.0)
    common = grams(row, 13) & grams(items, 13)
    if any(len(set(gram) - set("0123456789")) >= config.distinct_words for gram in common):
        return "13-gram", -1.0
    best = max(ratios, default=0.0)
    if best >= config.contaminated_ratio:
        return "7-gram", best
    return ("partial", best) if best > config.partial_ratio else (None, best)


def random_texts(rng: random.Random, count: int, longest: int) -> list[str]:
    """Of few words, so that n-grams meet; some hold parts of others."""
    found: list[str] = []
    for _ in range(count):
        words = [rng.choice("abcdef01") for _ in range(rng.randint(1, longest))]
        if found and rng.random() < 0.6:
            part = rng.choice(found).split()
            at = rng.randrange(len(part))
            words += part[at : at + rng.randint(5, 20)]
            if rng.random() < 0.5:
                words[rng.randrange(len(words))] = "z"
        found.append(" ".join(words))
    return found


@pytest.mark.parametrize("seed", range(40))
def test_a_row_is_judged_as_the_reference_judges_it(seed: int) -> None:
    rng = random.Random(seed)
    texts = random_texts(rng, 60, rng.choice([10, 20, 40]))
    items, rest = texts[:30], texts[30:]
    rows = [[rest[k], rng.choice(rest)] if k % 3 == 0 else [rest[k]] for k in range(30)]
    config = DecontaminationConfig(
        contaminated_ratio=rng.choice([0.5, 0.8, 1.0]), partial_ratio=0.2,
        distinct_words=rng.choice([0, 5, 6]),
    )  # fmt: skip
    found = EvaluationIndex(named(items), config).judge(rows)
    for row, finding in zip(rows, found, strict=True):
        kind, ratio = reference(items, row, config)
        assert (finding.kind if finding else None) == kind, row
        if finding and kind != "13-gram":
            assert finding.ratio == ratio
        if finding:
            source = grams([items[finding.item.number]], 7)
            assert set(grams([finding.words], 7)) <= source & grams(row, 7)
            assert finding.common == len(source & grams(row, 7))


def named(texts: Sequence[str]) -> Iterator[tuple[Item, str]]:
    for number, text in enumerate(texts):
        yield Item("set", number, "text"), text


def test_what_a_row_is_does_not_depend_on_its_neighbours_or_on_order() -> None:
    rng = random.Random(5)
    texts = random_texts(rng, 200, 40)
    items, rows = texts[:80], [[text] for text in texts[80:]]
    together = EvaluationIndex(named(items)).judge(rows)
    turned = EvaluationIndex(reversed(list(named(items))))
    alone = [turned.judge([row])[0] for row in rows]
    streamed = [f for _, f in judged(iter(rows), lambda row: row, turned)]
    assert streamed == alone
    for one, other in zip(together, alone, strict=True):
        assert bool(one) == bool(other)
        if one and other:
            assert (one.kind, one.ratio) == (other.kind, other.ratio)


def test_equal_hashes_are_not_equal_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """With keys of 2 bits every n-gram collides; nothing is found that is not there."""
    keys_of, salts = index_module.keys_of, []

    def poor(count: int, salt: int) -> Any:
        salts.append(salt)
        return keys_of(count, salt) & np.uint64(3) if salt else keys_of(count, salt)

    rng = random.Random(1)
    texts = random_texts(rng, 60, 30)
    fair = EvaluationIndex(named(texts[:20])).judge([[text] for text in texts[20:]])
    index = EvaluationIndex(named(texts[:20]))
    index._keys = index._keys.copy()
    index._keys[0] = index._keys[1]  # unknown words hash as a known one
    assert index.judge([[text] for text in texts[20:]]) == fair
    monkeypatch.setattr(
        index_module, "keys_of", lambda count, salt: poor(count, 1 - salt if salt < 2 else salt)
    )
    again = EvaluationIndex(named(texts[:20]))
    assert salts[0] == 1  # the first keys had collisions, others were drawn
    assert again.judge([[text] for text in texts[20:]]) == fair


QUESTION = (
    "A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts in total "
    "does it take?"
)


def one(row: str, *items: str, **settings: Any) -> Finding | None:
    return EvaluationIndex(named(items), DecontaminationConfig(**settings)).judge([[row]])[0]


@pytest.mark.parametrize(
    "written",
    [
        QUESTION,
        QUESTION.upper(),
        QUESTION.replace(".", " –").replace("?", ""),
        "\n> ".join(QUESTION.split()),
        "\u00a0".join(QUESTION.split()),
    ],
)
def test_a_question_is_found_however_it_is_written(written: str) -> None:
    found = one(f"Once upon a time … {written}\nThe end.", QUESTION)
    assert found is not None
    assert (found.kind, found.ratio, found.words) == ("13-gram", 1.0, " ".join(words_of(QUESTION)))


def test_short_items_must_be_there_as_a_whole() -> None:
    item = "What is the capital of the old kingdom"  # 8 words
    assert one(f"Tell me! {item}? Thanks.", item) is not None
    assert one("What is the capital of the old city, tell me now", item) is None
    index = EvaluationIndex(named(["Who wrote Hamlet?", item]))
    assert index.short == {"set": 1}


def test_a_short_row_is_not_held_against_a_longer_item() -> None:
    words = [f"w{k}" for k in range(12)]
    assert one(" ".join(words), " ".join(words * 2)) is None
    assert one(" ".join([*words, "w0"]), " ".join(words * 2)) is not None


@pytest.mark.parametrize("run", ["0 " * 14, "1 2 3 4 5 6 7 8 9 10 11 12 13 14 ", "a b " * 7])
def test_a_13_gram_of_hardly_any_words_is_no_evidence(run: str) -> None:
    row = f"zeros {run}and more words about this table of numbers"
    item = f"print {run}then stop the other program at the very end please, and do so now"
    assert one(row, item, partial_ratio=0.5) is None
    assert one(row, item, distinct_words=0) is not None


def test_the_allow_list_is_learnt_from_distinct_rows() -> None:
    common = "the following are multiple choice questions with answers about the field of study"
    item = f"{common} named: which of these planets has the largest number of known moons today"
    index = EvaluationIndex(named([item]), DecontaminationConfig(partial_ratio=0.5))
    row = [f"{common} of cooking. What is a roux, and what does it do in a sauce of cream?"]
    assert index.judge([row])[0] is not None
    index.learn_allowed([[f"a {common} b"], [f"a {common} b"]])  # one row, twice
    assert index.allowed == 0
    index.learn_allowed([[f"a {common} b"], [f"{common}."]])
    assert list(index.allowed_texts()) == [" ".join(common.split()[:13])]
    assert index.judge([row])[0] is None
    found = index.judge([[item]])[0]
    assert found is not None
    assert found.kind == "13-gram"  # the question itself is not allowed


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An evaluation set, and sources of each format with the question in their second row."""
    (tmp_path / "eval.jsonl").write_text(json.dumps({"question": QUESTION, "id": 1}) + "\n")
    rows = [
        {"id": 7, "text": "Some words that have nothing to do with it: é, \U0001f600."},
        {"id": 8, "text": f"Copied. {QUESTION.lower()}"},
        {"id": 9, "text": 'A "quoted", comma\nand line.'},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text"])
        writer.writeheader()
        writer.writerows(rows)
    schema = pa.schema([("id", pa.int16()), ("text", pa.large_string()), ("at", pa.timestamp("s"))])
    stamped = [{**row, "at": None} for row in rows]
    pq.write_table(pa.Table.from_pylist(stamped, schema), tmp_path / "a.parquet")
    return tmp_path


def request(data: Path, **changes: Any) -> Request:
    train = tuple(str(data / f"a.{kind}") for kind in ("jsonl", "csv", "parquet"))
    return Request(**{"train": train, "against": (str(data / "eval.jsonl"),), **changes})


def test_sources_keep_their_format_and_what_went_is_told(data: Path) -> None:
    summary = decontaminate(request(data), data / "out")
    assert [count["13-gram"] for count in summary["sources"]] == [1, 1, 1]
    clean = data / "out" / "clean"
    assert [row["id"] for row in lines(clean / "a.jsonl")] == [7, 9]
    with (clean / "a.csv").open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["7", "9"]
    table = pq.read_table(clean / "a.parquet")
    assert table.schema == pq.read_schema(data / "a.parquet")
    assert table["text"].to_pylist()[1] == 'A "quoted", comma\nand line.'
    gone = lines(data / "out" / "removed.jsonl")
    assert [row["number"] for row in gone] == [2, 3, 2]  # lines of text files, rows of Parquet
    assert gone[0]["item"] == {
        "source": str(data / "eval.jsonl"),
        "number": 1,
        "column": "question",
    }
    assert gone[0]["words"] == " ".join(words_of(QUESTION))
    assert gone[0]["row"]["id"] == 8
    assert summary["sets"][0]["removed"] == 3


def test_sources_of_one_name_do_not_meet(data: Path) -> None:
    (data / "b").mkdir()
    (data / "b" / "a.jsonl").write_text('{"text": "other"}\n')
    train = (str(data / "a.jsonl"), str(data / "b" / "a.jsonl"))
    decontaminate(request(data, train=train), data / "out")
    assert sorted(p.name for p in (data / "out" / "clean").iterdir()) == ["a-2.jsonl", "a.jsonl"]


def test_only_named_columns_are_looked_at(data: Path) -> None:
    (data / "t.jsonl").write_text(json.dumps({"x": QUESTION, "y": "nothing"}) + "\n")
    train = (str(data / "t.jsonl"),)
    summary = decontaminate(request(data, train=train, columns=("y",)), data / "out")
    assert summary["sources"][0]["13-gram"] == 0
    with pytest.raises(DataError, match=r"t\.jsonl, line 1: column 'z' is missing"):
        decontaminate(request(data, train=train, columns=("z",)), data / "out2")
    assert not list(data.glob("*out2*")) + list(data.glob(".out2*"))


def test_an_evaluation_set_without_questions_is_refused(data: Path) -> None:
    (data / "none.jsonl").write_text("\n")
    (data / "numbers.jsonl").write_text('{"id": 1}\n')
    for name, columns, fault in (
        ("none", (), "holds no rows, so nothing of it can be looked for"),
        ("numbers", (), "holds no text, so nothing"),
        ("eval", ("id",), "holds no text in 'id', so nothing"),
    ):
        asked = request(data, against=(str(data / f"{name}.jsonl"),), eval_columns=columns)
        with pytest.raises(DataError, match=rf"{name}\.jsonl: {fault}"):
            decontaminate(asked, data / "out")
    assert not (data / "out").exists()


def strict(path: Path) -> list[dict[str, Any]]:
    """Lines of JSON without NaN and Infinity, which only some readers know."""
    found = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in found]


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
def test_what_is_written_is_json_for_every_reader(data: Path, literal: str) -> None:
    row = {"q": QUESTION, "x": float(literal)}
    (data / "a.jsonl").write_text('{"x": 1}\n\n' + json.dumps({"x": [row["x"]]}) + "\n")
    train = (str(data / "a.jsonl"),)
    with pytest.raises(DataError, match=r"a\.jsonl, line 3: holds NaN or Infinity, which JSON"):
        decontaminate(request(data, train=train), data / "out")
    assert not (data / "out").exists()
    (data / "a.jsonl").write_text(json.dumps(row) + "\n")
    decontaminate(request(data, train=train), data / "out")
    assert strict(data / "out" / "removed.jsonl")[0]["row"]["x"] == literal


def test_numbers_that_are_none_stay_in_parquet(data: Path) -> None:
    rows = [{"q": "other", "x": float("nan")}, {"q": QUESTION, "x": float("inf")}]
    pq.write_table(pa.Table.from_pylist(rows), data / "a.parquet")
    decontaminate(request(data, train=(str(data / "a.parquet"),)), data / "out")
    [kept] = pq.read_table(data / "out" / "clean" / "a.parquet").to_pylist()
    assert kept["x"] != kept["x"]
    assert strict(data / "out" / "removed.jsonl")[0]["row"] == {"q": QUESTION, "x": "Infinity"}


def test_a_finished_folder_stays_and_another_request_is_refused(data: Path) -> None:
    summary = decontaminate(request(data), data / "out")
    before = (data / "out" / "summary.json").stat().st_mtime_ns
    assert decontaminate(request(data), data / "out") == summary
    assert (data / "out" / "summary.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="other sources or settings"):
        decontaminate(request(data), data / "out", DecontaminationConfig(contaminated_ratio=0.9))
    (data / "own").mkdir()
    (data / "own" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="did not write"):
        decontaminate(request(data), data / "own")


def test_thresholds_must_be_in_order() -> None:
    with pytest.raises(ValueError, match=r"partial_ratio: 0\.9 is above"):
        DecontaminationConfig(partial_ratio=0.9)


def test_a_killed_run_leaves_nothing_half_written_and_begins_anew(data: Path) -> None:
    rows = [{"text": f"row {k} " + "many other words " * 30} for k in range(30_000)]
    rows[29_999]["text"] = QUESTION
    (data / "big.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [sys.executable, "-m", "align.cli", "decontaminate", str(data / "big.jsonl")]
    words += ["--against", str(data / "eval.jsonl"), "--output", str(data / "out")]
    process = subprocess.Popen(words)
    begun = data / ".out.unfinished" / "clean"
    for _ in range(600):
        if begun.exists() and any(path.stat().st_size for path in begun.iterdir()):
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (data / "out").exists()
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "29,999" not in done.stdout
    assert "30,000" in done.stdout
    assert len(lines(data / "out" / "clean" / "big.jsonl")) == 29_999
    assert not (data / ".out.unfinished").exists()


def test_the_command_tells_settings_that_are_wrong(data: Path) -> None:
    words = [sys.executable, "-m", "align.cli", "decontaminate", str(data / "a.jsonl")]
    words += ["--against", str(data / "eval.jsonl"), "--output", str(data / "out")]
    done = subprocess.run(
        [*words, "--set", "contaminated_ration=1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "did you mean 'contaminated_ratio'?" in done.stderr
