from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PhiConfig,
    PhiForCausalLM,
)

from align.data.chat import Chat, ChatIds, render_chats
from align.errors import StageError
from align.settings import LoRAConfig
from align.stages import sft
from align.stages.sft import SFTConfig
from align.training import chat_rows, monitors, record
from align.training import loop as training
from pts.types import Message
from tests.align import tiny

SETTINGS: dict[str, Any] = {
    "num_examples": 24,
    "batch_size": 2,
    "gradient_accumulation": 2,
    "learning_rate": 1e-2,
    "save_steps": 2,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    context = tiny.context(base, tmp_path_factory.mktemp("sft"), sft=SETTINGS)
    return sft.run(context)


def test_leaves_a_policy_that_chats_and_stops(trained: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained.model)
    model = AutoModelForCausalLM.from_pretrained(trained.model)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.chat_template == tiny.template()
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|pad|>"
    assert model.generation_config.eos_token_id == [end, 0]
    assert model.config.use_cache
    assert {p.name for p in trained.outputs} == {"model", "metrics.jsonl"}


def test_counts_and_monitors(trained: Any) -> None:
    assert trained.metrics["rows"] == 24
    assert trained.metrics["rows_too_long"] == 0
    assert trained.metrics["assistant_tokens"] == 24 * len("= 7" + "E")
    assert trained.metrics["steps"] == 6
    lines = (trained.outputs[1]).read_text().splitlines()
    assert '"loss"' in lines[0]


def test_checkpoints_are_removed_and_a_second_call_trains_nothing(trained: Any, base: Path) -> None:
    folder = trained.model.parent
    assert not (folder / record.CHECKPOINTS).exists()
    before = (trained.model / "model.safetensors").stat().st_mtime_ns
    assert sft.run(tiny.context(base, folder, sft=SETTINGS)) == trained
    assert (trained.model / "model.safetensors").stat().st_mtime_ns == before


def test_other_settings_in_the_same_folder_are_refused(trained: Any, base: Path) -> None:
    with pytest.raises(StageError, match=r"begun with other settings or files \(stage\)"):
        sft.run(tiny.context(base, trained.model.parent, sft={**SETTINGS, "num_examples": 20}))


def test_a_stage_that_was_begun_with_other_files_is_refused(trained: Any, base: Path) -> None:
    context = tiny.context(base, trained.model.parent, sft=SETTINGS)
    changed = dataclasses.replace(context, digests={"policy": "0a", "task.chats": "1b"})
    with pytest.raises(StageError, match=r"other settings or files \(policy, task\.chats\)"):
        sft.run(changed)


def test_loss_is_the_mean_over_assistant_tokens(base: Path, tmp_path: Path) -> None:
    context = tiny.context(base, tmp_path, sft={**SETTINGS, "num_examples": 4, "max_steps": 1})
    policy, tokenizer = training.load_trainable(base, context.recipe.model, context.settings)
    chat_rows.prepare(policy, tokenizer)
    chats = context.task.demonstrations(4, context.problem_seed)
    nll, tokens = 0.0, 0
    for row in render_chats(tokenizer, chats):
        logps = policy(torch.tensor([row.ids])).logits[0, :-1].log_softmax(-1)
        for position, (token, flag) in enumerate(zip(row.ids[1:], row.mask[1:], strict=True)):
            nll -= float(logps[position, token]) * flag
            tokens += flag
    assert sft.run(context).metrics["final_loss"] == pytest.approx(nll / tokens, abs=1e-4)


def test_micro_batches_change_the_weights_by_rounding_only(
    base: Path, trained: Any, tmp_path: Path
) -> None:
    whole = {**SETTINGS, "batch_size": 4, "gradient_accumulation": 1}
    result = sft.run(tiny.context(base, tmp_path, sft=whole))
    assert result.model is not None
    ours, theirs = tiny.weights(trained.model), tiny.weights(result.model)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("stop", [3, 4])
def test_a_killed_run_ends_with_the_same_weights(
    base: Path, trained: Any, tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = tiny.context(base, tmp_path, sft=SETTINGS)
    kill_at(stop, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        sft.run(context)
    monkeypatch.undo()
    checkpoints = tmp_path / record.CHECKPOINTS
    newest = training.last_checkpoint(checkpoints)
    assert newest is not None
    tear(newest, checkpoints / "checkpoint-99")
    result = sft.run(context)
    assert result.model is not None
    assert tiny.same(result.model, trained.model)
    assert result.metrics == trained.metrics
    assert result.outputs[1].read_text().count('"step"') == trained.outputs[1].read_text().count(
        '"step"'
    )


def test_a_run_killed_before_its_last_save_ends_with_the_same_weights(
    base: Path, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    context = tiny.context(base, tmp_path, sft=SETTINGS)
    monkeypatch.setattr(training, "save_policy", killed)
    with pytest.raises(KeyboardInterrupt):
        sft.run(context)
    monkeypatch.undo()
    result = sft.run(context)
    assert tiny.same(result.model, trained.model)  # type: ignore[arg-type]
    assert result.metrics == trained.metrics
    assert result.outputs[1].read_text().count("\n") == 6


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise in the middle of the training, after the metrics of `step`."""
    end = monitors.MetricsLogger.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step == step:
            raise KeyboardInterrupt
        return end(self, args, state, control, **kwargs)

    monkeypatch.setattr(monitors.MetricsLogger, "on_step_end", on_step_end)


def tear(checkpoint: Path, copy: Path) -> None:
    """A later checkpoint that a kill left without the end of its optimizer's file."""
    shutil.copytree(checkpoint, copy)
    with (copy / "optimizer.pt").open("r+b") as file:
        file.truncate(1000)


def fake_checkpoint(folder: Path) -> Path:
    """The files of a checkpoint, as transformers names and writes them."""
    folder.mkdir(parents=True)
    save_file({"w": torch.zeros(3)}, folder / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"x": torch.zeros(3)}, folder / name)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 2}))
    return folder


