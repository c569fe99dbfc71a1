"""Recipe: what the user asked for. Read from TOML, or built in Python with live objects in place of references.

The rule: a recipe holds every choice that changes the result, and nothing about where it runs (that is a Target).
Paths are as written; `Recipe.resolve` reads them relative to the recipe's folder, `${NAME:-default}` expanded.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgeexport.errors import RecipeError
from edgeexport.records.base import Record, from_table
from edgeexport.records.bounds import (
    ABOVE_ONE,
    COUNT,
    INNER_SHARE,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    check_bounds,
    check_shape,
)
from edgeexport.records.environment import expand
from edgeexport.records.training import HOW_LONG, Training, Tuning

# They compare with the source's own outputs; samples for them need no labels.
LABEL_FREE_METRICS = ("agreement", "cosine")
InputType = Literal["float32", "int64", "int32", "uint8"]


class InputSpec(Record):
    """One input of a model that is not float32, or says so: shape with the batch first, and type."""

    shape: tuple[int, ...]
    dtype: InputType = "float32"


Inputs = Mapping[str, tuple[int, ...] | InputSpec]


def input_shapes(inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """Return input name -> shape, batch first."""
    return {name: tuple(spec.shape if isinstance(spec, InputSpec) else spec) for name, spec in inputs.items()}


def input_types(inputs: Inputs) -> dict[str, InputType]:
    """Return input name -> type; float32 where only a shape is given."""
    return {name: spec.dtype if isinstance(spec, InputSpec) else "float32" for name, spec in inputs.items()}


class ModelSpec(Record):
    """The source model: a PyTorch factory (with weights) or an existing ONNX file, never both.

    factory: "module:function" returning an nn.Module, a callable, or a live nn.Module.
    onnx:    path of an .onnx file.
    weights: path of a .safetensors, .pt, .pth or .th file for `factory`.
    inputs:  input name -> shape with the batch first, e.g. {image = [1, 3, 32, 32]}, or shape and type, e.g.
             {ids = {shape = [1, 6], dtype = "int64"}}. Needed with `factory`; with `onnx` it fixes dimensions that
             the file leaves open.
    outputs: names for the outputs, in order; taken from the model when empty.
    labels:  path of a text file, one class name a line, shipped in the bundle.
    licence: a notice about the weights, shipped in the bundle.
    """

    factory: Any = None
    onnx: str | None = None
    weights: str | None = None
    inputs: dict[str, tuple[int, ...] | InputSpec] = {}
    outputs: tuple[str, ...] = ()
    labels: str | None = None
    licence: str = ""

    def __post_init__(self) -> None:
        for name, shape in self.shapes().items():
            check_shape(shape, f"model.inputs.{name}")
        for name in self.outputs:
            if name in self.inputs:
                raise RecipeError(f"`model.outputs` names {name!r}, which is an input", next_step="name it otherwise")
            if self.outputs.count(name) > 1:
                raise RecipeError(f"`model.outputs` names {name!r} twice")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return input name -> shape, batch first."""
        return input_shapes(self.inputs)

    def dtypes(self) -> dict[str, InputType]:
        """Return input name -> type; float32 where only a shape is given."""
        return input_types(self.inputs)


class DataSpec(Record):
    """Where samples come from. A source is "module:function", a folder, zip or .npz path, or a live sequence.

    train, evaluate: separate sources; selection is taken from train. `pool` instead of both: one source, split by
    digest into calibration (and training), selection and evaluation in the shares of `split`. `train` with `pool`:
    train teaches and calibrates, the pool is split into selection and evaluation; right for a released checkpoint,
    which has seen its training samples and would look better on them than it is.
    calibration: a named set ("digits" = calibration/digits.toml), a source, or nothing (train samples, seeded).
    classes: path of a text file that gives folder names their indices ("index name ..." or one name a line).
    files: data files that a "module:function" source reads; their digests enter the cache keys.
    metric: "top1", "top5", "auc", "mse", "mae", "agreement", "cosine", or "module:function".
    """

    train: Any = None
    evaluate: Any = None
    pool: Any = None
    split: tuple[float, float, float] = (0.2, 0.2, 0.6)
    calibration: Any = None
    calibration_count: int = 128
    selection_share: float = 0.1
    selection_max: int = 2000
    classes: str | None = None
    files: tuple[str, ...] = ()
    metric: Any = "top1"
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds(self, "data", calibration_count=COUNT, selection_share=INNER_SHARE, selection_max=COUNT, seed=SEED)
        if [POSITIVE.allows(share) for share in self.split] != [True] * 3 or sum(self.split) > 1 + 1e-9:
            raise RecipeError(f"`data.split` is {self.split}: expected three positive shares with a sum of at most 1")


