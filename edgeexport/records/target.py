"""Target: one place to run, and its bar. A target is data: a new phone is a new TOML file under `targets/`.

The rule: number formats, tolerances and budgets live here, never in code.
"""

from __future__ import annotations

import importlib.resources
import re
import tomllib
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

from edgeexport.errors import RecipeError
from edgeexport.records.base import Record, from_table
from edgeexport.records.bounds import COUNT, check_bounds
from edgeexport.records.recipe import Limits

Arch = Literal["x86_64", "aarch64"]


class NumberFormat(Record):
    """How int8 is written for a target: types, symmetry, weight granularity, and what keeps 16-bit sums from overflow.

    reduce_range: weights of 7 bits. fit_pairs: of 8 bits, those that one 16-bit sum adds together at most 128.
    float_sums: a pointwise convolution whose result is read in float writes its sums as floats, not rounded to 8 bits.
    """

    activations: Literal["uint8", "int8"]
    weights: Literal["int8"] = "int8"
    per_channel: bool = True
    symmetric_activations: bool = False
    reduce_range: bool = False
    fit_pairs: bool = False
    float_sums: bool = False


class Tolerance(Record):
    """How far a rung may differ from the one below it before its gate fails.

    float_error: largest |difference| / largest |reference| between float rungs.
    int8_sqnr_db: least signal-to-quantization-noise ratio, in dB, of int8 outputs against float.
    convert_sqnr_db: the same between a converted int8 file and the int8 ONNX it stands for.
    golden_steps: largest difference of golden outputs when a bundle is verified elsewhere, in quantization steps of
        the output (int8) or in units of `float_error` (float).
    """

    float_error: float = 1e-3
    int8_sqnr_db: float = 10.0
    convert_sqnr_db: float = 10.0
    golden_steps: float = 4.0


class TargetLimits(Limits):
    """A target's bars. `max_drop`, in points, is for recipes that give none and metrics in points; unsaid, it is 1."""

    max_drop: float | None = 1.0


class Target(Record):
    """One place to run: a runtime and file format on a CPU with known features.

    name: names the bundle's file too, so letters, digits, ".", "_" and "-" only, a letter or digit first.
    lacks: features that would choose other kernels; a machine that has them is not asked for this target's figures.
    """

    name: str
    title: str
    runtime: str
    format: Literal["onnx", "ort", "tflite"]
    arch: Arch
    os: str = "linux"
    features: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    number_format: NumberFormat | None = None
    io: Literal["float32", "int8"] = "float32"
    threads: int = 1
    limits: TargetLimits = TargetLimits()
    tolerance: Tolerance = Tolerance()
    floor: str = ""
    notes: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise RecipeError(
                f"`name` of the target is {self.name!r}",
                next_step='use letters, digits, ".", "_" and "-", a letter or digit first',
            )
        check_bounds(self, "target", threads=COUNT)

    def numbers(self) -> NumberFormat:
        """Return the declared number format, or the one that this CPU's integer kernels need.

        | CPU | activations | weights | why |
        |---|---|---|---|
        | x86 with VNNI | uint8 | int8, 8 bits | VNNI multiplies unsigned by signed, and adds in 32 bits |
        | x86 without | uint8 | int8, fitted pairs | `vpmaddubsw` adds pairs in 16 bits: only 255 · 128 fits |
        | arm64 | int8 | int8, 8 bits | SDOT and SMLAL multiply signed by signed, and add in 32 bits |

        Weights have a scale per output channel and are symmetric: their zero points cost nothing. Activations are
        asymmetric: kernels fold their zero point into the bias, and a range after ReLU keeps all its steps. Unsigned
        weights per channel, which run many times slower than float, cannot be said. Where onnxruntime runs on x86,
        pointwise convolutions write sums as floats for whoever reads them so (`ort_kernels`).
        """
        if self.number_format is not None:
            return self.number_format
        if self.arch == "aarch64":
            return NumberFormat(activations="int8")
        vnni = any(name.endswith("vnni") for name in self.features)
        return NumberFormat(activations="uint8", fit_pairs=not vnni, float_sums=self.runtime == "ort")


def computes_half(target: Target) -> bool:
    """Say whether onnxruntime computes fp16 in fp16 there: Armv8.2 with half-precision SIMD. Others go through fp32."""
    return target.runtime == "ort" and target.arch == "aarch64" and "asimdhp" in target.features


def facts(folder: str) -> Traversable:
    """Return the fact folder `targets`, `calibration` or `device_bench`: in the package, or beside it in a clone."""
    inside = importlib.resources.files("edgeexport") / folder
    return inside if inside.is_dir() else Path(__file__).parents[2] / folder


def target_names() -> list[str]:
    """Return the names of all targets that come with edgeexport, sorted."""
    files = (entry.name for entry in facts("targets").iterdir())
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def load_target(reference: str) -> Target:
    """Read a target by name, or from the path of a TOML file. Raises RecipeError."""
    if reference.endswith(".toml"):
        source: Traversable = Path(reference)
    elif reference in target_names():
        source = facts("targets") / f"{reference}.toml"
    else:
        raise RecipeError(f"no target {reference!r}", next_step="known: " + ", ".join(target_names()))
    try:
        table = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{reference}: not readable as TOML: {error}") from error
    table.setdefault("name", source.name.removesuffix(".toml"))
    return from_table(table, Target, origin=reference)
