"""Plans of recipes: counts, memory, disk and seconds, against arithmetic by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align.commands.plan import number_of
from align.engines.settings import InProcessEngine, ServedEngine
from align.errors import ManifestError, RecipeError
from align.pipeline.recipe import Recipe, load_recipe
from align.pipeline.run import run_recipe
from align.planning.assumptions import Assumed, Assumptions, capped
from align.planning.counts import Counts, count, count_evaluation
from align.planning.devices import GPUS, Device, device_named
from align.planning.difficulty import Difficulty, fitted
from align.planning.disk import stage_disk
from align.planning.measured import assumed_from, uncapped
from align.planning.memory import (
    held_bytes,
    kv_bytes,
    longest_that_fits,
    reference_memory,
    token_bytes,
    training_memory,
    training_state,
)
from align.planning.plan import Plan, make_plan
from align.planning.shapes import KNOWN, Shape, counted, shape_of
from align.planning.speed import sampler_of, sampling_seconds, training_seconds
from align.planning.text import short, to_json, to_text
from align.settings import LoRAConfig, ModelConfig, SourceConfig
from pts.config import SearchConfig

TINY: dict[str, Any] = {
    "model_type": "phi3", "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 10,
    "tie_word_embeddings": False,
}  # fmt: skip
PARAMETERS = 2 * 10 * 4 + 2 * (4 * 8 + 4 * 4 + 4 * 12 + 6 * 4 + 2 * 4) + 4
"""Two embeddings; of two layers qkv_proj, o_proj, gate_up_proj, down_proj and norms; a norm."""
SHAPE = Shape(
    PARAMETERS, 2, 4, 2, 1, 2, 6, 10, False,
    tuple(
        (f"layers.{k}.{name}", inputs, outputs)
        for k in range(2)
        for name, inputs, outputs in (
            ("qkv_proj", 4, 8), ("o_proj", 4, 4), ("gate_up_proj", 4, 12), ("down_proj", 6, 4),
        )
    ),
    "by hand",
)  # fmt: skip
TOLD = Assumptions(prompt_tokens=10, answer_tokens=20, chat_tokens=40, loss_share=0.5)
DEVICE = Device("Tiny", 1e9, 1e6, {"float32": 1e9, "bfloat16": 1e9}, "by hand")


def nano(*overrides: str) -> Recipe:
    return load_recipe("phi-nano", overrides)


def counts_of(recipe: Recipe, told: Assumptions = TOLD) -> dict[str, Counts]:
    found: dict[str, Counts] = {}
    for entry in recipe.stages:
        found[entry.name] = count(recipe, entry, told, found)
    return found


def test_parameters_are_counted_on_the_meta_device() -> None:
    assert PARAMETERS == 340
    shape = counted(TINY, "x")
    assert (shape.parameters, shape.layers, shape.head_size, shape.kv_heads) == (340, 2, 2, 1)
    assert sorted(io for _, *io in shape.linears) == sorted(io for _, *io in SHAPE.linears)
    assert counted({**TINY, "tie_word_embeddings": True}, "x").parameters == 340 - 40
    assert shape.multiplied == 300


def test_the_known_shape_is_that_of_the_published_config() -> None:
    config = {
        **TINY, "hidden_size": 5120, "intermediate_size": 17920, "num_hidden_layers": 40,
        "num_attention_heads": 40, "num_key_value_heads": 10, "vocab_size": 100352,
    }  # fmt: skip
    known, found = KNOWN["microsoft/phi-4"], counted(config, "x")
    by_name = {name.removeprefix("model.").replace("self_attn.", "").replace("mlp.", ""): io
               for name, *io in found.linears}  # fmt: skip
    assert by_name == {name: io for name, *io in known.linears}
    assert replace(found, linears=(), source="") == replace(known, linears=(), source="")


def test_an_adapter_has_r_rows_and_columns_of_each_module() -> None:
    # A layer has 4+8, 4+4, 4+12 and 6+4 inputs and outputs.
    assert SHAPE.adapter(LoRAConfig(r=3)) == 2 * 3 * 46
    assert SHAPE.adapter(LoRAConfig(r=3, target_modules=("o_proj",))) == 2 * 3 * 8
    with pytest.raises(RecipeError, match="names none of down_proj, gate_up_proj"):
        SHAPE.adapter(LoRAConfig(target_modules=("q_proj",)))


def test_full_training_has_sixteen_bytes_a_parameter_and_shards_divide_them() -> None:
    one = training_state(nano(), None, SHAPE, gpu=False)
    assert one == (4 * 340, 4 * 340, 8 * 340, 0)
    eight = nano("launch.processes=8", "sft.gradient_accumulation=8",
                 "rejection_sft.gradient_accumulation=8", "token_dpo.gradient_accumulation=8",
                 "full_dpo.gradient_accumulation=8", "launch.strategy=fsdp2")  # fmt: skip
    sharded = training_state(eight, None, SHAPE, gpu=False)
    layer = (340 - 40) / 2
    assert sharded == (*(part / 8 for part in one[:3]), 2 * layer * 4)
    ddp = eight.model_copy(update={"launch": eight.launch.model_copy(update={"strategy": "ddp"})})
    assert training_state(ddp, None, SHAPE, gpu=False) == (*one[:3], 4 * 340)


def test_lora_holds_frozen_weights_in_the_recipe_s_dtype() -> None:
    recipe, lora = nano("model.dtype=bfloat16"), LoRAConfig(r=3)
    adapter = 2 * 3 * 46
    state = training_state(recipe, lora, SHAPE, gpu=True)
    assert state == (2 * 340 + 4 * adapter, 4 * adapter, 8 * adapter, 2 * adapter)


def test_matrices_in_4_bits_have_what_the_paper_says() -> None:
    """Dettmers et al. 2023: double quantisation takes scales from 0.5 to 0.127 bits a weight."""
    phi4 = KNOWN["microsoft/phi-4"]
    recipe, double = nano("model.dtype=bfloat16"), LoRAConfig(r=3, load_in_4bit=True)
    single = LoRAConfig(r=3, load_in_4bit=True, bnb_4bit_use_double_quant=False)
    embeddings = 2 * phi4.vocab * phi4.hidden  # and the head, which stays as it is
    norms = (2 * phi4.layers + 1) * phi4.hidden
    packed = phi4.parameters - embeddings - norms
    whole = 2 * (embeddings + norms)
    assert held_bytes(recipe, single, phi4) == whole + packed * 4.5 / 8
    assert held_bytes(recipe, double, phi4) == pytest.approx(whole + packed * 4.127 / 8, rel=1e-5)
    config = recipe.settings("full_dpo").model_copy(update={"lora": double})
    counts = Counts(longest=1_000, sides=2)
    reference = reference_memory(recipe, config, phi4, counts, TOLD, gpu=True)
    assert reference.weights == held_bytes(recipe, double, phi4)
    assert reference.copies == 2 * 5120 * 2 * 17920  # gate_up_proj in bfloat16
    state = training_state(recipe, double, phi4, gpu=True)
    adapter = phi4.adapter(double)
    assert state[0] == reference.weights + 4 * adapter
    assert state[3] == reference.copies + 2 * adapter


def test_activations_are_those_of_the_layer() -> None:
    # Numbers of a token and layer: input 4, queries and output 4 + 4, keys and values 2 + 2;
    # block: input 4, gate, up, gated and product 4 · 6; two norms 4 + 4.
    assert token_bytes(nano(), None, SHAPE, gpu=False) == 2 * 4 * (16 + 28 + 8)
    # The formula that it generalises: 34 bytes a hidden unit in 16 bits, of which 2 are dropout's;
    # a plain block has 4 numbers of its width 4 h where ours has 4 of i, so i = 4 h / 2.
    plain = replace(SHAPE, heads=2, kv_heads=2, intermediate=8)
    recipe, lora = nano("model.dtype=bfloat16"), LoRAConfig()
    assert token_bytes(recipe, lora, plain, gpu=True) == 2 * 4 * (34 - 2)


def test_a_batch_of_the_longest_rows_that_fit_fits_exactly() -> None:
    config = nano().settings("full_dpo")
    counts = Counts(longest=1_000, sides=2)
    memory = training_memory(nano(), config, SHAPE, counts, TOLD, gpu=False)
    room = memory.total - 300 * 2 * config.batch_size * token_bytes(nano(), None, SHAPE, False)
    assert longest_that_fits(nano(), config, SHAPE, counts, TOLD, False, room) == 700


def test_counts_are_linear_in_questions() -> None:
    one = counts_of(nano("pts.num_problems=50", "rejection_sft.num_problems=30"))
    two = counts_of(nano("pts.num_problems=100", "rejection_sft.num_problems=60"))
    for name, numbers in (
        ("pts", ("questions", "rollouts", "most_rollouts", "generated", "kept", "pairs")),
        ("rejection_sft", ("questions", "rollouts", "generated", "rows")),
    ):
        for number in numbers:
            first, second = getattr(one[name], number), getattr(two[name], number)
            assert first > 0
            assert second == pytest.approx(2 * first), (name, number)


def test_counts_of_a_search_are_those_of_its_parts() -> None:
    told = TOLD.model_copy(update={"path_rollouts": 100, "confirm_rollouts": 10, "proposals": 9})
    recipe = nano("pts.num_problems=1000", "pts.search.max_rollouts=400", "pts.search.max_pairs=3")
    search = recipe.settings("pts").search
    found = counts_of(recipe, told)["pts"]
    hard = Difficulty(0.5, 0.5)
    path, side = capped(100, 400), capped(10, 128)
    kept, filtered = 1000 * hard.kept(search), 1000 * hard.filter_rollouts(search)
    assert found.kept == pytest.approx(kept)
    assert found.rollouts == pytest.approx(filtered + kept * (path + 3 * 2 * side))
    tokens = filtered + kept * (path * 0.55 + 3 * 2 * side * 0.7)
    assert found.generated == pytest.approx(20 * tokens)
    assert found.most_rollouts == pytest.approx(1000 * 16 + kept * (400 + 2 * 3 * 128))
    assert found.pairs == pytest.approx(kept * 3 * 0.9)


def test_steps_are_those_of_the_trainer() -> None:
    found = counts_of(nano())
    sft, config = found["sft"], nano().settings("sft")
    assert (config.batch_size, config.gradient_accumulation) == (4, 4)
    assert (sft.rows, sft.steps) == (3000, 188)  # 750 batches, four a step
    assert (sft.trained, sft.passed) == (3000 * 20, 3000 * 40)
    pairs = found["pts"].pairs
    token = found["token_dpo"]
    assert (token.steps, token.pairs) == (40, pairs)
    epoch = -(-round(pairs) // 32)
    assert token.passed == pytest.approx(pairs * 40 / epoch * (10 + 10) + 40 * 16 * (10 + 20))


def test_full_length_pairs_come_of_questions_with_both_answers() -> None:
    found = counts_of(nano("full_dpo.num_problems=700", "full_dpo.samples=6"),
                      TOLD.model_copy(update={"solve_a": 1, "solve_b": 1}))["full_dpo"]  # fmt: skip
    assert found.pairs == pytest.approx(700 * 5 / 7, rel=1e-4)
    assert (found.rollouts, found.generated) == (4200, 4200 * 20)
    assert found.scored == pytest.approx(found.pairs * 2 * 30)


def test_a_matched_stage_spends_what_it_matches() -> None:
    recipe = nano(
        'stages=["sft", "pts", "token_dpo", {kind: rejection_sft, name: same, match: [pts]}]'
    )
    found = counts_of(recipe)
    assert found["same"].generated == pytest.approx(found["pts"].generated)


def test_an_evaluation_draws_a_greedy_answer_and_samples() -> None:
    found = count_evaluation(nano("evaluate.problems=100", "evaluate.samples=3"), TOLD)
    assert (found.rollouts, found.generated) == (400, 8000)
    assert found.scored == 2 * 100 * 30


def test_rows_of_sources_must_be_told() -> None:
    recipe = nano("sft.num_examples=5")
    sft = recipe.stages[0]
    own = sft.settings.model_copy(update={"sources": (SourceConfig(path="x.jsonl"),)})
    with pytest.raises(RecipeError, match=r"sft\.num_rows: got 0.*give num_rows"):
        count(recipe, replace(sft, settings=own), TOLD, {})
    limited = own.model_copy(update={"sources": (SourceConfig(path="x.jsonl", limit=70),)})
    assert count(recipe, replace(sft, settings=limited), TOLD, {}).rows == 70


def test_uniform_difficulty_has_equal_shares() -> None:
    even = Difficulty(1, 1)
    assert even.between(2, 2, 9) == pytest.approx(0.1, rel=1e-3)
    assert even.mixed(9) == pytest.approx(8 / 10, rel=1e-4)
    search = SearchConfig()  # six equal verdicts of 16 set a question aside
    assert even.filter_rollouts(search) == pytest.approx(16 - 10 * 2 / 7, rel=1e-4)
    # 4 to 12 of 16 are kept, less what six equal verdicts lose of them.
    assert 0.9 * 9 / 17 < even.kept(search) < 9 / 17


def test_a_fit_finds_the_distribution_that_made_the_counts() -> None:
    made = Difficulty(0.8, 2.0)
    shares = [made.between(*ends, 6) for ends in ((0, 0), (1, 5), (6, 6))]
    found = fitted([round(1e6 * share) for share in shares], 1, 5, 6)
    assert found is not None
    assert (found.a, found.b) == pytest.approx((0.8, 2.0), rel=0.02)
    assert fitted([0, 0, 0], 1, 5, 6) is None


def test_limits_are_taken_off_again() -> None:
    for mean in (5.0, 120.0, 900.0):
        assert uncapped(capped(mean, 400), 400) == pytest.approx(mean, rel=1e-6)
    assert uncapped(400, 400) == 4000


def test_training_takes_six_operations_a_parameter_and_token() -> None:
    recipe, config = nano(), nano().settings("sft")
    told = TOLD.model_copy(update={"layer_seconds": 1e-30, "mfu": 0.5})
    counts = Counts(passed=1000, length=0, steps=1)
    full = training_seconds(recipe, config, SHAPE, DEVICE, told, counts)
    assert full == pytest.approx(1000 * 6 * 300 / 0.5e9)
    lora = config.model_copy(update={"lora": LoRAConfig()})
    assert training_seconds(recipe, lora, SHAPE, DEVICE, told, counts) == pytest.approx(
        full * 4 / 6
    )
    longer = replace(counts, length=100)  # attention to 50 tokens: 4 · 2 layers · 4 · 50
    assert training_seconds(recipe, config, SHAPE, DEVICE, told, longer) == pytest.approx(
        1000 * 3 * (2 * 300 + 1600) / 0.5e9
    )


def test_sampling_reads_the_weights_and_half_filled_caches() -> None:
    told = TOLD.model_copy(
        update={"rows": 8, "layer_seconds": 1e-30, "bandwidth_share": 0.5, "process_bytes": 0}
    )
    counts = Counts(generated=800, length=30)
    device = replace(DEVICE, name="CPU", flops={"float32": 1e15})
    assert kv_bytes(SHAPE, "float32") == 2 * 2 * 1 * 2 * 4
    sampler = sampler_of(InProcessEngine(), 0)
    seconds = sampling_seconds(nano(), SHAPE, device, told, sampler, counts)
    assert seconds == pytest.approx(100 * (4 * 340 + 8 * 15 * 32) / 0.5e6)
    four = sampler_of(InProcessEngine(), 4)
    assert sampling_seconds(nano(), SHAPE, device, told, four, counts) == pytest.approx(seconds / 4)


def test_engines_say_on_how_many_devices_they_sample() -> None:
    vllm = InProcessEngine(kind="vllm", options={"tensor_parallel_size": 2})
    assert (sampler_of(vllm, 0).devices, sampler_of(vllm, 8).copies) == (2, 4)
    served = ServedEngine(kind="server", command="vllm serve {model} --tensor-parallel-size=4")
    assert sampler_of(served, 0).parts == 4
    flags = ServedEngine(kind="server", command="serve", options={"tensor_parallel_size": 2})
    assert sampler_of(flags, 0).parts == 2
    urls = ServedEngine(kind="server", urls=("http://a", "http://b"))
    assert sampler_of(urls, 0).devices == 2


def test_disk_holds_the_policy_and_two_checkpoints() -> None:
    config = nano().settings("sft").model_copy(update={"save_steps": 10})
    disk = stage_disk(config, "sft", SHAPE, "bfloat16", Counts(steps=50), 20)
    assert (disk.policy, disk.checkpoints, disk.files) == (2 * 340, 2 * 12 * 340, 0)
    assert stage_disk(config, "sft", SHAPE, "bfloat16", Counts(steps=9), 20).checkpoints == 0
    search = stage_disk(None, "pts", SHAPE, "float32", Counts(rollouts=10, generated=100), 20)
    assert search.files == pytest.approx(10 * 55 + 100 * 1.26)


def plan_of(name: str, *overrides: str, device: str = "h100", devices: int = 0) -> Plan:
    recipe = load_recipe(name, overrides)
    return make_plan(recipe, shape_of(recipe.model), device_named(device), Assumed(), devices)


def test_phi_4_is_planned_stage_by_stage() -> None:
    plan = plan_of("phi-4", "sft.batch_size=8", "sft.gradient_accumulation=16")
    text = to_text(plan)
    assert plan.shape.parameters == 14_659_507_200
    names = [stage.name for stage in plan.stages]
    assert names == [
        "eval/base", "sft", "eval/sft", "rejection_sft", "eval/rejection_sft", "pts", "token_dpo",
        "eval/token_dpo", "full_dpo", "eval/full_dpo",
    ]  # fmt: skip
    found = to_json(plan)["stages"]
    # 16 bytes a parameter on eight devices leave no room for eight of the longest rows in SFT.
    sft = next(stage for stage in plan.stages if stage.name == "sft")
    assert sft.peak.memory.gradients == pytest.approx(4 * 14_659_507_200 / 8)
    assert [name for name in names if not found[name]["fits"]] == ["sft"]
    assert f"rows of {sft.longest_fitting:,} would fit" in text
    assert 8 <= sft.longest_fitting < 16_384
    own = ("sft.batch_size=8", "sft.gradient_accumulation=16")
    fitting = plan_of("phi-4", *own, f"sft.max_length={sft.longest_fitting}")
    assert all(stage.peak.memory.total <= 80e9 for stage in fitting.stages)


@pytest.mark.parametrize("recipe", ["phi-4", "phi-4-lora"])
def test_the_shipped_recipes_fit_into_80_gb(recipe: str) -> None:
    stages = plan_of(recipe).stages
    assert all(stage.peak.memory.total <= 80e9 for stage in stages)
    assert " NO " not in to_text(plan_of(recipe))


@pytest.mark.parametrize("device", GPUS)
def test_what_does_not_fit_is_told_with_a_remedy(device: str) -> None:
    plan = plan_of("phi-4", device=device)
    wrong = [stage for stage in plan.stages if stage.peak.memory.total > plan.device.memory]
    assert to_text(plan).count("does not fit: ") == len(wrong)
    assert bool(wrong) == (plan.device.memory < 80e9)


def test_more_devices_that_sample_share_the_time() -> None:
    two, eight = (plan_of("phi-4", "stages=[pts, token_dpo]", devices=n) for n in (2, 8))

    def sampling(plan: Plan) -> float:
        return next(s for s in plan.stages if s.name == "pts").phases[1].seconds

    assert sampling(eight) == pytest.approx(sampling(two) / 4)


@pytest.mark.parametrize("recipe", ["phi-4", "phi-4-lora"])
def test_a_plan_of_phi_4_loads_nothing_and_asks_no_network(recipe: str) -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        f"sys.argv = ['align', 'plan', '{recipe}']\n"
        "from align.cli import app\n"
        "app(standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets'}\n"
        "print('loaded', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("loaded []\n")


def test_an_unknown_device_is_told_with_the_one_that_is_meant() -> None:
    with pytest.raises(RecipeError, match="no device 'h10'; did you mean 'h100'"):
        device_named("h10")
    assert device_named("a100-40").memory == 40e9
    assert set(GPUS) == {"h200", "h100", "a100-80", "a100-40", "l40s"}


def test_a_config_that_is_not_here_is_told_with_the_remedy(tmp_path: Path) -> None:
    unknown = ModelConfig(path="nobody/nothing-14b")
    with pytest.raises(RecipeError, match=r"downloads nothing; fetch it .*--parameters"):
        shape_of(unknown)
    shape = shape_of(unknown, {"parameters": 7_000_000_000, "layers": 32, "hidden": 4096})
    assert (shape.heads, shape.head_size, shape.intermediate) == (32, 128, 14336)
    with pytest.raises(RecipeError, match="--layers: missing"):
        shape_of(unknown, {"parameters": 7_000_000_000})
    assert number_of("14.7B") == 14_700_000_000
    with pytest.raises(RecipeError, match="--parameters: got 'many'"):
        number_of("many")


def finished(folder: Path, recipe: Recipe, seconds: float) -> Path:
    """A run whose SFT and rejection sampling are done, with metrics that are easy to divide."""
    stages = {
        "sft": {"rows": 3000, "assistant_tokens": 3000 * 44},
        "rejection_sft": {
            "rows": 240, "questions": 300, "questions_mixed": 150, "questions_all_right": 75,
            "questions_all_wrong": 75, "generated_tokens": 300 * 6 * 50,
        },
    }  # fmt: skip
    record = {"inputs": {}, "seconds": seconds, "model": None, "outputs": {}}
    done = {name: {**record, "metrics": metrics} for name, metrics in stages.items()}
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"recipe": recipe.plain(), "stages": done}))
    return folder


def test_a_run_tells_of_one_like_it(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", nano(), 102.0)
    device = device_named("cpu")
    told = assumed_from(run, run_recipe(run), device)
    assert told.at("sft", "sft").loss_share == pytest.approx(0.5)  # no prompt is on file
    rejection = told.at("best", "rejection_sft")
    assert rejection.answer_tokens == 50
    assert rejection.solve_a == pytest.approx(rejection.solve_b, rel=1e-3)
    assert rejection.distinct_share == pytest.approx(240 / 900, rel=1e-3)

    def planned(*overrides: str) -> dict[str, Any]:
        recipe = nano(*overrides)
        plan = make_plan(recipe, shape_of(recipe.model), device, told)
        return {stage.name: stage for stage in plan.stages}

    same, double = planned(), planned("sft.num_examples=6000", "rejection_sft.num_problems=600")
    assert same["sft"].seconds == pytest.approx(102)
    assert same["rejection_sft"].counts.rows == pytest.approx(240)
    # Two seconds of a stage do not grow; the steps are 375 for 188.
    assert double["sft"].seconds == pytest.approx(2 + 200, rel=0.01)
    assert double["rejection_sft"].counts.generated == 600 * 6 * 50
    assert double["rejection_sft"].seconds == pytest.approx(2 + 200, rel=0.02)
    without = assumed_from(run, run_recipe(run), None)
    assert (without.factors, without.common.start_seconds) == ({}, 0)


def test_a_run_without_a_finished_stage_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"recipe": nano().plain(), "stages": {}}))
    with pytest.raises(ManifestError, match="no stage is finished; give --like a finished run"):
        assumed_from(tmp_path, nano(), None)


def test_values_that_a_person_gives_win() -> None:
    told = Assumed(of_kind={"pts": Assumptions(answer_tokens=7)}).with_values({"answer_tokens": 9})
    assert (told.at("pts", "pts").answer_tokens, told.common.answer_tokens) == (9, 9)
    assert ("answer_tokens", 9, "given with --set") in list(told.lines(100))
    assert short(12_345) == "12.3K"
