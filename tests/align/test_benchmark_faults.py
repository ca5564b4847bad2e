"""Benchmarks that cannot be asked or scored: told before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.benchmarks.command import measure
from align.benchmarks.questions import build_questions
from align.benchmarks.run import score_of
from align.benchmarks.settings import load_benchmark
from align.errors import RecipeError, StageError
from tests.align import tiny
from tests.align.test_benchmarks import choice, generate, written

YAML = "source: {rows}\nkind: choice\nprompt: '{{{{ q }}}}'\nchoices: options\ngold: right\n"


def benchmark_file(folder: Path, more: str = "", name: str = "capitals.yaml") -> str:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(YAML.format(rows=written(folder)) + more)
    return str(file)


# Settings


@pytest.mark.parametrize("name", ["../../evil x", "..", ".hidden", "a/b", "a b", "a\n"])
def test_a_name_stays_inside_the_folder_of_results(tmp_path: Path, name: str) -> None:
    file = benchmark_file(tmp_path, f"name: {json.dumps(name)}\n")
    with pytest.raises(RecipeError, match=r"capitals\.yaml: name: got .* should match pattern"):
        load_benchmark(file)


def test_a_mark_is_not_empty(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="until: an empty mark ends every answer before it beg"):
        load_benchmark("gsm8k", ["until=['Question:', '']"])


@pytest.mark.parametrize(
    ("score", "said"),
    [
        ("nope", "capitals.score: no verifier 'nope'; give exact:REGEX"),
        ("nope", "or answers, f1, simpleqa, instructions"),
        ("answer", "did you mean 'answers'"),
        ("mth", "no verifier 'mth'; did you mean 'math'"),
        ("code:tmeout=3", "capitals.score: code: no option 'tmeout'; did you mean 'timeout'"),
        ("exact:(", "capitals.score: answer pattern '(' does not compile"),
    ],
)
def test_an_unknown_score_is_told_with_those_that_there_are(
    tmp_path: Path, score: str, said: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        score_of(generate(tmp_path, score=score))
    assert said in str(caught.value)


# Rows


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"prompt": "{{ 1 // (right - right) }}"}, "prompt: integer division or modulo by zero"),
        ({"prompt": "{% for i in range(99999999) %}x{% endfor %}"}, "prompt: Range too big"),
        ({"prompt": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"}, "prompt: maximum recur"),
        ({"prompt": "{{ right | dictsort }}"}, "prompt: 'int' object has no attribute 'items'"),
        ({"choices": "options[:1]", "gold": "0"}, "choices: must give two texts at least, got ['"),
        ({"choices": "[q, nope]"}, "choices: 'nope' is undefined"),
        ({"stratify": "nope", "limit": 2}, "stratify: 'nope' is undefined"),
        ({"stratify": "nope"}, "stratify: 'nope' is undefined"),
        ({"shots": 1, "shots_match": "nope"}, "shots_match: 'nope' is undefined"),
    ],
)
def test_what_fails_on_rows_is_told_with_row_and_key(
    tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    benchmark = choice(tmp_path, **more)
    with pytest.raises(RecipeError) as caught:
        build_questions(benchmark)
    lines = str(caught.value).split("\n")
    assert len(lines) == 4, "every row has the fault"
    for number, line in enumerate(lines, 1):
        assert line.startswith(f"capitals: row {number} of {benchmark.source}: {said}")


def test_examples_that_fail_are_told_with_their_own_file(tmp_path: Path) -> None:
    shown = tmp_path / "shown.jsonl"
    shown.write_text('{"q": "Peru", "options": ["Lima", "Rome"], "right": 0}\n')
    benchmark = choice(tmp_path, shots=1, shots_source=str(shown), shots_match="part")
    with pytest.raises(RecipeError, match=r"row 1 of .*shown\.jsonl: shots_match: 'part' is undef"):
        build_questions(benchmark)


@pytest.mark.parametrize("prompt", ["{{ " + "(" * 3000 + "q" + ")" * 3000 + " }}", "{% for %}"])
def test_a_template_that_cannot_be_compiled_is_told(tmp_path: Path, prompt: str) -> None:
    with pytest.raises(RecipeError, match=r"^capitals\.prompt: "):
        build_questions(choice(tmp_path, prompt=prompt))


@pytest.mark.parametrize("score", [r"exact:(\w+)", "choice:AB"])
@pytest.mark.parametrize("reference", ["options", "[right]", "right == 0", "none", "row"])
def test_a_verifier_of_one_text_gets_no_list(tmp_path: Path, score: str, reference: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build_questions(generate(tmp_path, score=score, reference=reference))
    first = str(caught.value).split("\n")[0]
    assert "row 1" in first
    assert "reference: must give a text or a number where score is" in first
    assert first.endswith("; lists of accepted answers are for answers, f1, simpleqa")


@pytest.mark.parametrize("reference", ["none", "row", "options | map('upper')", "[nope]"])
def test_accepted_answers_are_texts_numbers_or_lists(tmp_path: Path, reference: str) -> None:
    with pytest.raises(RecipeError, match=r"row 1 of .*: reference: (must give|'nope' is undef)"):
        build_questions(generate(tmp_path, reference=reference))


@pytest.mark.parametrize(
    ("score", "reference", "first"),
    [
        (r"exact:(\w+)", "q", "France"),
        (r"exact:(\d+)", "right", 0),
        (r"exact:(\d+)", "right + 0.5", 0.5),
        ("code", "options", ["Paris", "Rome"]),  # a list of tests
        ("answers", "options", ["Paris", "Rome"]),
        ("f1", "[options]", [["Paris", "Rome"]]),
    ],
)
def test_references_that_can_be_read_are_kept(
    tmp_path: Path, score: str, reference: str, first: object
) -> None:
    questions = build_questions(generate(tmp_path, score=score, reference=reference))
    assert questions[0].reference == first


# The command


def test_two_benchmarks_of_one_name_are_refused(tmp_path: Path) -> None:
    one, other = benchmark_file(tmp_path / "a"), benchmark_file(tmp_path / "b")
    asked = [one, other, "lm-eval:pick", "lm-eval:pick"]
    with pytest.raises(RecipeError) as caught:
        measure(tmp_path / "no-model", asked, [], tmp_path / "out", None, False)
    assert caught.value.problems == (
        "lm-eval:pick: is asked for twice; name it once",
        f"{other}: name: 'capitals' is the name of {one} too, and both would write the same files; "
        "give one of them another",
    )


def test_an_unknown_score_is_told_before_a_model_is_looked_for(tmp_path: Path) -> None:
    file = tmp_path / "write.yaml"
    rows = written(tmp_path)
    file.write_text(f"source: {rows}\nkind: generate\nprompt: x\nreference: q\nscore: nope\n")
    with pytest.raises(RecipeError, match=r"write\.score: no verifier 'nope'"):
        measure(tmp_path / "no-model", [str(file)], [], tmp_path / "out", None, False)


def test_a_run_or_another_folder_is_no_model(tmp_path: Path) -> None:
    file, run = benchmark_file(tmp_path), tmp_path / "run"
    (run / "pts").mkdir(parents=True)
    tiny.save(run / "sft" / "model")
    tiny.save(run / "dpo" / "model")
    record = {"key": "", "outputs": {}, "seconds": 1.0, "metrics": {}, "model": None}
    stages = dict.fromkeys(("sft", "pts", "dpo"), record)
    (run / "manifest.json").write_text(json.dumps({"stages": stages, "recipe": {}}))
    folders = {
        run: f"{run}: is a run; name one of its stages: {run}/sft, {run}/dpo",
        run / "pts": f"{run}/pts: holds no config.json; give the folder of a model, or of a stage",
        run / "sftt": f"{run}/sftt: no such folder; did you mean 'sft'?",
        Path("../no-run-of-ours/x"): "../no-run-of-ours/x: no such folder; give that of a model",
        Path("no/run/of-ours"): "no/run/of-ours: no such folder; give that of a model or of a",
    }
    for folder, said in folders.items():
        with pytest.raises(RecipeError) as caught:
            measure(folder, [file], [], tmp_path / "out", None, False)
        assert str(caught.value).startswith(said)


@pytest.mark.parametrize("name", ["no-such-model", "no-such-owner/model"])
def test_the_hub_is_asked_once_for_a_name(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def model_info(name: str, timeout: float) -> None:
        asked.append(name)
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=rf"^'{name}' is no folder .* \(no network\); give the"):
        measure(Path(name), [benchmark_file(tmp_path)], [], tmp_path / "out", None, False)
    assert asked == [name]


def test_results_are_not_written_into_a_file(tmp_path: Path) -> None:
    file = benchmark_file(tmp_path)
    with pytest.raises(StageError, match=r"--output: .*capitals\.yaml is a file, not a folder"):
        measure(tmp_path / "no-model", [file], [], Path(file), None, False)
