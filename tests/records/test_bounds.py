"""Numbers outside their bounds are refused by key, value and bound, from TOML and from Python alike."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from edgeexport.errors import CorruptFile, RecipeError
from edgeexport.records.base import from_json
from edgeexport.records.recipe import (
    DataSpec,
    Distill,
    InputSpec,
    Limits,
    ModelSpec,
    Prune,
    Quantize,
    Recipe,
    Training,
    load_recipe,
)
from edgeexport.records.target import Target, TargetLimits, load_target

PHONE = {"title": "A phone", "runtime": "ort", "format": "onnx", "arch": "aarch64"}
WRONG: list[tuple[type[Any], str, str, Any]] = [
    *[(Limits, "limits", key, value) for key in Limits.__struct_fields__ for value in (math.nan, math.inf, -1.0)],
    (TargetLimits, "limits", "max_drop", -0.5),
    (Prune, "prune", "rounds", 0),
    (Prune, "prune", "rounds", 1.5),
    (Prune, "prune", "macs", 1.0),
    (Prune, "prune", "round_to", 0),
    (Training, "training", "batch_size", 0),
    (Training, "training", "batch_size", True),
    (Training, "training", "epochs", -1.0),
    (Training, "training", "epochs", math.inf),
    (Training, "training", "learning_rate", 0.0),
    (Training, "training", "weight_decay", math.nan),
    (Training, "training", "seed", -1),
    (Training, "training", "budget_minutes", 0.0),
    (Distill, "distill", "temperature", 0.0),
    (Distill, "distill", "soft_share", 1.1),
    (Distill, "distill", "further_weight", -1.0),
    (DataSpec, "data", "calibration_count", 0),
    (DataSpec, "data", "selection_max", 0),
    (DataSpec, "data", "selection_share", 1.0),
    (DataSpec, "data", "selection_share", 0.0),
    (DataSpec, "data", "split", (0.5, 0.0, 0.5)),
    (DataSpec, "data", "split", (0.5, 0.5, math.nan)),
    (DataSpec, "data", "seed", -1),
]


@pytest.mark.parametrize(("kind", "place", "key", "value"), WRONG)
def test_a_number_out_of_bounds_is_refused_by_key_value_and_bound(
    kind: type[Any], place: str, key: str, value: Any
) -> None:
    with pytest.raises(RecipeError) as caught:
        kind(**{key: value})
    assert f"`{place}.{key}` is {value!r}" in str(caught.value)
    assert "expected" in str(caught.value)


def test_the_least_and_the_most_that_is_allowed() -> None:
    Limits(max_drop=0.0)
    Training(epochs=0, seed=0, batch_size=1)
    Distill(soft_share=0.0)
    Distill(soft_share=1.0)
    Prune(rounds=1, macs=1.01, round_to=1)


def test_a_quantize_step_without_methods_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"quantize\.methods"):
        Quantize(methods=())


@pytest.mark.parametrize("shape", [(1, 0), (1, -3), (1, 2.5), (1, True)])
def test_a_shape_of_anything_but_positive_integers_is_refused(shape: tuple[Any, ...]) -> None:
    with pytest.raises(RecipeError, match=r"model\.inputs\.x"):
        ModelSpec(onnx="m.onnx", inputs={"x": shape})
    with pytest.raises(RecipeError, match=r"model\.inputs\.x"):
        ModelSpec(onnx="m.onnx", inputs={"x": InputSpec(shape, "int64")})


def test_a_network_needs_a_batch_axis() -> None:
    with pytest.raises(RecipeError, match=r"`model\.inputs\.x` is \[\]"):
        Recipe(ModelSpec(factory="m:net", inputs={"x": ()}))


@pytest.mark.parametrize(("outputs", "said"), [(("x",), "'x', which is an input"), (("y", "y"), "'y' twice")])
def test_an_output_named_like_another_tensor_is_refused(outputs: tuple[str, ...], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        ModelSpec(onnx="m.onnx", inputs={"x": (1, 3)}, outputs=outputs)


def test_a_recipe_file_out_of_bounds_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[model]\nonnx = "m.onnx"\n[limits]\nmax_drop = nan\n')
    with pytest.raises(RecipeError, match=r"r\.toml: `limits\.max_drop` is nan"):
        load_recipe(path)


def test_inputs_may_say_their_type_in_toml(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[model]\nfactory = "m:net"\ninputs = { ids = { shape = [1, 6], dtype = "int64" }, x = [1, 3] }\n')
    model = load_recipe(path).model
    assert model.shapes() == {"ids": (1, 6), "x": (1, 3)}
    assert model.dtypes() == {"ids": "int64", "x": "float32"}


def test_limits_of_a_target_keep_the_default_drop_beside_others(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    text = "".join(f'{key} = "{value}"\n' for key, value in PHONE.items())
    path.write_text(text + "[limits]\nmax_latency_ms = 20.0\n")
    assert load_target(str(path)).limits == TargetLimits(max_drop=1.0, max_latency_ms=20.0)
    path.write_text(text + "[limits]\nmax_size_mb = -2.0\n")
    with pytest.raises(RecipeError, match=r"board\.toml: `limits\.max_size_mb` is -2\.0"):
        load_target(str(path))


@pytest.mark.parametrize("name", ["", "../x", "a b", "a/b", ".hidden", "a\n", "é"])
def test_a_name_that_names_no_file_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="`name` of the target"):
        Target(name=name, **PHONE)  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [0, -1])
def test_a_target_runs_at_least_one_thread(threads: int) -> None:
    with pytest.raises(RecipeError, match=f"`target.threads` is {threads}"):
        Target(name="phone", threads=threads, **PHONE)  # type: ignore[arg-type]


def test_a_stored_record_out_of_bounds_is_a_corrupt_file() -> None:
    with pytest.raises(CorruptFile, match=r"m\.json: .*max_drop"):
        from_json(b'{"max_drop": -1}', Limits, origin="m.json")


@pytest.mark.parametrize(
    ("step", "told", "meant"),
    [
        ({"do": "distil"}, r"`step\[1\]\.do` is 'distil'", "did you mean `distill`?"),
        (
            {"do": "quantize", "methods": ["min-max"]},
            r"`step\[1\]\.methods\[1\]` is 'min-max'",
            "did you mean `minmax`?",
        ),
        ({"do": "prune", "criterion": "huge"}, r"`step\[1\]\.criterion` is 'huge'", "known here: `l1`"),
    ],
)
def test_a_word_that_is_none_of_those_listed_gets_the_nearest(step, told, meant):
    from edgeexport.records.base import from_table

    table = {"model": {"factory": "m:f", "inputs": {"x": [1, 3]}}, "step": [step]}
    with pytest.raises(RecipeError, match=told) as caught:
        from_table(table, Recipe, origin="r.toml")
    assert meant in caught.value.next_step
