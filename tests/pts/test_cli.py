"""The `pts` command: a search from the shell, all input faults at once, the readers of a run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from pts.cli import main as cli
from pts.cli.settings import load_settings
from pts.data.pairs import read_pairs
from pts.data.rollouts import read_rollouts
from pts.errors import ConfigError
from pts.runtime.results import read_results
from pts.runtime.shards import Shard
from pts.types import Problem, Verdict
from pts.verifiers.choice import ChoiceVerifier
from pts.verifiers.registry import make_verifier
from tests.pts.verifiers.code_isolation import available

RUN = ["max_new_tokens=30", "p_min=0.05", "p_max=0.95", "filter_rollouts=8", "max_rollouts=40"]
RUN += ["confirm_rollouts=16", "fdr=0.9", "p_gap=0.15"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model over the digits; it stops now and then."""
    folder = tmp_path_factory.mktemp("model")
    vocab = {token: i for i, token in enumerate(["<stop>", *"0123456789+="])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<stop>", pad_token="<stop>"
    ).save_pretrained(str(folder))
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(vocab),
        intermediate_size=16,
        eos_token_id=0,
        bos_token_id=None,
        initializer_range=0.6,
        max_position_embeddings=64,
        **sizes,
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("asked") / "sums.jsonl"
    rows = [{"id": f"s{k}", "q": f"{k}+{k}=", "a": k % 2} for k in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pts(*arguments: str | Path, status: int = 0, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command in this process; its standard output, or the errors when it fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pts", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
    assert (caught.value.code or 0) == status
    out, err = capsys.readouterr()
    return out if status == 0 else err


@pytest.fixture(scope="module")
def run(model: Path, asked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    command = ["search", "--model", model, "--problems", asked, "--output", folder, "--quiet"]
    command += ["--prompt", "q", "--reference", "a", "--verifier", r"exact:([01])", *RUN]
    result = CliRunner().invoke(cli.app, [str(part) for part in command])
    assert result.exit_code == 0, result.output
    assert "questions: 4" in result.output
    return folder


def test_a_search_from_the_shell_leaves_a_run(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "results.jsonl",
        "pairs.jsonl",
        "summary.json",
        "report.html",
        "token_texts.json",
    }
    assert len((run / "results.jsonl").read_text().splitlines()) == 4
    assert len((run / "pairs.jsonl").read_text().splitlines()) > 0


def test_a_module_of_ones_own_registers_a_verifier(
    model: Path, asked: Path, tmp_path: Path
) -> None:
    """Workers get it too: they load what the run's verifier is made of."""
    (tmp_path / "ends.py").write_text(
        "import pts\nfrom pts.verifiers.registry import VERIFIERS\n\n"
        "class Ends:\n"
        "    def __init__(self, digits):\n        self.digits = digits\n"
        "    def __call__(self, problem, text):\n"
        "        right = text.endswith(tuple(self.digits))\n"
        "        return pts.Grade(pts.Verdict.PASS if right else pts.Verdict.FAIL)\n\n"
        "VERIFIERS['ends'] = Ends\n"
    )
    command = ["-m", "pts.cli.main", "--import", "ends", "search", "--model", model]
    command += ["--problems", asked, "--prompt", "q", "--reference", "a", "--quiet"]
    command += ["--verifier", "ends:02468", "--output", tmp_path / "run", "--workers", "2", *RUN]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert '"verifier":"Ends(digits=' in (tmp_path / "run" / "journal.jsonl").read_text()[:2000]


def test_a_module_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    said = pts("--import", "nowhere_at_all", "report", "x", status=2, capsys=capsys)
    assert "--import: no module 'nowhere_at_all' is installed or stands in" in said


def test_what_is_logged_steers_no_terminal() -> None:
    """Reasons of verifiers and servers hold what models write."""
    code = (
        "import logging; from pts.cli.output import log_to_stderr; log_to_stderr(); "
        r"logging.warning('set aside: %s', 'a\x1b[2Jb\x9bc\nd')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "set aside: a\\x1b[2Jb\\x9bc\nd\n"


def test_quiet_is_quiet(model: Path, asked: Path, tmp_path: Path) -> None:
    """Nothing on standard error although every occasion to log progress is taken."""
    talkative = (
        "from pts.cli import main as cli; from pts.runtime import progress as r; "
        "r.LOG_SECONDS = 0.0; cli.main()"
    )
    command = ["search", "--model", model, "--problems", asked, "--output", tmp_path, "--quiet"]
    command += ["--prompt", "q", "--reference", "a", "--verifier", r"exact:([01])", *RUN]
    done = subprocess.run(
        [sys.executable, "-c", talkative, *map(str, command)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_two_workers_leave_the_files_of_one(model: Path, asked: Path, tmp_path: Path) -> None:
    """Bit-identical because the batch shape is: one question at a time, as many threads."""
    for workers in ("1", "2"):
        command = ["-m", "pts.cli.main", "search", "--model", model, "--problems", asked, "--quiet"]
        command += ["--output", tmp_path / workers, "--prompt", "q", "--reference", "a"]
        command += ["--verifier", r"exact:([01])", "--window", "1", "--workers", workers, *RUN]
        subprocess.run(
            [sys.executable, *map(str, command)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
        )
    for name in ("results.jsonl", "pairs.jsonl", "token_texts.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    assert [path.name for path in (tmp_path / "2").glob("journal*")] == ["journal.jsonl"]


def test_inspect_report_and_pairs_read_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "s3" in pts("inspect", run, capsys=capsys)
    assert "Prompt\n  2+2=" in pts("inspect", run, "s2", capsys=capsys)
    assert "did you mean" in pts("inspect", run, "s22", status=2, capsys=capsys)
    assert "page.html" in pts("report", run, "--output", tmp_path / "page.html", capsys=capsys)


def test_pairs_are_listed_and_exported(
    run: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = read_pairs(run / "pairs.jsonl")
    listed = pts("pairs", run, capsys=capsys)
    assert listed.endswith(f"\n{len(pairs)} pairs\n")
    assert len(listed.splitlines()) == 2 * len(pairs) + 1
    assert f"{pairs[0].problem_id} ({pairs[0].criterion}): " in listed
    file = tmp_path / "new" / "pairs.jsonl"
    pts("pairs", run, "--output", file, capsys=capsys)
    assert read_pairs(file) == pairs
    assert pts("pairs", file, "--format", "jsonl", capsys=capsys) == file.read_text()
    assert pts("pairs", file, "--tokenizer", model, capsys=capsys) == listed
    assert "⟨" in pts("pairs", file, capsys=capsys), "without a tokenizer ids are shown"
    pts("pairs", run, "--output", tmp_path / "text.txt", "--format", "text", capsys=capsys)
    assert (tmp_path / "text.txt").read_text() == listed.removesuffix(f"{len(pairs)} pairs\n")
    pts("pairs", run, "--output", tmp_path / "hf", "--format", "hf", capsys=capsys)
    table = Dataset.from_parquet(
        str(tmp_path / "hf" / "data" / "train.parquet"), cache_dir=str(tmp_path / "cache")
    )
    assert len(table) == len(pairs)
    assert "| `p_gap` | `0.15` |" in (tmp_path / "hf" / "README.md").read_text()


def test_rollouts_are_written_as_rows_of_ids(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "rows.jsonl"

    def rows(*options: str) -> list[dict[str, Any]]:
        pts("rollouts", run, *options, "--output", file, capsys=capsys)
        return [json.loads(line) for line in file.read_text().splitlines()]

    kept = list(read_rollouts(run))
    assert [(row["problem_id"], tuple(row["completion_ids"])) for row in rows()] == [
        (question.problem_id, ids) for question in kept for ids in question.answers()
    ]
    filtered = rows("--purpose", "filter", "--what", "wrong")
    assert len(filtered) == sum(len(q.answers(False, ["filter"])) for q in kept)
    assert len(rows("--what", "all")) == sum(len(q.rollouts) for q in kept)
    values = rows("--what", "values")
    assert [(row["passed"], row["drawn"]) for row in values] == [
        (value.passed, value.drawn) for q in kept for value in q.values()
    ]
    pairs = rows("--what", "pairs")
    assert [tuple(row["prompt_ids"]) for row in pairs] == [
        q.prompt_ids + pair.prefix for q in kept for pair in q.pairs()
    ]
    said = pts("rollouts", run, capsys=capsys)
    assert said.count('{"problem_id":') == sum(len(q.answers()) for q in kept)


def test_wrong_ways_to_ask_for_rollouts(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("mine\n")
    for said, *command in (
        ("no such run folder or file", tmp_path / "none"),
        ("(keep: none), or is not begun", tmp_path),
        ("it is not written over", run, "--output", other),
        ("no purpose 'filtr'; did you mean 'filter'", run, "--purpose", "filtr"),
        ("other.jsonl, line 1: ", other),
    ):
        assert said in pts("rollouts", *command, status=2, capsys=capsys)


def test_wrong_ways_to_ask_for_pairs(
    run: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = tmp_path / "published.jsonl"
    record = {"pivot_context": "1+1=", "pivot_token": "2", "prob_delta": 0.4}
    published.write_text(json.dumps(record | {"rejected_token": "3"}) + "\n")
    for said, *command in (
        ("no pair was selected", run, "--output", tmp_path / "x", "--format", "hf", "--fdr", 1e-9),
        ("below the run's own", run, "--p-gap", "0.1"),
        ("name it with --output", run, "--format", "hf"),
        ("no such run folder or file", tmp_path / "none.jsonl"),
        ("give the run's folder", run / "pairs.jsonl", "--fdr", "0.1"),
        ("give --tokenizer", published),
        ("no tokenizer here", published, "--tokenizer", tmp_path),
        ("nope is for files", run, "--tokenizer", "nope"),
        ("no journal.jsonl", tmp_path),
    ):
        assert said in pts("pairs", *command, status=2, capsys=capsys)
    assert "'2' over '3'" in pts("pairs", published, "--tokenizer", model, capsys=capsys)
    line = (run / "pairs.jsonl").read_text().splitlines()[0]
    other = tmp_path / "other.jsonl"
    other.write_text(f"{line}\n{json.dumps({**json.loads(line), 'chosen': 13})}\n")
    said = pts("pairs", other, "--tokenizer", model, status=2, capsys=capsys)
    assert f"{other}, line 2: holds token 13, but the tokenizer has 13" in said


def test_a_plan_leaves_a_probe_that_the_search_goes_on_from(
    run: Path, model: Path, asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--model", model, "--problems", asked, "--output", tmp_path, "--quiet"]
    command += ["--prompt", "q", "--reference", "a", "--verifier", r"exact:([01])", *RUN]
    said = pts("plan", *command, "--probe", "2", capsys=capsys)
    assert "probed 2 of 4 questions" in said
    assert "forecast for all 4 (95 % interval)" in said
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2
    pts("search", *command, capsys=capsys)
    for name in ("results.jsonl", "pairs.jsonl"):
        assert (tmp_path / name).read_bytes() == (run / name).read_bytes()


def test_shards_are_searched_and_merged(
    run: Path, model: Path, asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["search", "--model", model, "--problems", asked, "--quiet", "--window", "1"]
    command += ["--prompt", "q", "--reference", "a", "--verifier", r"exact:([01])", *RUN]
    said = pts(*command, "--output", tmp_path / "x", "--shard", "3/2", status=2, capsys=capsys)
    assert "shard: got 3/2; shards are counted from 1" in said
    parts = [tmp_path / str(index) for index in range(1, 7)]
    for index, part in enumerate(parts, 1):
        said = pts(*command, "--output", part, "--shard", f"{index}/6", capsys=capsys)
        own = sum(Shard(index, 6).holds(f"s{k}") for k in range(4))
        none = "" if own else "; nothing is to be searched, and the shard is finished"
        assert f"shard {index}/6: {own} of 4 questions{none}\n" in said
    merged = tmp_path / "merged"
    assert "missing: shard 6/6" in pts(
        "merge", *parts[:-1], "--output", merged, status=2, capsys=capsys
    )
    said = pts("merge", *parts[:-1], "--output", merged, "--partial", capsys=capsys)
    assert "missing shards: 6/6" in said
    assert "missing shards" in (merged / "report.html").read_text()
    said = pts("merge", *parts, "--output", merged, capsys=capsys)
    assert "questions: 4" in said
    assert "missing" not in said
    assert "s3" in pts("inspect", merged, capsys=capsys)
    assert "pairs\n" in pts("pairs", merged, capsys=capsys)
    ids = [result.problem_id for result in read_results(merged / "results.jsonl")]
    assert ids == [result.problem_id for result in read_results(run / "results.jsonl")]


def test_problems_of_a_csv_are_searched(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sums.csv").write_text('q,a,more\n1+1=,0,"1,0"\n2+2=,0,\n')
    command = ["search", "--model", model, "--problems", tmp_path / "sums.csv", "--quiet"]
    command += ["--output", tmp_path / "run", "--verifier", "exact:([01])", *RUN, "--prompt"]
    assert "did you mean 'q'" in pts(*command, "qu", status=2, capsys=capsys)
    assert "questions: 2" in pts(*command, "q", "--reference", "a", capsys=capsys)


def test_a_search_by_unit_tests(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = f"code:timeout=2,isolation={available()}"
    row = {"prompt": "1+1=", "reference": "assert f() % 2 == 1", "prefix": "def f(): return 1"}
    (tmp_path / "code.jsonl").write_text(json.dumps({**row, "id": "odd"}) + "\n")
    command = ["search", "--model", model, "--problems", tmp_path / "code.jsonl", "--quiet"]
    command += ["--output", tmp_path / "run", "--verifier", spec, *RUN, "max_new_tokens=6"]
    assert "questions: 1 (1 " in pts(*command, capsys=capsys)
    (result,) = read_results(tmp_path / "run" / "results.jsonl")
    assert result.status == "searched"
    (tmp_path / "code.jsonl").write_text(json.dumps({**row, "reference": "assert f( =="}) + "\n")
    assert "the tests do not compile" in pts(*command, status=2, capsys=capsys)


def test_every_input_error_is_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id": "a", "prompt": "x"}\n{"id": "a"\n')
    settings = tmp_path / "search.yaml"
    settings.write_text("p_gab: 0.2\n")
    command = ["search", "--model", tmp_path / "none", "--problems", bad]
    command += ["--output", tmp_path / "out", "--config", settings, "--verifier", "exakt:x"]
    said = pts(*command, "top_p=7", "window", status=2, capsys=capsys)
    for fault in (
        f"{settings}: no setting 'p_gab'; did you mean 'p_gap'?",
        "settings: top_p: got 7; input should be less than or equal to 1",
        "'window': settings are given as key=value",
        "no verifier 'exakt:x'; did you mean 'exact'?",
        "line 1: column 'reference' (the reference) is missing; it has 'id', 'prompt'",
        "line 2: not JSON",
        "no model here",
    ):
        assert fault in said, fault
    assert "7 errors:" in said
    assert not (tmp_path / "out").exists()


def test_an_interrupted_search_says_how_to_go_on(
    model: Path,
    asked: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pts.runtime.search.search", interrupted)
    command = ["search", "--model", model, "--problems", asked, "--output", tmp_path / "out"]
    command += ["--prompt", "q", "--reference", "a", "--verifier", r"exact:([01])"]
    command += ["max_new_tokens=8"]
    assert "the same command continues" in pts(*command, status=130, capsys=capsys)


def test_references_that_the_verifier_cannot_read_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "q7", "prompt": "x", "reference": "Z"}\n')
    command = ["search", "--model", tmp_path, "--problems", rows, "--output", tmp_path / "out"]
    said = pts(*command, "--verifier", "choice", status=2, capsys=capsys)
    assert "reference of q7: 'Z' is none of ABCD" in said


def test_settings_come_from_yaml_and_overrides(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text("p_gap: 0.3\ntemperature: 0.7\ncriteria: [path]\n")
    search, sampling = load_settings(file, ["p_gap=0.4", "top_k=20", "z=2"])
    assert (search.p_gap, search.criteria, search.z) == (0.4, ("path",), 2.0)
    assert (sampling.temperature, sampling.top_k) == (0.7, 20)


@pytest.mark.parametrize("text", ["[1, 2", "- p_gap", "3"])
def test_a_settings_file_must_hold_keys(tmp_path: Path, text: str) -> None:
    (tmp_path / "search.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"search\.yaml"):
        load_settings(tmp_path / "search.yaml", [])


def test_faults_of_whole_settings_are_told() -> None:
    with pytest.raises(ConfigError, match=r"^settings: p_min must lie below p_max"):
        load_settings(None, ["p_min=0.9"])


def test_faults_of_settings_name_their_place_in_the_order_given(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text("zebra: 1\np_min: 0.9\ncriteria: [path]\ntop_p: 7\nalpha: 2\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(file, ["mango=3", "z=2"])
    assert caught.value.problems == (
        f"{file}: no setting 'zebra'",
        f"{file}: no setting 'alpha'",
        "settings: no setting 'mango'",
        f"{file}: p_min must lie below p_max, got 0.9 and 0.8",
        f"{file}: top_p: got 7; input should be less than or equal to 1",
    )
    file.write_text("criteria: [pat]\n")
    with pytest.raises(ConfigError, match=r"search\.yaml: criteria: no criterion 'pat'"):
        load_settings(file, [])
    with pytest.raises(ConfigError, match=r"^settings: criteria: no criterion 'frok'"):
        load_settings(file, ["criteria=[frok]"])
    with pytest.raises(ConfigError, match=r"it is a folder; name a \.yaml file"):
        load_settings(tmp_path, [])


def test_verifiers_by_name() -> None:
    exact = make_verifier(r"exact:answer is (\S+)")
    for reference, text in (("1000", "the answer is 1,000"), ("Rome", "the answer is Rome")):
        assert exact(Problem("q", "", reference), text).verdict is Verdict.PASS
    choice = make_verifier("choice:ABCDE")
    assert isinstance(choice, ChoiceVerifier)
    assert choice.options == "ABCDE"
    for wrong in ("exact", "exact:(", "exact:no group", "choice:ab", "cod", "code:x=1", ""):
        with pytest.raises(ConfigError):
            make_verifier(wrong)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['pts', '--help']\nimport pts.cli.main\n"
    code += "try: pts.cli.main.main()\nexcept SystemExit: pass\n"
    code += "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'scipy', 'pydantic'}\n"
    code += "print('heavy:', heavy & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "search" in done.stdout
    assert done.stdout.endswith("heavy: set()\n")


def test_prompts_beyond_the_context_are_told_before_the_weights_are_read(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "model.safetensors").unlink()
    rows = [{"prompt": "1+" * n, "reference": "B"} for n in (4, 30)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["search", "--model", folder, "--problems", tmp_path / "long.jsonl", "--quiet"]
    command += ["--output", tmp_path / "run", "--verifier", "choice", "max_new_tokens=30"]
    said = pts(*command, status=2, capsys=capsys)
    assert "problem '2': its prompt has 60 tokens" in said
    assert "exceed the 64 of" in said
    assert "problem '1'" not in said