class Resize(Record):
    """Resize to `size` (height, width), or the shorter side to `shorter`; kernel as Pillow names it."""

    size: tuple[int, int] | None = None
    shorter: int | None = None
    kernel: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    antialias: bool = True


class Preprocess(Record):
    """From a raw sample to one model input, always in this order: color, resize, center crop, scale, mean/std, layout.

    Raw pictures are uint8 (height, width, channels). `scale` multiplies; then `(x - mean) / std` on the last axis.
    layout "CHW" moves channels first, "HWC" leaves them last, "as-is" is for samples that are no pictures.
    input: the input it belongs to; may be left out when the model has one.
    """

    input: str | None = None
    color: Literal["RGB", "BGR", "gray"] = "RGB"
    resize: Resize | None = None
    crop: tuple[int, int] | None = None
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: Literal["CHW", "HWC", "as-is"] = "as-is"
    dtype: InputType = "float32"


class Limits(Record):
    """Bars to hold. `max_drop` is in the metric's own unit (top1: points); it and `speedup` against the fp32 source."""

    max_drop: float | None = None
    max_size_mb: float | None = None
    max_latency_ms: float | None = None
    max_memory_mb: float | None = None
    speedup: float | None = None

    def __post_init__(self) -> None:
        check_bounds(
            self,
            "limits",
            max_drop=NOT_NEGATIVE,
            max_size_mb=NOT_NEGATIVE,
            max_latency_ms=NOT_NEGATIVE,
            max_memory_mb=NOT_NEGATIVE,
            speedup=ABOVE_ONE,
        )


class Train(Record, tag_field="do", tag="train"):
    """Train the factory's model on `data.train`; the result is the source that everything is compared with."""

    training: Training = Training()


Method = Literal["logits", "dkd", "hint", "attention", "cosine", "mse"]
MixName = Literal["width", "even-width", "depth", "depth-then-width", "free"]
MIXES: tuple[MixName, ...] = ("width", "even-width", "depth", "depth-then-width", "free")
AUTO = "auto"
PLAN_SUFFIX = ".json"


