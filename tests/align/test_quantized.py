"""QLoRA: frozen matrices in 4 bits, an adapter that is trained, a policy in whole weights."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from align.planning.memory import held_bytes
from align.planning.shapes import shape_of
from align.stages import STAGES
from align.training.loop import load_trainable
from pts.data.pairs import write_pairs
from pts.engines.digest import model_digest
from pts.errors import MissingExtra
from tests.align import tiny
from tests.align.test_sft import kill_at
from tests.align.test_token_dpo import token_pairs

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes is missing: pip install 'three-stage[qlora]'",
)
RANK = 4
QLORA = {"r": RANK, "alpha": 8, "load_in_4bit": True}
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"num_examples": 32, "batch_size": 4, "learning_rate": 1e-2},
    "token_dpo": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2},
    "full_dpo": {"num_problems": 12, "samples": 4, "batch_size": 2, "epochs": 3},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("base"))


def begun(base: Path, folder: Path, kind: str) -> Any:
    pairs = folder.with_suffix(".jsonl")
    write_pairs(pairs, token_pairs(model_digest(base)))
    settings = {**SETTINGS[kind], "save_steps": 2, "lora": QLORA}
    return tiny.context(base, folder, tiny.ParityTask(), pairs, **{kind: settings})


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@needs_bitsandbytes
@pytest.mark.parametrize("kind", [*SETTINGS])
def test_an_adapter_is_trained_on_4_bits_and_merged_into_whole_weights(
    kind: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = begun(base, tmp_path / "run", kind)
    result = STAGES[kind].run(context)
    lines = metrics(context.folder)
    assert all(math.isfinite(line["loss"]) for line in lines)
    if kind == "sft":
        assert lines[-1]["loss"] < lines[0]["loss"]
    else:  # the reference is the base in 4 bits, without the adapter: no gain at the start
        start = lines[0]["gain"] if kind == "token_dpo" else lines[0]["loss"] - math.log(2)
        assert start == pytest.approx(0, abs=1e-5)
    whole, trained = tiny.weights(base), tiny.weights(result.model)
    matrices = [name for name in whole if name.endswith("proj.weight")]
    assert len(matrices) == 8
    for name in matrices:  # merged into rounded weights, their difference would have full rank
        assert trained[name].shape == whole[name].shape
        size = torch.linalg.svdvals(trained[name] - whole[name])
        assert size[0] > 1e-4
        assert size[RANK:].max() < 1e-3 * size[0]
    others = whole.keys() - {*matrices}
    if kind == "sft":  # trains the rows of the template's tokens
        others -= {"model.embed_tokens.weight", "lm_head.weight"}
    assert all(torch.equal(whole[name], trained[name]) for name in others)

    again = begun(base, tmp_path / "killed", kind)
    kill_at(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        STAGES[kind].run(again)
    monkeypatch.undo()
    second = STAGES[kind].run(again)
    assert [line["loss"] for line in metrics(again.folder)] == [line["loss"] for line in lines]
    assert tiny.same(second.model, result.model)


@needs_bitsandbytes
def test_new_tokens_are_in_the_policy(tmp_path: Path) -> None:
    """A base model without the template's tokens gets rows for them, which are trained."""
    base = tiny.save(tmp_path / "base", chat=False)
    context = begun(base, tmp_path / "run", "sft")
    result = STAGES["sft"].run(context)
    old, new = tiny.weights(base), tiny.weights(result.model)
    rows = len(old["lm_head.weight"])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert len(new[name]) > rows
        assert torch.equal(new[name][1:rows], old[name][1:])  # row 0 is the end of text
        assert (new[name][rows:] - old[name].mean(0)).abs().max() > 1e-3
    assert json.loads((result.model / "generation_config.json").read_text())["eos_token_id"][1] == 0


@needs_bitsandbytes
@pytest.mark.parametrize("double", [True, False])
def test_a_plan_counts_the_bytes_of_a_model_in_4_bits(double: bool, tmp_path: Path) -> None:
    """Of matrices whose blocks come out even, as those of real models do."""
    base = tmp_path / "base"
    made = tiny.tokenizer()
    tiny.model(len(made), hidden_size=256, intermediate_size=512).save_pretrained(base)
    made.save_pretrained(base)
    lora = {**QLORA, "bnb_4bit_use_double_quant": double}
    recipe = tiny.recipe(base, stages=["sft"], sft={"lora": lora})
    config: Any = recipe.stages[0].settings
    model, _ = load_trainable(base, recipe.model, config)
    held = 0
    for parameter in model.parameters():
        held += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        while state is not None:
            held += state.absmax.numel() * state.absmax.element_size()
            state = state.state2
    assert model.get_output_embeddings().weight.dtype == torch.float32
    assert held == pytest.approx(held_bytes(recipe, config.lora, shape_of(recipe.model)), rel=1e-3)


def test_without_bitsandbytes_the_install_line_is_told(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny.recipe(base, stages=["sft"], sft={"lora": QLORA})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'three-stage\[qlora\]'"):
        load_trainable(base, recipe.model, recipe.stages[0].settings)  # type: ignore[arg-type]


@needs_bitsandbytes
@pytest.mark.slow
def test_two_processes_make_the_losses_of_one(base: Path, tmp_path: Path) -> None:
    from tests.align.test_launch import begun as launched

    found = []
    for name, launch in (("one", {}), ("two", {"processes": 2})):
        context = launched(base, tmp_path / name, "sft", launch, num_examples=32, lora=QLORA)
        STAGES["sft"].run(context)
        found.append(torch.tensor([line["loss"] for line in metrics(context.folder)]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)
