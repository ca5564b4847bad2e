"""Exported folders: whole or not at all, the same bytes again, nothing of this machine in them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from align.errors import ExportError, ManifestError
from align.export.card import base_model, front_matter, model_card
from align.export.hub import check_push, push
from align.export.model_folder import generation_config
from align.export.policy import find_policy
from align.export.private import redacted
from align.export.run import ExportConfig, export
from align.pipeline.recipe import load_recipe
from tests.align.exports import write_run

PLAIN = ExportConfig()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "tiny")


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    folder = run.parent / "exported"
    assert export(run, folder, PLAIN)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_folder_is_the_last_policy(run: Path, exported: Path) -> None:
    weights = "model.safetensors"
    made = run / "full_dpo" / "model"
    assert (exported / weights).read_bytes() == (made / weights).read_bytes()
    assert sorted(contents(exported)) == [
        "README.md", "chat_template.jinja", "config.json", "export.json", "generation_config.json",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_transformers_loads_it_and_writes_the_same_chats(run: Path, exported: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    chat = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    texts = {
        AutoTokenizer.from_pretrained(folder).apply_chat_template(chat, tokenize=False)
        for folder in (exported, run / "full_dpo" / "model")
    }
    assert len(texts) == 1
    model: Any = AutoModelForCausalLM.from_pretrained(exported)
    assert model.generation_config.eos_token_id == [3, 0]
    config = GenerationConfig.from_pretrained(exported)
    found = (config.do_sample, config.temperature, config.top_p, config.top_k)
    sampling = load_recipe("phi-nano").sampling
    assert found == (True, sampling.temperature, sampling.top_p, sampling.top_k)
    assert config.max_new_tokens == sampling.max_new_tokens


def test_a_greedy_recipe_does_not_sample() -> None:
    sampling = {"temperature": 0.0, "top_p": 0.9, "top_k": 5, "min_p": 0.0, "max_new_tokens": 7}
    held = {"eos_token_id": [3, 0], "_from_model_config": True}
    assert generation_config(held, sampling) == {
        "eos_token_id": [3, 0], "max_new_tokens": 7, "do_sample": False,
    }  # fmt: skip
    assert generation_config(held, {}) == {"eos_token_id": [3, 0]}


def test_an_earlier_stage_and_what_is_no_policy(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "sft", ExportConfig("sft"))
    weights = "model.safetensors"
    of_stage = (run / "sft" / "model" / weights).read_bytes()
    assert (tmp_path / "sft" / weights).read_bytes() == of_stage
    card = (tmp_path / "sft" / "README.md").read_text()
    assert "| SFT | rows 3,000" in card
    assert "pairs 212" not in card  # of a stage after it
    with pytest.raises(ExportError, match=r"'fulldpo' has made no model.*did you mean 'full_dpo'"):
        export(run, tmp_path / "x", ExportConfig("fulldpo"))
    with pytest.raises(ExportError, match="'pts' has made no model"):
        export(run, tmp_path / "x", ExportConfig("pts"))


def test_the_same_command_again_changes_nothing(run: Path, exported: Path, tmp_path: Path) -> None:
    before = contents(exported)
    times = {path.name: path.stat().st_mtime_ns for path in exported.iterdir()}
    assert not export(run, exported, PLAIN)
    assert {path.name: path.stat().st_mtime_ns for path in exported.iterdir()} == times
    assert export(run, tmp_path / "other", PLAIN)
    assert contents(tmp_path / "other") == before


def test_what_is_there_is_never_written_over(run: Path, exported: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"holds thesis\.txt and no export\.json"):
        export(run, other, PLAIN)
    assert contents(other) == {"thesis.txt": b"mine"}
    with pytest.raises(ExportError, match=r"another export .*stage 'full_dpo', not 'sft'"):
        export(run, exported, ExportConfig("sft"))
    copy = shutil.copytree(exported, tmp_path / "copy")
    (copy / "README.md").write_text("changed")
    with pytest.raises(ExportError, match=r"README\.md: is gone or was changed"):
        export(run, copy, PLAIN)
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="is a file, not a folder"):
        export(run, tmp_path / "file", PLAIN)


def test_a_changed_policy_is_refused(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "sft" / "model" / "config.json").write_text("{}")
    assert export(copy, tmp_path / "last", PLAIN)  # another one than is asked for
    with pytest.raises(ManifestError, match="changed since stage 'sft'"):
        export(copy, tmp_path / "sft", ExportConfig("sft"))
    with pytest.raises(ManifestError, match="give the folder of a run"):
        export(tmp_path / "nowhere", tmp_path / "x", PLAIN)


def test_a_failed_export_leaves_nothing(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "eval" / "sft" / "summary.json").write_text("{}")  # read for the card, at the end
    with pytest.raises(Exception, match="evaluate this stage again"):
        export(copy, tmp_path / "out", PLAIN)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_killed_export_leaves_nothing_half(run: Path, exported: Path, tmp_path: Path) -> None:
    """It is killed while it hashes what it has written; the next one clears the draft away."""
    code = (
        "import sys, time; from pathlib import Path; import align.export.run as run\n"
        "def slow(*_): print('here', flush=True); time.sleep(60)\n"
        "run.model_card = slow\n"
        "run.export(Path(sys.argv[1]), Path(sys.argv[2]), run.ExportConfig())"
    )
    command = [sys.executable, "-c", code, str(run), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        assert not (tmp_path / "out").exists()
        with pytest.raises(ExportError, match=r"another export .* is under way"):
            export(run, tmp_path / "out", PLAIN)
        os.kill(process.pid, signal.SIGKILL)
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]
    assert export(run, tmp_path / "out", PLAIN)
    assert contents(tmp_path / "out") == contents(exported)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_tells_of_this_machine(run: Path, exported: Path) -> None:
    private = (str(run), str(Path.home()) + "/", "/home/ann", "hunter2", "sk-0123456789abcdef0123")
    for name, data in contents(exported).items():
        if name not in ("model.safetensors", "tokenizer.json"):
            found = [word for word in private if word in data.decode()]
            assert not found, f"{name} holds {found}"
    card = (exported / "README.md").read_text()
    assert "…/chats.jsonl" in card
    assert "http://…@judge:8000/v1" in card


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/home/ann/data/chats.jsonl", "…/chats.jsonl"),
        ("path: ~/data/x", "path: …/x"),
        ("transformers:/home/ann/m", "transformers:…/m"),
        ("/home/ann", "…"),
        ("file:///home/ann/x", "…/x"),
        ("/root/a b/c", "…/a b/c"),
        ("run --api-key abc --port 1", "run --api-key … --port 1"),
        ("hf_abcdefghijklmnopqrst", "…"),
        ("https://arxiv.org/abs/2412.08905", "https://arxiv.org/abs/2412.08905"),
        ("data/chats.jsonl ./a/b and/or 1 / 2", "data/chats.jsonl ./a/b and/or 1 / 2"),
        (r"exact:(\d+)/(\d+)", r"exact:(\d+)/(\d+)"),
    ],
)
def test_what_is_redacted(text: str, said: str) -> None:
    assert redacted(text) == said


# The card.


def test_the_front_matter_is_what_the_hub_reads(exported: Path) -> None:
    from huggingface_hub import ModelCard

    data = ModelCard((exported / "README.md").read_text()).data.to_dict()
    assert data == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["three-stage", "post-training", "sft", "pivotal-token-search", "dpo"],
    }


def test_the_card_tells_results_data_recipe_and_digests(run: Path, exported: Path) -> None:
    card = (exported / "README.md").read_text()
    assert "| SFT | 60.0 [" in card  # 24 of 40
    assert "| PTS | pairs 212, sources.maths.kept 30 |" in card
    [recipe] = [block.split("```")[0] for block in card.split("```yaml\n")[1:]]
    assert yaml.safe_load(recipe)["sampling"] == load_recipe("phi-nano").plain()["sampling"]
    digests = json.loads((exported / "export.json").read_text())["files"]
    assert f"SHA-256 of `model.safetensors`: `{digests['model.safetensors']}`" in card
    assert find_policy(run).digest in card
    assert "One training run" in card


def test_a_run_without_evaluations_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", evaluated=False)
    card = model_card(find_policy(run), {})
    assert "This run was not evaluated." in card
    assert "Measured on" not in card


def test_names_and_licenses_of_base_models(tmp_path: Path) -> None:
    assert base_model("builtin:phi-nano") == ("builtin:phi-nano", None, {"license": "apache-2.0"})
    smollm2 = base_model("builtin:smollm2-135m")
    assert smollm2[1:] == ("HuggingFaceTB/SmolLM2-135M-Instruct", {"license": "apache-2.0"})
    assert base_model("some/model") == ("some/model", "some/model", {})
    folder = tmp_path / "gemma"
    folder.mkdir()
    assert base_model(str(folder)) == ("gemma", None, {})
    (folder / "README.md").write_text("---\nlicense: gemma\nother: 1\n---\n")
    assert base_model(str(folder)) == ("gemma", None, {"license": "gemma"})
    assert front_matter("---\n: [\n---\n") == {}


def test_an_unknown_license_is_told_and_not_made_up(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["recipe"]["model"]["path"] = "some/model"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    card = model_card(find_policy(copy), {})
    assert "license" not in front_matter(card)
    assert front_matter(card)["base_model"] == "some/model"
    assert "The license of the base model is not known here" in card


# The hub.


class StandIn:
    """As much of `HfApi` as a push uses; it keeps what it was told. Not the hub."""

    public = False
    fault: Exception | None = None

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = StandIn.calls

    calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo: str, **more: Any) -> None:
        if self.fault is not None:
            raise self.fault
        self.told.append(("create", {"repo": repo, **more}))

    def repo_info(self, repo: str, **_: Any) -> Any:
        return type("Info", (), {"private": not self.public})

    def upload_folder(self, **more: Any) -> None:
        self.told.append(("upload", more))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    monkeypatch.setattr("huggingface_hub.HfApi", StandIn)
    monkeypatch.setattr(StandIn, "calls", [])
    return StandIn


def test_a_push_is_private(hub: type[StandIn], exported: Path) -> None:
    assert push(exported, "ann/tiny") == "https://huggingface.co/ann/tiny"
    made, sent = hub.calls
    assert made == (
        "create", {"repo": "ann/tiny", "repo_type": "model", "private": True, "exist_ok": True},
    )  # fmt: skip
    assert sent[1]["folder_path"] == exported
    assert sent[1]["repo_id"] == "ann/tiny"


def test_a_public_repository_is_not_pushed_to_unasked(
    hub: type[StandIn], exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "public", True)
    with pytest.raises(ExportError, match="ann/tiny is public already; give --public"):
        push(exported, "ann/tiny")
    assert [name for name, _ in hub.calls] == ["create"]
    push(exported, "ann/tiny", public=True)
    assert hub.calls[1][1]["private"] is False
    assert hub.calls[2][0] == "upload"


def test_a_refusal_of_the_hub_is_told_with_a_remedy(
    hub: type[StandIn], exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "fault", OSError("401 Unauthorized\nmore"))
    with pytest.raises(ExportError, match=r"\(401 Unauthorized\); the folder is complete"):
        push(exported, "ann/tiny")


def test_what_cannot_be_pushed_is_told_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ExportError, match="'tiny' is no OWNER/NAME"):
        check_push("tiny")
    with pytest.raises(ExportError, match="no token of the hub; run: hf auth login"):
        check_push("ann/tiny")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "t")
    check_push("ann/tiny")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ExportError, match=r"HF_HUB_OFFLINE is set.*hf upload ann/tiny FOLDER"):
        check_push("ann/tiny")


def test_the_command(run: Path, tmp_path: Path) -> None:
    words = ("export", str(run), "--stage=sft", f"--output={tmp_path / 'out'}")
    for last in ("tokenizer_config.json", "Nothing to do: this export was there already."):
        done = subprocess.run(
            [sys.executable, "-m", "align.cli", *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert last in done.stdout.splitlines()[-1]
    wrong = subprocess.run(
        [sys.executable, "-m", "align.cli", *words, "--push=ann/tiny"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert wrong.returncode == 2
    assert "HF_HUB_OFFLINE is set" in wrong.stderr
