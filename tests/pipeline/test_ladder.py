"""The order of static int8 forms: what is tried after which failure, on forms whose failures are given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from edgeexport.errors import RecipeError
from edgeexport.pipeline import encoders, ladder
from edgeexport.pipeline.lower import Candidate, Form, Lane, for_target
from edgeexport.records.artifact import Artifact, Signature, TensorSpec
from edgeexport.records.recipe import DataSpec, ModelSpec, Quantize, Recipe
from edgeexport.records.run import Rung
from edgeexport.records.target import Tolerance, load_target
from edgeexport.records.verdict import Drop, LimitVerdict, Verdict

RUNG = cast("Any", SimpleNamespace(name="source"))
ARTIFACT = Artifact("m.onnx", "onnx", "sha256:0", 1, "", "test")
LIMITS = {"speed": "never_slower", "accuracy": "max_drop"}


def _trained(_: Lane, rung: Any, *, step: Quantize, way: str, choice: Any) -> Form:
    """The form that `ladder.trained_form` would give, never built."""
    return Form(" ".join(filter(None, ["source int8 qat", way, choice.method])), rung, lambda: cast("Any", None))


class Climbed:
    """A lane on which every form fails as told: name -> (fault, drop); what is not told cannot be built."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, faults: Mapping[str, tuple[str, float]], *, train: str | None = None
    ) -> None:
        self.faults = faults
        self.rolled_back: set[str] = set()
        self.float_inputs: set[str] = set()
        recipe = Recipe(model=ModelSpec(onnx="m.onnx"), data=DataSpec(train=train))
        self.road = SimpleNamespace(recipe=recipe)
        self.refused: dict[str, Verdict] = {}
        self.repaired: list[str] = []
        monkeypatch.setattr(ladder, "candidate", self._candidate)
        monkeypatch.setattr(ladder, "repaired", lambda _, slow, **__: self.repaired.append(slow.row.name))
        monkeypatch.setattr(ladder, "trained_form", _trained)
        monkeypatch.setattr(ladder, "float_layers", lambda *_: [{"layer": "it loses most"}])

    def names(self, **step: Any) -> list[str]:
        """What is tried, in order, when all of it fails."""
        lane = cast("Lane", SimpleNamespace(refused=self.refused, road=self.road))
        tried = ladder._static_int8(
            lane,
            RUNG,
            step=Quantize(**step),
        )
        return list(self._refusing(tried))

    def _refusing(self, tried: Iterator[Candidate | Rung]) -> Iterator[str]:
        for form in tried:
            row = form.row if isinstance(form, Candidate) else form
            if row.name in self.faults and row.name not in self.float_inputs:
                limit = LimitVerdict(LIMITS[self.faults[row.name][0]], 0.0, 1.0, None, "fails")
                self.refused[row.name] = Verdict("board", "sha256:0", "selection", (limit,))
            yield row.name.removeprefix("source int8 ")

    def _candidate(self, _: Lane, form: Form) -> Candidate | Rung:
        if form.name.endswith("repaired"):
            form.build()
        if form.name not in self.faults:
            return Rung(form.name, "int8", "board", ARTIFACT, "rolled back", "it cannot be built")
        drop = self.faults[form.name][1]
        status: Any = "rolled back" if form.name in self.rolled_back else "kept"
        row = Rung(form.name, "int8", "board", ARTIFACT, status, drop=Drop(drop, drop, drop, drop, "mcnemar", 100))
        dtype = "float32" if form.name in self.float_inputs else "int8"
        signature = Signature((TensorSpec("image", dtype, ("batch", 1)),), ())
        lowered = cast("Any", SimpleNamespace(record=SimpleNamespace(signature=signature)))
        lane = cast("Lane", SimpleNamespace(target=SimpleNamespace(io="int8")))
        return for_target(lane, Candidate(row, lowered, RUNG, None))


def test_a_change_of_weights_that_cannot_be_built_does_not_end_the_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    climbed = Climbed(monkeypatch, {"source int8 minmax": ("accuracy", 3.0)})
    tried = climbed.names(methods=("minmax",))
    assert tried == ["minmax", "rounded minmax", "equalized rounded minmax", "minmax 1 in float"]


def test_what_cannot_be_built_at_all_has_no_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Climbed(monkeypatch, {}).names(methods=("minmax", "mse")) == ["minmax"]


def test_changed_weights_alone_say_nothing_of_what_layers_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    climbed = Climbed(monkeypatch, {"source int8 equalized minmax": ("accuracy", 3.0)})
    assert climbed.names(methods=("minmax",), improve="always")[-1] == "equalized minmax"


def test_of_forms_that_are_all_too_slow_the_best_is_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = {
        "source int8 minmax": ("speed", 0.5),
        "source int8 mse": ("speed", 0.1),
        "source int8 equalized mse": ("accuracy", 9.0),
    }
    climbed = Climbed(monkeypatch, faults)
    tried = climbed.names(methods=("minmax", "mse"), improve="always")
    assert tried[2:] == ["mse", "minmax", "equalized mse", "mse repaired"]
    assert climbed.repaired == ["source int8 mse"]