class Distill(Record, tag_field="do", tag="distill"):
    """Train `student` (a ModelSpec; the present model when left out) on the outputs of `teacher` (default: the source).

    The loss is `soft_share` x the method's + the rest on the labels, if there are any; a loss or share that is named
    needs them. method: "logits" is the KL at `temperature` (Hinton 2015); "dkd" parts it into the target and the
    others, which count `beta` times (Zhao 2022); "hint" (Romero 2015) and "attention" (Zagoruyko 2017) add
    `feature_weight` x what pairs of `layers` (student's name = teacher's; matched by resolution or depth when left out)
    differ in; "cosine" and "mse" compare embeddings. In place of the KL stand the cosine under the metric "cosine", the
    squared difference under "mse" and "mae"; labels count there by a named loss alone. Further outputs that both have
    in one shape, lists of them in one length, are compared by relative squared difference, which counts
    `further_weight` times (0: not at all). The teacher may be an .onnx file.
    student = "auto": cut from the present model, by each of `mixes`, for goals as in `prune`; the fastest by
    measurement is trained, even where it misses a goal, which a note then tells. `locked`, `round_to`: as in `prune`.
    A path that ends in .json: the pruning plan that cuts it.
    """

    student: ModelSpec | str | None = None
    teacher: ModelSpec | None = None
    method: Method = "logits"
    temperature: float = 4.0
    soft_share: float = 0.9
    beta: float = 8.0
    feature_weight: float = 1.0
    further_weight: float = 1.0
    layers: dict[str, str] = {}
    training: Training = Training()
    speedup: float | None = None
    max_size_mb: float | None = None
    macs: float | None = None
    mixes: tuple[MixName, ...] = MIXES
    round_to: int = 16
    locked: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_bounds(self, "distill", temperature=POSITIVE, soft_share=SHARE, beta=NOT_NEGATIVE)
        check_bounds(self, "distill", feature_weight=NOT_NEGATIVE, further_weight=NOT_NEGATIVE, round_to=COUNT)
        if self.layers and self.method not in {"hint", "attention"}:
            raise RecipeError(f"`distill.layers` are not used by the method {self.method!r}")
        if self.teacher and (self.teacher.factory is None) == (self.teacher.onnx is None):
            raise RecipeError("`distill.teacher` needs exactly one of `factory` and `onnx`")
        if self.teacher and self.teacher.onnx and self.teacher.weights:
            raise RecipeError("`distill.teacher.weights` belongs to a `factory`; an .onnx file carries its own")
        if isinstance(self.student, ModelSpec) and self.student.onnx:
            raise RecipeError("`distill.student` is an .onnx file: only a teacher may be one")
        if isinstance(self.student, ModelSpec) and self.student.factory is None:
            raise RecipeError("`distill.student` needs a `factory`", next_step="say what builds it: module:function")
        if isinstance(self.student, str) and self.student != AUTO and not self.student.endswith(PLAN_SUFFIX):
            raise RecipeError(
                f"`distill.student` is {self.student!r}", next_step='say "auto", a plan\'s path (.json), or a table'
            )
        self._check_goals()

    def _check_goals(self) -> None:
        check_bounds(self, "distill", speedup=ABOVE_ONE, macs=ABOVE_ONE, max_size_mb=POSITIVE)
        given = [name for name in ("speedup", "max_size_mb", "macs") if getattr(self, name) is not None]
        if self.student == AUTO and not given:
            raise RecipeError('`distill.student` is "auto" without a goal', next_step="say how small: speedup = 3.0")
        if self.student == AUTO and not self.mixes:
            raise RecipeError(f"`distill.mixes` is empty, expected some of {', '.join(MIXES)}")
        if self.student != AUTO and given:
            raise RecipeError(f"`distill.{given[0]}` is for a student made here", next_step='say student = "auto"')


class Prune(Record, tag_field="do", tag="prune"):
    """Remove parts until every goal is reached, in `rounds` rounds of about equal ratio, retraining after each.

    speedup: latency falls to 1/`speedup`, by times measured on the first target where a device can judge it.
    max_size_mb: of the form that ships. macs: multiply-accumulates fall to 1/`macs`. At least one of the three.
    parts: "width" (channels), "depth" (whole blocks that keep their input's shape), "heads" (of attention).
    criterion: how importance is found; see `compression.criteria`. scope: all layers compete, or each gives alike.
    round_to: widths stay multiples of this. locked: names of layers or blocks that stay whole. distil: retrain against
    the source's outputs, by a method of `distill` if it is named.
    """

    speedup: float | None = None
    max_size_mb: float | None = None
    macs: float | None = None
    rounds: int = 1
    parts: tuple[Literal["width", "depth", "heads"], ...] = ("width",)
    criterion: Literal["l1", "l2", "bn_scale", "taylor", "group_norm", "random"] = "l2"
    scope: Literal["global", "per-layer"] = "global"
    round_to: int = 16
    locked: tuple[str, ...] = ()
    distil: bool | Method = True
    training: Training = Training()

    def __post_init__(self) -> None:
        above = {"speedup": ABOVE_ONE, "macs": ABOVE_ONE, "max_size_mb": POSITIVE}
        check_bounds(self, "prune", **above, rounds=COUNT, round_to=COUNT)
        if self.speedup is None and self.max_size_mb is None and self.macs is None:
            raise RecipeError("`prune` has no goal", next_step="say speedup = 2.0, max_size_mb = 0.5 or macs = 2.0")
        if not self.parts:
            raise RecipeError("`prune.parts` is empty, expected width, depth or heads")


