"""Recipes: every shipped one loads; every fault is told at once, with its place and a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.check import check_recipe
from align.errors import RecipeError
from align.recipe import Recipe, data_folder, load_recipe

SHIPPED = sorted(data_folder("recipes").rglob("recipe.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.parent.name)
def test_shipped_recipe_loads(path: Path) -> None:
    assert load_recipe(str(path)).stages


def test_phi_nano_passes_all_checks() -> None:
    check_recipe(load_recipe("phi-nano"))


def test_overrides_reach_nested_keys() -> None:
    recipe = load_recipe("phi-nano", ["seed=7", "pts.search.p_gap=0.3", "stages=[sft]"])
    assert (recipe.seed, recipe.pts.search.p_gap, recipe.stages) == (7, 0.3, ("sft",))


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("phi-nano", ["sedd=1", "pts.search.p_gap=3", "model.device=gpu"])
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "sedd: no such key; did you mean 'seed'?" in text
    assert "pts.search.p_gap: got 3; input should be less than 1" in text
    assert "model.device: got 'gpu'" in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages=[pts]", "name both"),
        ("stages=[token_dpo, pts]", "must come before"),
        ("stages=[sft, sft]", "each may stand once"),
        ("pts.search.zone=0.3", "zone must be smaller than p_gap"),
        ("task.kind=x", "input tag 'x'"),
        ("seed", "must read key.path=value"),
        ("seed.x=1", "holds a value, not keys"),
    ],
)
def test_bad_override_says_why(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("phi-nano", [override])


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
        if path.name not in {"recipe.py", "config.py"}
    )

    def keys(kind: type) -> set[str]:
        found: set[str] = set()
        for name, field in kind.model_fields.items():  # type: ignore[attr-defined]
            nested = hasattr(field.annotation, "model_fields")
            found |= keys(field.annotation) if nested else {name}  # type: ignore[arg-type]
        return found

    unread = {key for key in keys(Recipe) if f".{key}" not in code}
    assert unread <= {"description"}, f"declared but never read: {sorted(unread)}"