@pytest.mark.parametrize(("needed", "tried"), [(1, [1]), (3, [1, 2, 3]), (6, [1, 2, 4, 5, 6]), (7, [1, 2, 4, 6, 7])])
def test_as_few_layers_are_left_in_float_as_the_gates_ask_for(
    needed: int, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = {f"source int8 minmax {count} in float": ("speed", 1.0) for count in range(needed, 12)}
    failing = {f"source int8 minmax {count} in float": ("accuracy", 2.0) for count in range(1, needed)}
    climbed = Climbed(monkeypatch, {"source int8 minmax": ("accuracy", 3.0), **failing, **faults})
    climbed.rolled_back |= failing.keys()
    monkeypatch.setattr(ladder, "float_layers", lambda *_: [{f"layer {number}": "it loses"} for number in range(11)])
    counts = [name.split()[1] for name in climbed.names(methods=("minmax",)) if name.endswith("in float")]
    assert [int(count) for count in counts] == tried


PLAIN = {"source int8 minmax": ("accuracy", 3.0), "source int8 mse": ("accuracy", 2.0)}


def test_what_nothing_else_helps_is_trained_from_the_form_that_lost_least(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = Climbed(monkeypatch, PLAIN, train="data:train").names(methods=("minmax", "mse"))
    assert tried[-1] == "qat mse"
    assert "qat mse" not in tried[:-1]
    balanced = {**PLAIN, "source int8 equalized rounded mse": ("accuracy", 1.0)}
    assert Climbed(monkeypatch, balanced, train="t").names(methods=("minmax", "mse"))[-1] == "qat equalized rounded mse"


def test_without_samples_or_against_the_users_word_nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "qat" not in " ".join(Climbed(monkeypatch, PLAIN).names(methods=("minmax",)))
    assert "qat" not in " ".join(Climbed(monkeypatch, PLAIN, train="t").names(methods=("minmax",), qat="never"))


def test_layers_in_float_that_cost_too_much_time_ask_for_training_too(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = {"source int8 minmax": ("accuracy", 3.0), "source int8 minmax 1 in float": ("speed", 0.1)}
    tried = Climbed(monkeypatch, faults, train="t").names(methods=("minmax",))
    assert tried[-2:] == ["qat minmax", "minmax 1 in float repaired"]


def test_what_is_only_too_slow_is_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = Climbed(monkeypatch, {"source int8 minmax": ("speed", 0.1)}, train="t").names(methods=("minmax",))
    assert tried == ["minmax", "minmax repaired"]


@pytest.mark.parametrize("qat", ["if-needed", "always"])
def test_inputs_that_are_not_what_the_target_asks_for_are_no_loss_that_has_a_remedy(
    qat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = "qat minmax" if qat == "always" else "minmax"
    climbed = Climbed(monkeypatch, {**PLAIN, "source int8 qat minmax": ("accuracy", 0.0)}, train="t")
    climbed.float_inputs |= climbed.faults.keys()
    assert climbed.names(methods=("minmax", "mse"), qat=qat) == [first]


def test_always_training_goes_before_all_else_and_the_rest_follows_if_it_loses_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step: dict[str, Any] = {"methods": ("minmax",), "qat": "always"}
    lossy = {**PLAIN, "source int8 qat minmax": ("accuracy", 2.0)}
    assert Climbed(monkeypatch, lossy, train="t").names(**step)[:2] == ["qat minmax", "minmax"]
    slow = {**PLAIN, "source int8 qat minmax": ("speed", 0.0)}
    assert Climbed(monkeypatch, slow, train="t").names(**step) == ["qat minmax"]


def test_training_always_needs_samples() -> None:
    with pytest.raises(RecipeError, match="no samples to train on"):
        Recipe(model=ModelSpec(onnx="m.onnx"), data=DataSpec(pool="digits"), step=(Quantize(qat="always"),))


def test_float16_that_held_one_tolerance_is_compared_anew_for_another() -> None:
    keys: list[Any] = []
    workspace = SimpleNamespace(stage=lambda _, *, key, **__: keys.append(key))
    road = SimpleNamespace(workspace=workspace, data_key=lambda _: {})
    rung = cast("Any", SimpleNamespace(name="source", spine=SimpleNamespace(record=SimpleNamespace(artifact=ARTIFACT))))
    board = msgspec.structs.replace(load_target("android-arm64"), runtime="ort", features=("asimdhp",))
    for least in (10.0, 30.0):
        target = msgspec.structs.replace(board, tolerance=Tolerance(int8_sqnr_db=least))
        for form in encoders.half_form(cast("Lane", SimpleNamespace(road=road, target=target)), rung):
            form.build()
    first, second = keys
    assert first != second
