"""Which rows are drawn of which source, what is lost of them, and what is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="pip install hypothesis")
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from align.data.chat import ChatIds, IdPair
from align.errors import RecipeError, StageError
from align.mixture.draw import quotas, times_drawn
from align.mixture.encode import Encoder
from align.mixture.losses import settle
from align.mixture.sources import open_mixture
from align.mixture.store import stored_rows, write_rows
from align.stages.full_dpo import FullDPOConfig
from align.stages.sft import SFTConfig
from tests.align import tiny

QUICK = settings(max_examples=150, deadline=None, derandomize=True, database=None)
STOP = 9


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return str(path)


def numbered(path: Path, count: int, prefix: str = "") -> str:
    rows = [{"prompt": f"{prefix}{k}", "completion": f"= {k}"} for k in range(count)]
    return write(path, *rows)


def mixture(seed: int = 0, stage: str = "sft", **told: Any) -> Any:
    return open_mixture(SFTConfig(**told), stage, "chats", seed)


def asked(found: Any) -> list[str]:
    return [example.content.messages[0].content for example in found.examples()]


# -- how many ---------------------------------------------------------------------------------


def test_without_weights_every_row_is_drawn() -> None:
    assert quotas([3, 7], [3, 7], 0, repeat=False) == [3, 7]
    assert quotas([3, 7], [3, 7], 5, repeat=False) == [2, 3]  # 1.5 and 3.5: the first is rounded up


def test_weights_hold_where_a_source_is_short() -> None:
    # Half of each: 10 rows of the first allow 10 of the second.
    assert quotas([10, 100], [1, 1], 0, repeat=False) == [10, 10]
    assert quotas([10, 100], [1, 1], 50, repeat=False) == [10, 10]
    assert quotas([10, 100], [1, 1], 50, repeat=True) == [25, 25]
    assert quotas([10, 100], [1, 1], 0, repeat=True) == [100, 100]
    # 26 rows of three quarters: 34.67 in all, and 34 of them would be 25.5 of the second.
    assert quotas([2, 26], [1, 3], 0, repeat=True) == [9, 26]


@QUICK
@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(0.01, 10)), min_size=1, max_size=5),
    st.integers(0, 200),
    st.booleans(),
)
def test_quotas_keep_the_shares(told: list[tuple[int, float]], wanted: int, repeat: bool) -> None:
    sizes, weights = [size for size, _ in told], [weight for _, weight in told]
    found = quotas(sizes, weights, wanted, repeat)
    total = sum(found)
    for rows, size, weight in zip(found, sizes, weights, strict=True):
        assert abs(rows - total * weight / sum(weights)) < 1 + 1e-6
        assert repeat or rows <= size
    if repeat and wanted:
        assert total == wanted
    if repeat and not wanted:
        assert all(rows >= size for rows, size in zip(found, sizes, strict=True))
    if wanted:
        assert total <= wanted


@QUICK
@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 120), st.integers(0, 2**31 - 1))
def test_rows_are_drawn_equally_often(size: int, limit: int, quota: int, seed: int) -> None:
    times = times_drawn(size, limit, quota, seed)
    pool = min(limit or size, size)
    assert times.sum() == quota
    assert (times > 0).sum() == min(pool, quota)
    drawn = times[times > 0]
    assert not quota or drawn.max() - drawn.min() <= 1


# -- which ------------------------------------------------------------------------------------


def test_the_seed_alone_decides_which_rows(tmp_path: Path) -> None:
    a, b = numbered(tmp_path / "a.jsonl", 40), numbered(tmp_path / "b.jsonl", 40, "b")
    sources = [{"path": a, "weight": 3}, {"path": b, "weight": 1}]
    first = asked(mixture(sources=sources, num_rows=40))
    assert first == asked(mixture(sources=sources, num_rows=40))
    assert first != asked(mixture(seed=1, sources=sources, num_rows=40))
    assert sorted(first) == sorted(asked(mixture(sources=sources[::-1], num_rows=40)))
    assert len(set(first)) == 40
    assert sum(text.startswith("b") for text in first) == 10
    more = [*sources, {"path": numbered(tmp_path / "c.jsonl", 40, "c"), "weight": 4}]
    assert set(asked(mixture(sources=more, num_rows=80))) >= set(first)


def test_a_limit_is_a_fixed_choice(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.jsonl", 40)
    few = asked(mixture(sources=[{"path": path, "limit": 10}]))
    assert len(few) == 10
    again = {"path": path, "limit": 10, "weight": 1}
    repeated = asked(mixture(sources=[again], num_rows=30, when_short="repeat"))
    assert sorted(repeated) == sorted(3 * few)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "folder"])
def test_the_same_rows_from_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    rows = [{"prompt": f"q{k}", "completion": f"a{k}"} for k in range(5)]
    table = Dataset.from_list(rows)
    path = tmp_path / f"rows.{kind}"
    if kind == "folder":
        table.save_to_disk(path)
    else:
        getattr(table, {"jsonl": "to_json"}.get(kind, f"to_{kind}"))(path)
    found = mixture(sources=[{"path": str(path)}])
    assert asked(found) == [f"q{k}" for k in range(5)]
    assert [e.place.rpartition(", ")[2] for e in found.examples()][:2] == (
        ["line 2", "line 3"]
        if kind == "csv"
        else [f"{'line' if kind == 'jsonl' else 'row'} {k}" for k in (1, 2)]
    )


# -- faults -----------------------------------------------------------------------------------


def test_every_fault_of_every_source_is_told_with_its_line(tmp_path: Path) -> None:
    good = {"prompt": "q", "completion": "a"}
    a = write(tmp_path / "a.jsonl", good, "{\n", {"text": "x"})
    b = write(tmp_path / "b.jsonl", {"messages": []}, good)
    missing = str(tmp_path / "none.jsonl")
    sources = [
        {"path": a},
        {"path": b},
        {"path": missing},
        {"path": b, "name": "c", "columns": {"promt": "x"}},
    ]
    with pytest.raises(RecipeError) as caught:
        mixture(sources=sources)
    told = "\n".join(caught.value.problems)
    assert "a.jsonl, line 2: not JSON" in told
    assert "a.jsonl, line 3: no columns that are known" in told
    assert "b.jsonl, line 1: messages: messages with role and content are needed" in told
    assert "none.jsonl: no such file" in told
    assert "sft.sources.3.columns: no field 'promt'; did you mean 'prompt'?" in told
    assert len(caught.value.problems) == 5


def test_faulty_rows_may_be_dropped_and_are_counted(tmp_path: Path) -> None:
    good = [{"prompt": f"q{k}", "completion": "a"} for k in range(8)]
    first = {"messages": [{"role": "assistant", "content": "a"}]}  # a chat without a question
    path = write(tmp_path / "a.jsonl", *good[:4], "{\n", first, {"text": "x"}, *good[4:])
    found = mixture(sources=[{"path": path, "faulty": "drop", "name": "web"}])
    assert asked(found) == [f"q{k}" for k in range(8)]
    encoder = Encoder(found, tiny.tokenizer(), 64)
    rows = list(encoder.rows())
    assert len(rows) == 8
    counts = encoder.counts["web"]
    assert (counts.rows, counts.drawn, counts.kept, counts.faulty) == (11, 11, 8, 3)
    with pytest.raises(StageError, match=r"web: 3 of 11 rows cannot be read \(27\.3%\), above "):
        encoder.check("sft")


def test_a_source_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"a\.jsonl: holds no rows"):
        mixture(sources=[{"path": write(tmp_path / "a.jsonl", "\n")}])
    with pytest.raises(RecipeError, match="not JSON"):
        mixture(sources=[{"path": write(tmp_path / "a.jsonl", "{\n"), "faulty": "drop"}])


def test_rows_that_the_template_refuses_are_named(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": text} for text in ("a", "x<|im_end|>", "b")]
    found = mixture(sources=[{"path": write(tmp_path / "a.jsonl", *rows)}])
    with pytest.raises(StageError) as caught:
        list(Encoder(found, tiny.tokenizer(), 64).rows())
    assert str(caught.value) == (
        f"{tmp_path}/a.jsonl, line 2: the assistant's text holds the special token <|im_end|>"
    )


def test_rows_that_the_template_refuses_may_be_dropped_too(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": text} for text in ("a", "x<|im_end|>", "b")]
    path = write(tmp_path / "a.jsonl", *rows)
    found = mixture(sources=[{"path": path, "name": "web", "faulty": "drop"}])
    encoder = Encoder(found, tiny.tokenizer(), 64)
    assert len(list(encoder.rows())) == 2
    counts = encoder.counts["web"]
    assert (counts.drawn, counts.kept, counts.faulty) == (3, 2, 1)
    assert encoder.first_faults(3) == []


# -- losses -----------------------------------------------------------------------------------


@QUICK
@given(
    st.lists(st.tuples(st.integers(0, STOP), st.integers(0, 1)), min_size=1, max_size=12),
    st.integers(1, 12),
    st.booleans(),
)
def test_a_row_is_kept_dropped_or_cut_by_the_rule(
    told: list[tuple[int, int]], most: int, cut: bool
) -> None:
    row = ChatIds(tuple(i for i, _ in told), tuple(m for _, m in told))
    found = settle(row, most, cut, STOP)
    if len(told) > most and not cut:
        assert found.row is None
        assert found.losses == ("too_long",)
        return
    left = told[:most]
    trained = [token for token, flag in left if flag]
    wanted = ["truncated"] * (len(told) > most)
    wanted += ["fully_masked"] * (not trained) + ["lost_stop"] * bool(
        trained and trained[-1] != STOP
    )
    assert list(found.losses) == wanted
    kept = ChatIds(tuple(i for i, _ in left), tuple(m for _, m in left))
    assert found.row == (kept if trained else None)


@pytest.mark.parametrize(
    ("chosen", "rejected", "most", "cut", "losses", "kept"),
    [
        ((1, STOP), (2, STOP), 9, False, (), True),
        ((1, STOP), (1, STOP), 9, False, ("identical_sides",), False),
        ((1, 2, STOP), (1, 2, 3, STOP), 5, True, ("truncated", "lost_stop"), True),
        ((1, 2, STOP), (1, 3, STOP), 3, True, ("truncated", "identical_sides"), False),
        ((1, STOP), (2, STOP), 2, True, ("truncated", "fully_masked"), False),
        ((1, STOP), (2, STOP), 3, False, ("too_long",), False),
        ((1,), (2, STOP), 9, False, ("lost_stop",), True),
    ],
)
def test_losses_of_pairs(
    chosen: Any, rejected: Any, most: int, cut: bool, losses: Any, kept: bool
) -> None:
    found = settle(IdPair((7, 8), chosen, rejected), most, cut, STOP)
    assert found.losses == losses
    assert (found.row is not None) == kept


def test_losses_are_counted_by_source_and_limited(tmp_path: Path) -> None:
    short, long = {"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "a" * 99}
    masked = {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a", "train": False},
        ]
    }
    a = write(tmp_path / "a.jsonl", short, long, masked, short)
    b = numbered(tmp_path / "b.jsonl", 3)
    told = {"sources": [{"path": a, "name": "a"}, {"path": b, "name": "b"}], "max_length": 64}
    encoder = Encoder(mixture(**told), tiny.tokenizer(), 64)
    assert [row.settled.losses for row in encoder.rows()][:3] == [
        (),
        ("too_long",),
        ("fully_masked",),
    ]
    counts = encoder.counts["a"].plain()
    # <|im_start|>user<|im_sep|>q<|im_end|> and <|im_start|>assistant<|im_sep|>a<|im_end|>
    each = (1 + 4 + 1 + 1 + 1) + (1 + 9 + 1 + 1 + 1)
    assert counts == {
        "rows": 4, "drawn": 4, "kept": 2, "faulty": 0, "contaminated": 0, "too_long": 1,
        "fully_masked": 1, "identical_sides": 0, "truncated": 0, "lost_stop": 0, "tokens": 2 * each,
        "trained_tokens": 2 * 2, "longest": each + 98,
    }  # fmt: skip
    with pytest.raises(StageError) as caught:
        encoder.check("sft")
    assert str(caught.value).splitlines() == [
        "a: 1 of 4 rows are too long and dropped (25.0%), above sft.losses.too_long (0.1); "
        "raise max_length, or raise the limit",
        "a: 1 of 4 rows have no token to train on (25.0%), above sft.losses.fully_masked (0.01); "
        "leave them out, or raise max_length, or raise the limit",
    ]
    loose = {**told, "losses": {"too_long": 0.25, "fully_masked": 0.25}}
    encoder = Encoder(mixture(**loose), tiny.tokenizer(), 64)
    assert sum(row.settled.row is not None for row in encoder.rows()) == 5
    encoder.check("sft")


QUESTION = "A robe takes 2 bolts of blue fiber and half that much white fiber. How many in total?"


def test_rows_that_hold_an_evaluation_question_are_dropped_and_counted(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    ids = tokenizer(QUESTION.upper(), add_special_tokens=False)["input_ids"]
    path = write(
        tmp_path / "a.jsonl",
        {"prompt": "What is a robe?", "completion": "A garment."},
        {"prompt": "Homework:\n" + QUESTION.replace(" ", "\n"), "completion": "3"},
        {"prompt": "Say it.", "completion": QUESTION},
        {"input_ids": ids},
    )
    against = write(tmp_path / "gsm8k.jsonl", {"question": QUESTION, "answer": "3"})
    told: dict[str, Any] = {"sources": [{"path": path, "name": "a"}], "max_length": 256}
    found = Encoder(mixture(**told, against=[against]), tokenizer, 256)
    losses = [row.settled.losses for row in found.rows()]
    assert losses == [(), *[("contaminated",)] * 3]
    assert (found.counts["a"].kept, found.counts["a"].contaminated) == (1, 3)
    with pytest.raises(StageError, match="3 of 4 rows hold what an evaluation set asks"):
        found.check("sft")
    every = Encoder(mixture(**told), tokenizer, 256)
    assert sum(row.settled.row is not None for row in every.rows()) == 4
    with pytest.raises(RecipeError, match=r"sft\.against: .*none\.jsonl: no such file"):
        mixture(**told, against=[str(tmp_path / "none.jsonl")])
    for row, fault in (("", "holds no rows"), ({"id": 1}, "holds no text"), ("{\n", "line 1: not")):
        empty = write(tmp_path / "empty.jsonl", row)
        with pytest.raises(RecipeError, match=rf"sft\.against: .*empty\.jsonl.*{fault}"):
            mixture(**told, against=[against, empty])


# -- the file ---------------------------------------------------------------------------------


def test_the_file_holds_ids_and_labels_and_is_written_once(tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.jsonl", 3)
    opened = []

    def encoder() -> Encoder:
        opened.append(1)
        return Encoder(mixture(sources=[{"path": path}]), tiny.tokenizer(), 64)

    found = stored_rows(tmp_path / "rows", "key", "sft", encoder)
    again = stored_rows(tmp_path / "rows", "key", "sft", encoder)
    assert found == again
    assert len(opened) == 1
    stored_rows(tmp_path / "rows", "other", "sft", encoder)
    assert len(opened) == 2
    rows = Dataset.from_file(str(found.file))
    tokenizer = tiny.tokenizer()
    assert [tokenizer.decode(ids) for ids in rows["input_ids"]] == [
        f"<|im_start|>user<|im_sep|>{k}<|im_end|><|im_start|>assistant<|im_sep|>= {k}<|im_end|>"
        for k in range(3)
    ]
    labels = [[t for t in row if t != -100] for row in rows["labels"]]
    assert [tokenizer.decode(ids) for ids in labels] == [f"= {k}<|im_end|>" for k in range(3)]
    assert found.total("kept") == 3


def test_a_file_that_was_not_finished_is_written_anew(tmp_path: Path) -> None:
    def rows() -> Any:
        yield ChatIds((1, 2), (0, 1))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(tmp_path / "rows.arrow", rows())
    assert not (tmp_path / "rows.arrow").exists()
    write_rows(tmp_path / "rows.arrow", [IdPair((1,), (2,), (3, 4))])
    [row] = Dataset.from_file(str(tmp_path / "rows.arrow"))
    assert row == {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3, 4]}


# -- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "told", "fault"),
    [
        (SFTConfig, {"num_rows": 5}, "num_rows needs sources"),
        (SFTConfig, {"sources": [{"path": "a"}], "num_examples": 5}, "num_examples has no place"),
        (SFTConfig, {"sources": [{"path": "a"}, {"path": "a"}]}, "each name may stand once"),
        (SFTConfig, {"sources": [{"path": "a", "weight": 1}, {"path": "b"}]}, "a weight, or none"),
        (FullDPOConfig, {"max_length": 5000}, "max_length needs sources"),
        (FullDPOConfig, {"sources": [{"path": "a"}], "samples": 5}, "samples has no place beside"),
    ],
)
def test_keys_that_would_be_passed_over_are_refused(kind: Any, told: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        kind(**told)


def test_without_sources_settings_are_what_they_were() -> None:
    for kind in (SFTConfig, FullDPOConfig):
        dumped = kind().model_dump(mode="json")
        assert not {"sources", "num_rows", "losses", "too_long", "when_short"} & dumped.keys()
        given_sources = kind(sources=[{"path": "a.jsonl"}])
        assert kind(**given_sources.model_dump(mode="json")) == given_sources
