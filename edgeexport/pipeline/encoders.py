"""Forms for linear layers: the static, dynamic and blockwise int8 of encoders, chosen by numbers; and float16.

The rule: every form that can be made is made once and compared with float on calibration samples; they are tried in the
order that these numbers give, and each row says why it stands where it does.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgeexport import quantization
from edgeexport.errors import DataError, EdgeExportError, ModelError
from edgeexport.pipeline.forms import PACKAGES, reduced_parity, spine_path
from edgeexport.pipeline.lower import INT8, Built, Form, Lane, calibration_feeds
from edgeexport.pipeline.torch_rungs import TorchRung
from edgeexport.records.artifact import Artifact
from edgeexport.records.base import file_digest
from edgeexport.records.encoder import FormChoice, FormTrial
from edgeexport.records.stages import Quantized
from edgeexport.records.target import computes_half
from edgeexport.workspace import Stage, versions

if TYPE_CHECKING:
    from edgeexport.runtimes.protocol import Feeds

RUNTIME = "ort"
# Enough to find outlier channels by, and few enough to keep at once.
SAMPLES = 64
# What transformers have between their linear layers and convolutional networks do not.
NORMALIZATION = "LayerNormalization"


def is_encoder(rung: TorchRung) -> bool:
    """Whether a rung's spine normalizes over features, as transformers do: plain static int8 fails such networks."""
    return NORMALIZATION in rung.spine.record.operators


def linear_forms(lane: Lane, rung: TorchRung) -> Iterator[Form]:
    """Yield the int8 forms of a network's linear layers, best first; one that says why when there is none."""
    if lane.target.runtime != RUNTIME:
        return
    try:
        choice = form_choice(lane, rung)
    except (ModelError, DataError) as error:
        yield Form(f"{rung.name} int8 linear layers", rung, _failing(error))
        return
    for trial in choice.record.trials:
        name = " ".join([f"{rung.name} int8 {trial.form}", *trial.rewritings])
        yield Form(name, rung, _building(lane, rung, choice=choice, trial=trial))


def half_form(lane: Lane, rung: TorchRung) -> Iterator[Form]:
    """Yield the float16 form where the target computes it; elsewhere it would be converted back and gain nothing."""
    if lane.target.runtime != RUNTIME or not computes_half(lane.target):
        return

    def make(folder: Path) -> Quantized:
        out = folder / INT8
        half = quantization.to_half(spine_path(rung), calibration_feeds(lane.road, rung), out=out)
        told = f"{half.tensor!r} reaches {half.largest:.4g}, float16 holds {half.headroom:.3g} times that"
        return compared(lane, rung, folder=folder, maker="to float16", notes=(told,))

    def build() -> Built:
        key = {
            "half": rung.spine.record.artifact.digest,
            "tolerance": lane.target.tolerance.int8_sqnr_db,
            "versions": versions(*PACKAGES),
            **_data(lane),
        }
        return Built(rung, lane.road.workspace.stage("half", key=key, make=make, kind=Quantized))

    yield Form(f"{rung.name} fp16", rung, build)


def _failing(error: EdgeExportError) -> Callable[[], Built]:
    def build() -> Built:
        raise error

    return build


def form_choice(lane: Lane, rung: TorchRung) -> Stage[FormChoice]:
    """Make every form and order them, as one stage."""
    road, numbers = lane.road, lane.target.numbers()

    def make(folder: Path) -> FormChoice:
        road.progress(f"try int8 forms of {rung.name}'s linear layers", None)
        feeds = first_feeds(lane, rung, count=SAMPLES)
        return quantization.choose_encoder_form(
            spine_path(rung), feeds, numbers=numbers, folder=folder, progress=road.detail
        )

    key = {
        "spine": rung.spine.record.artifact.digest,
        "numbers": msgspec.to_builtins(numbers),
        "samples": SAMPLES,
        "versions": versions(*PACKAGES),
        **_data(lane),
    }
    return road.workspace.stage("encoder", key=key, make=make, kind=FormChoice)


def first_feeds(lane: Lane, rung: TorchRung, *, count: int) -> list[Feeds]:
    """Return the first calibration samples, at most `count`, in the spine's signature."""
    return list(itertools.islice(calibration_feeds(lane.road, rung), count))


def _building(lane: Lane, rung: TorchRung, *, choice: Stage[FormChoice], trial: FormTrial) -> Callable[[], Built]:
    def make(folder: Path) -> Quantized:
        shutil.copyfile(choice.folder / trial.path, folder / INT8)
        maker = " ".join(["quantize", trial.form, *trial.rewritings])
        return compared(lane, rung, folder=folder, maker=maker, notes=(choice.record.reason,))

    def build() -> Built:
        key = {"choice": choice.key, "trial": trial.path, "tolerance": lane.target.tolerance.int8_sqnr_db}
        return Built(rung, lane.road.workspace.stage("quantize", key=key, make=make, kind=Quantized))

    return build


def compared(lane: Lane, rung: TorchRung, *, folder: Path, maker: str, notes: tuple[str, ...]) -> Quantized:
    """The record of a file that was written to `folder`, compared with the rung."""
    out = folder / INT8
    digest = rung.spine.record.artifact.digest
    artifact = Artifact(INT8, "onnx", file_digest(out), out.stat().st_size, digest, maker)
    parity = reduced_parity(lane.road, rung, out=out, sqnr_db=lane.target.tolerance.int8_sqnr_db, of=rung)
    return Quantized(artifact, None, None, parity, notes)


def _data(lane: Lane) -> dict[str, object]:
    return lane.road.data_key("calibration")
