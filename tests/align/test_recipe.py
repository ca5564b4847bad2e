"""Recipes: every shipped one loads; every fault is told at once, with its place and a remedy."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from align.errors import RecipeError
from align.models.load import base_path, device_of, prepare_base
from align.pipeline.check import check_recipe
from align.pipeline.recipe import Recipe, load_recipe, parse_recipe
from align.settings import ModelConfig, data_folder
from align.tasks.registry import build_task
from pts.types import Problem, Verdict
from pts.verifiers.registry import VERIFIERS

SHIPPED = sorted(data_folder("recipes").rglob("recipe.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.parent.name)
def test_shipped_recipe_loads(path: Path) -> None:
    assert load_recipe(str(path)).stages


def test_phi_nano_passes_all_checks() -> None:
    check_recipe(load_recipe("phi-nano"))


def test_overrides_reach_nested_keys() -> None:
    recipe = load_recipe("phi-nano", ["seed=7", "pts.search.p_gap=0.3", "stages=[sft]"])
    assert (recipe.seed, recipe.settings("pts").search.p_gap, [e.name for e in recipe.stages]) == (
        7,
        0.3,
        ["sft"],
    )


MINE = """
import pts
from pts.verifiers.registry import VERIFIERS


def words(argument):
    def verifier(problem, text):
        few = len(text.split()) <= int(argument)
        return pts.Grade(pts.Verdict.PASS if few else pts.Verdict.FAIL)

    return verifier


VERIFIERS["words"] = words
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "few_words.py").write_text(MINE)
    (tmp_path / "broken_words.py").write_text("import pts\n1 / 0\n")
    for name in ("q", "r"):
        row = f'{{"id": "{name}", "prompt": "{name}", "reference": "b"}}\n'
        (tmp_path / f"{name}.jsonl").write_text(row)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "few_words"
    sys.modules.pop("few_words", None)
    VERIFIERS.pop("words", None)


def of_files(*more: str) -> list[str]:
    problems = "task={kind: files, problems: {train: q.jsonl, test: r.jsonl}, verifier: 'words:2'}"
    return [problems, *more]


def test_modules_of_ones_own_register_what_a_recipe_names(own_module: str) -> None:
    with pytest.raises(RecipeError, match=r"no verifier 'words:2'.* once its module is named"):
        build_task(load_recipe("phi-nano", of_files()).task)
    recipe = load_recipe("phi-nano", of_files(f"imports=[{own_module}]"))
    assert recipe.plain()["imports"] == [own_module]
    verifier = build_task(recipe.task).verifier
    assert verifier(Problem("q", "", ""), "two words").verdict is Verdict.PASS
    assert "imports" not in load_recipe("phi-nano").plain()


def test_modules_of_ones_own_come_along_into_another_process(own_module: str) -> None:
    sent = pickle.dumps(load_recipe("phi-nano", of_files(f"imports=[{own_module}]")))
    del sys.modules[own_module], VERIFIERS["words"]
    assert pickle.loads(sent).imports == (own_module,)
    assert "words" in VERIFIERS


def test_modules_that_cannot_be_imported_are_told_with_all_faults(own_module: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("phi-nano", ["imports=[few_word, broken_words]", "sedd=1"])
    first, second, third = caught.value.problems
    assert "imports: no module 'few_word' is installed or stands in" in first
    assert "'broken_words' cannot be imported: ZeroDivisionError: division by zero (" in second
    assert "broken_words.py, line 2)" in second
    assert "sedd: no such key" in third


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("phi-nano", ["sedd=1", "pts.search.p_gap=3", "model.device=gpu", "pts.p_gap=1"])
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    assert "sedd: no such key; did you mean 'seed'?" in text
    assert "pts.p_gap: no such key; did you mean 'search.p_gap'?" in text
    assert "pts.search.p_gap: got 3; input should be less than 1" in text
    assert "model.device: got 'gpu'" in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages=[pts]", "no stage trains on; name a token_dpo after it"),
        ("stages=[token_dpo, pts]", "must come before"),
        ("stages=[sft, sft]", "each name may stand once"),
        ("pts.search.indifference_margin=0.3", "indifference_margin must be smaller than p_gap"),
        ("evaluate.temperatures=[-1]", "greater than or equal to 0"),
        ("evaluate.temperatures=[.nan]", "finite number|greater than or equal"),
        ("sft.learning_rate=.inf", "finite number"),
        ("token_dpo.beta=.inf", "finite number"),
        ("task.kind=x", "input tag 'x'"),
        ("seed", "must read key.path=value"),
        ("sft=null", r"sft: must hold keys and values, got None"),
        ("pts=[1]", r"pts: must hold keys and values, got \[1\]"),
        ("sft={1: 2}", "sft.1: got 1; keys should be strings"),
        ("sft.lora.target_modules=[]", "sft.lora.target_modules"),
        ("full_dpo.match=[pts, pts]", "full_dpo.match: 'pts' is named 2 times; name it once"),
        ("full_dpo.match=[base]", "full_dpo.match: 'base' samples nothing"),
        ("full_dpo.pairs_of=continuations", "full_dpo.pairs_of: .* about the rollouts of a search"),
        ("seed.x=1", "holds a value, not keys"),
        ("description=2024-13-45", "'2024-13-45' is not a YAML value; text is quoted"),
        ("sft={epochs: 2, epochs: 3}", "is not a YAML value; line 1: 'epochs' stands twice"),
        ("description=!!timestamp x", "is not a YAML value"),
        ("description=" + "[" * 5000, "is not a YAML value"),
    ],
)
def test_bad_override_says_why(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("phi-nano", [override])


def test_modules_of_an_adapter_are_those_of_the_model() -> None:
    names = "sft.lora.target_modules=[qkv_prj, o_proj, lm]"
    with pytest.raises(RecipeError) as caught:
        check_recipe(load_recipe("phi-nano", ["sft.lora.r=4", names]))
    first, second = caught.value.problems
    assert "the model has no module 'qkv_prj'; did you mean 'qkv_proj'" in first
    assert second.startswith("sft.lora.target_modules: the model has no module 'lm'")
    check_recipe(load_recipe("phi-nano", ["sft.lora.target_modules=[qkv_proj, o_proj]"]))


def test_what_an_alias_shares_is_overridden_by_itself() -> None:
    shared = {"kind": "transformers", "options": {"max_rows": 8}}
    data = load_recipe("phi-nano").plain()
    data["engine"] = data["evaluate"]["engine"] = shared
    recipe = parse_recipe(data, "own", ["engine.options.max_rows=4"])
    asked = [engine.options["max_rows"] for engine in (recipe.engine, recipe.evaluate.engine)]  # type: ignore[union-attr]
    assert asked == [4, 8]


def test_worth_cannot_weigh_pairs_whose_worth_was_not_measured() -> None:
    with pytest.raises(
        RecipeError, match=r"token_dpo.weight_by: got 'expected_gain'.* set it to 'none'"
    ):
        load_recipe("phi-nano", ["pts.pairs_from=coin", "token_dpo.weight_by=expected_gain"])


def test_unknown_recipe_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match="did you mean 'phi-nano'"):
        load_recipe("phi-nao")