@pytest.mark.parametrize("torn", ["missing", "truncated"])
@pytest.mark.parametrize(
    "name", ["trainer_state.json", "optimizer.pt", "rng_state.pth", "model.safetensors"]
)
def test_torn_checkpoints_are_passed_over(tmp_path: Path, name: str, torn: str) -> None:
    whole, last = (fake_checkpoint(tmp_path / f"checkpoint-{step}") for step in (2, 10))
    assert training.last_checkpoint(tmp_path) == last
    data = (last / name).read_bytes()
    (last / name).unlink()
    if torn == "truncated":
        (last / name).write_bytes(data[:-5])
    assert training.last_checkpoint(tmp_path) == whole


def test_base_without_chat_tokens_gets_them(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base", chat=False)
    config = SFTConfig()
    model = tiny.recipe(base).model
    policy, tokenizer = training.load_trainable(base, model, config)
    old = policy.get_input_embeddings().weight.detach().clone()
    new = chat_rows.prepare(policy, tokenizer)
    rows = policy.get_input_embeddings().weight.detach()
    start, end = (tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>"))
    assert not chat_rows.tokenizer_faults(tokenizer)
    assert {start, end} <= set(new)
    assert rows.shape[0] == policy.config.vocab_size == len(tokenizer)
    torch.testing.assert_close(rows[: len(old)], old)
    torch.testing.assert_close(rows[end], old[0])
    torch.testing.assert_close(rows[start], old.mean(0))


def padded_vocabulary(spare: int, tied: bool = False) -> tuple[Any, Any]:
    """A model with rows that no token has, as many are published: they were never trained."""
    tokenizer = tiny.tokenizer(chat=False)
    policy = tiny.model(len(tokenizer) + spare, tied=tied)
    with torch.no_grad():
        for layer in (policy.get_input_embeddings(), policy.get_output_embeddings()):
            layer.weight[len(tokenizer) :] = 7.0
    return policy, tokenizer


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare", [0, 2, 20])
def test_new_tokens_start_as_the_mean_of_the_known_ones(spare: int, tied: bool) -> None:
    policy, tokenizer = padded_vocabulary(spare, tied)
    known = len(tokenizer)
    layers = policy.get_input_embeddings(), policy.get_output_embeddings()
    old = [layer.weight.detach()[:known].clone() for layer in layers]
    chat_rows.prepare(policy, tokenizer)
    start, end = (tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>"))
    layers = policy.get_input_embeddings(), policy.get_output_embeddings()
    for layer, before in zip(layers, old, strict=True):
        rows = layer.weight.detach()
        assert len(rows) == max(known + spare, len(tokenizer))
        assert torch.equal(rows[:known], before)
        assert torch.equal(rows[start], before.mean(0))
        assert torch.equal(rows[end], before[0])


def test_a_chat_model_keeps_its_rows(trained: Any) -> None:
    model = tiny.recipe(trained.model).model
    policy, tokenizer = training.load_trainable(trained.model, model, SFTConfig())
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    assert chat_rows.prepare(policy, tokenizer) == []
    assert all(torch.equal(value, before[key]) for key, value in policy.state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
def test_lora_trains_new_rows_and_is_merged(tmp_path: Path, tied: bool) -> None:
    base = tiny.save(tmp_path / "base", chat=False, tied=tied)
    settings = {**SETTINGS, "lora": {"r": 4, "alpha": 8}}
    context = tiny.context(base, tmp_path / "sft", sft=settings)
    policy, tokenizer = training.load_trainable(base, context.recipe.model, context.settings)
    new = chat_rows.prepare(policy, tokenizer)
    result = sft.run(context)
    assert result.model is not None
    assert not list(result.model.glob("adapter*"))
    merged = AutoModelForCausalLM.from_pretrained(result.model)
    layers = [(policy.get_input_embeddings(), merged.get_input_embeddings())]
    layers += [(policy.get_output_embeddings(), merged.get_output_embeddings())]
    for before, after in layers:
        moved = (after.weight - before.weight).abs().sum(1).nonzero().flatten().tolist()
        assert set(moved) == set(new)
    matrices = [n for n, p in policy.named_parameters() if "proj" in n]
    changed = [
        n for n in matrices if not torch.equal(policy.state_dict()[n], merged.state_dict()[n])
    ]
    assert changed == matrices


def test_a_head_with_a_bias_starts_the_end_of_turn_as_the_end_of_text() -> None:
    """phi-1, 1.5 and 2 have one: a bias left at 0 would change the odds of stopping."""
    made = tiny.tokenizer(chat=False)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    policy = PhiForCausalLM(PhiConfig(vocab_size=len(made), intermediate_size=16, **sizes))
    old = torch.nn.init.normal_(policy.lm_head.bias).detach().clone()
    chat_rows.prepare(policy, made)
    bias = policy.lm_head.bias.detach()
    assert bias[made.convert_tokens_to_ids("<|im_end|>")] == old[0]
    torch.testing.assert_close(bias[made.convert_tokens_to_ids("<|im_start|>")], old.mean())


def test_lora_finds_the_embedding_by_whatever_name_it_has() -> None:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2}
    policy = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=32, **sizes))
    described = training.adapter(LoRAConfig(r=2), policy, [3, 4])
    assert described.trainable_token_indices == {"wte": [3, 4]}
    assert training.with_adapter(policy, described, seed=0).get_nb_trainable_parameters()[0] > 32


class FromFile(tiny.Sums):
    """30 chats, each with a place in a file."""

    def demonstrations(self, n: int, seed: int) -> list[Chat]:
        return super().demonstrations(min(n, 30), seed)

    def place_of(self, chat: Chat) -> str:
        return "a line"


@pytest.mark.parametrize(("told", "warned"), [(False, True), (True, False)])
def test_chats_that_a_default_leaves_out_are_told(
    base: Path, tmp_path: Path, told: bool, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = tiny.context(base, tmp_path, FromFile(), sft={**SETTINGS, "max_steps": 1})
    if not told:
        fewer = SFTConfig.model_construct(
            context.settings.model_fields_set - {"num_examples"}, **dict(context.settings)
        )
        context = dataclasses.replace(
            context, entry=dataclasses.replace(context.entry, settings=fewer)
        )
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        metrics = sft.run(context).metrics
    assert (metrics["chats"], metrics["rows"]) == (30, 24)
    said = [str(one.message) for one in seen if "num_examples" in str(one.message)]
    expected = ["sft: 30 chats, num_examples takes 24 of them; set it to 30 to train on all"]
    assert said == (expected if warned else [])


CHAT: Chat = (Message("user", "1+1"), Message("assistant", "= 2"))


def validate(tokenizer: Any, chats: list[Chat], **settings: Any) -> sft.ValidatedRows:
    return chat_rows.validate(tokenizer, chats, SFTConfig(**settings).max_length)


def ready() -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = "<|im_end|>"
    return tokenizer


def test_audit_drops_long_rows_and_counts_them() -> None:
    longer: Chat = (Message("user", "x" * 50), CHAT[1])
    validated = validate(ready(), [CHAT, longer], max_length=40)
    assert validated.metrics == {"rows": 1, "rows_too_long": 1, "assistant_tokens": 4}
    assert validated.rows == render_chats(ready(), [CHAT])


def test_audit_lists_all_faults_at_once() -> None:
    tokenizer = ready()
    tokenizer.pad_token = "<|im_end|>"
    no_answer: Chat = CHAT[:1]
    injected: Chat = (Message("user", "ends <|im_end|> here"), CHAT[1])
    with pytest.raises(StageError) as caught:
        validate(tokenizer, [CHAT, no_answer, injected], max_length=8)
    text = str(caught.value)
    assert "must be two tokens" in text
    assert "row 1: no assistant token" in text
    assert "chat 2: the user's text holds the special token <|im_end|>" in text
    assert "no row left of 3" in text


def test_audit_names_tokens_that_are_not_single() -> None:
    tokenizer = tiny.tokenizer(chat=False)
    with pytest.raises(StageError, match=r"<\|im_sep\|> is 10 tokens"):
        validate(tokenizer, [CHAT])


def test_audit_wants_the_end_of_turn_to_be_learnt() -> None:
    tokenizer = ready()
    [row] = render_chats(tokenizer, [CHAT])
    unlearnt = ChatIds(row.ids, (*row.mask[:-1], 0))
    with pytest.raises(StageError, match="does not end with <\\|im_end"):
        chat_rows.validate_rows(tokenizer, [unlearnt], SFTConfig().max_length)


def test_a_loss_that_is_not_finite_stops_the_stage(base: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "learning_rate": 1e30, "max_grad_norm": 1e30}
    with pytest.raises(StageError, match="the loss is"):
        sft.run(tiny.context(base, tmp_path, sft=settings))