class Quantize(Record, tag_field="do", tag="quantize"):
    """Int8 in the target's number format: `methods` in order until the gate holds, then the remedies for what failed.

    keep_float: nodes that stay in float whatever they cost; of one that was cut away, a note is left. improve:
    "if-needed" changes weights (equalization, bias correction, learned rounding) when plain int8 loses too much;
    "always" builds those forms too and takes the one that loses least; "never" leaves weights as they are.
    memory_limit_mb: what the process may hold while it calibrates; under a tight one samples are read several times.
    qat: "if-needed" trains weights for their integers, against the source's outputs, when all that loses too much and
    there are samples to train on (`data.train`, or a pool that another step trains on); "always" trains at once.
    training: how long and how. learn_steps: train scales too (LSQ); otherwise they follow the weights.
    """

    methods: tuple[Literal["minmax", "percentile", "entropy", "mse"], ...] = ("minmax", "percentile", "entropy", "mse")
    keep_float: tuple[str, ...] = ()
    improve: Literal["if-needed", "always", "never"] = "if-needed"
    memory_limit_mb: int | None = None
    qat: Literal["if-needed", "always", "never"] = "if-needed"
    training: Tuning = Tuning()
    learn_steps: bool = False

    def __post_init__(self) -> None:
        check_bounds(self, "quantize", memory_limit_mb=COUNT)
        if not self.methods:
            raise RecipeError("`quantize.methods` is empty, expected at least one method")


_SAMPLES = "give `data.train`; its samples may be without labels"
Step = Train | Distill | Prune | Quantize


class Recipe(Record):
    """A whole request. `folder` is where relative paths and "module:function" references are looked up."""

    model: ModelSpec
    data: DataSpec = DataSpec()
    preprocess: Preprocess | str | None = None
    limits: Limits = Limits()
    step: tuple[Step, ...] = ()
    folder: str = "."
    name: str = "model"

    def __post_init__(self) -> None:
        model = self.model
        if (model.factory is None) == (model.onnx is None):
            raise RecipeError("`model` needs exactly one of `factory` and `onnx`")
        if model.onnx and model.weights:
            raise RecipeError("`model.weights` belongs to `model.factory`; an .onnx file carries its own")
        if model.factory is not None and not model.inputs:
            raise RecipeError("`model.inputs` is missing", next_step="say e.g. inputs = { image = [1, 3, 32, 32] }")
        if model.factory is not None and (flat := [name for name, shape in model.shapes().items() if not shape]):
            raise RecipeError(f"`model.inputs.{flat[0]}` is [], expected a shape with the batch first")
        if model.onnx and any(not isinstance(step, Quantize) for step in self.step):
            raise RecipeError("an .onnx source can be quantized, not trained, distilled or pruned")
        _check_steps(self.step)
        if self.quantize and self.quantize.qat == "always" and not teaches(self):
            raise RecipeError('`quantize.qat` is "always", and there are no samples to train on', next_step=_SAMPLES)

    @property
    def quantize(self) -> Quantize | None:
        """The step that quantizes, if there is one: the last."""
        last = self.step[-1] if self.step else None
        return last if isinstance(last, Quantize) else None

    def resolve(self, reference: str) -> Path:
        """Return the absolute path that `reference` means, read from the recipe's folder."""
        return (Path(self.folder) / expand(reference)).resolve()


def teaches(recipe: Recipe) -> bool:
    """Whether a recipe has samples that int8 may be trained on: `data.train`, or a pool that another step trains on."""
    trains = any(not isinstance(step, Quantize) for step in recipe.step)
    return recipe.data.train is not None or (recipe.data.pool is not None and trains)


def _check_steps(steps: tuple[Step, ...]) -> None:
    for index, step in enumerate(steps):
        if isinstance(step, Quantize) and index != len(steps) - 1:
            raise RecipeError(f"step {index + 1} is `quantize`: it must be the last step")
        if isinstance(step, Train) and index != 0:
            raise RecipeError(f"step {index + 1} is `train`: it must be the first step")
        may_do_without = isinstance(step, Prune) or (isinstance(step, Quantize) and step.qat == "never")
        if not may_do_without and not step.training.asked:
            raise RecipeError(f"step {index + 1} trains for `training.epochs` = 0", next_step=HOW_LONG)


def load_recipe(path: Path) -> Recipe:
    """Read a recipe from TOML. Raises RecipeError with the file, the place and the next step."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path}: not readable as TOML: {error}") from error
    try:
        recipe = from_table(table, Recipe, origin=str(path))
    except RecipeError as error:
        if str(error).startswith(str(path)):
            raise
        raise RecipeError(f"{path}: {error}", next_step=error.next_step) from error
    folder = "." if "folder" not in table else recipe.folder
    return msgspec.structs.replace(
        recipe, folder=str((path.parent / folder).resolve()), name=recipe.name if "name" in table else path.stem
    )