def test_check_reports_model_and_reference_together(tmp_path: Path) -> None:
    recipe = load_recipe(
        "phi-nano", [f"model.path={tmp_path}", "full_dpo.reference=/nowhere", "stages=[sft]"]
    )
    with pytest.raises(RecipeError) as caught:
        check_recipe(recipe)
    assert [p.split(":")[0] for p in caught.value.problems] == ["model.path", "full_dpo.reference"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"description: caf\xe9", "byte 0xe9 is not UTF-8; save the file as UTF-8"),
        (b"description: 2024-13-45", "not valid YAML: month must be in 1..12"),
        (b"a: " + b"[" * 5000, "not valid YAML: brackets are nested too deeply"),
        (b"a: [", "not valid YAML: while parsing"),
    ],
)
def test_a_file_that_is_no_yaml_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(path))


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and a hub that does not answer."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network\nand so on")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "model_info", refuse)


@pytest.mark.usefixtures("no_hub")
def test_a_model_that_is_not_found_is_told_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(path="models/base")
    assert base_path(config) == "models/base"
    with pytest.raises(RecipeError, match=r"is no folder .* does not give it \(no network\);"):
        prepare_base(config)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError, match="HF_HUB_OFFLINE forbids to fetch it"):
        base_path(config)
    cached = tmp_path / "models--models--base" / "snapshots" / "0"
    cached.mkdir(parents=True)
    (cached / "config.json").touch()
    assert prepare_base(config) == Path("models/base")


@pytest.mark.usefixtures("no_hub")
def test_names_of_folders_are_not_taken_for_hub_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(RecipeError, match=r"'models/base' holds no config\.json"):
        base_path(ModelConfig(path="models/base"))
    with pytest.raises(RecipeError, match="is no folder and no name of a hub model"):
        base_path(ModelConfig(path="runs/x/sft/model"))


def test_a_device_that_is_not_here_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match=r"model.device: got 'cuda', but PyTorch"):
        device_of(ModelConfig(path="builtin:phi-nano", device="cuda"))


def test_every_field_has_a_sentence() -> None:
    def walk(kind: type) -> None:
        for name, field in kind.model_fields.items():  # type: ignore[attr-defined]
            described = field.description or name == "kind"
            assert described, f"{kind.__name__}.{name}"
            if hasattr(field.annotation, "model_fields"):
                walk(field.annotation)

    walk(Recipe)


def test_every_key_is_read_by_some_code() -> None:
    root = Path(__file__).parents[2]
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for top in ("align", "pts")
        for path in (root / top).rglob("*.py")
        if path.name not in {"recipe.py", "config.py", "settings.py"}
    )

    def keys(kind: type) -> set[str]:
        found: set[str] = set()
        for name, field in kind.model_fields.items():  # type: ignore[attr-defined]
            nested = hasattr(field.annotation, "model_fields")
            found |= keys(field.annotation) if nested else {name}  # type: ignore[arg-type]
        return found

    own = {"imports"}  # read by the recipe itself, where it is made and where it is sent
    unread = {key for key in keys(Recipe) - own if f".{key}" not in code}
    assert unread <= {"description"}, f"declared but never read: {sorted(unread)}"


def test_an_unknown_loss_is_told_before_the_run() -> None:
    recipe = load_recipe("phi-nano", ["token_dpo.loss=hing"])
    with pytest.raises(RecipeError, match=r"token_dpo.loss: no loss 'hing'; did you mean 'hinge'"):
        check_recipe(recipe)
    check_recipe(load_recipe("phi-nano", ["token_dpo.loss=ipo"]))


def test_settings_that_cannot_go_together_are_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"sampling\.temperature: got 0, with which all"):
        load_recipe("phi-nano", ["sampling.temperature=0"])
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 64}')
    recipe = load_recipe("phi-nano", [f"model.path={tmp_path}"])
    with pytest.raises(
        RecipeError, match=r"max_new_tokens: got 140, but the model's context is 64"
    ):
        check_recipe(recipe)
