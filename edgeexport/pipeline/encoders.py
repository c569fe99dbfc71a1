"""Forms for linear layers: the static, dynamic and blockwise int8 of encoders, chosen by numbers; and float16.

The rule: every form that can be made is made once and compared with float on calibration samples; they are tried in the
order that these numbers give, and each row says why it stands where it does.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgeexport import quantization, ranks, runtimes
from edgeexport.errors import DataError, DeviceError, EdgeExportError, ModelError
from edgeexport.pipeline.forms import PACKAGES, reduced_parity
from edgeexport.pipeline.lower import INT8, Built, Form, Lane, calibration_feeds
from edgeexport.pipeline.timing import MODE, Ready, device_for, lasting, ratio
from edgeexport.pipeline.torch_rungs import TorchRung
from edgeexport.quantization import LinearForm
from edgeexport.records.artifact import Artifact
from edgeexport.records.base import file_digest
from edgeexport.records.encoder import FormChoice, FormTrial
from edgeexport.records.recipe import Quantize
from edgeexport.records.stages import Quantized
from edgeexport.records.target import computes_half
from edgeexport.runtimes.protocol import Conversion
from edgeexport.workspace import Stage, versions

if TYPE_CHECKING:
    from edgeexport.devices.protocol import Device
    from edgeexport.runtimes.protocol import Feeds

RUNTIME = "ort"
# Enough to find outlier channels by, and few enough to keep at once.
SAMPLES = 64
# What transformers have between their linear layers and convolutional networks do not.
NORMALIZATION = "LayerNormalization"


def is_encoder(rung: TorchRung) -> bool:
    """Whether a rung's spine normalizes over features, as transformers do: plain static int8 fails such networks."""
    return NORMALIZATION in rung.spine.record.operators


def first_linear(lane: Lane, rung: TorchRung, *, step: Quantize) -> LinearForm | None:
    """Return the form of linear layers that the ladder begins with; None where it begins with the static form of all.

    An encoder that is trained for its integers in any case begins with the best static form of its linear layers.
    """
    if lane.target.runtime != RUNTIME or not is_encoder(rung):
        return None
    try:
        trials = form_choice(lane, rung).record.trials
    except (ModelError, DataError):
        return None
    able = trials if step.qat != "always" else [trial for trial in trials if trial.form == "static"]
    return LinearForm(able[0].form, able[0].rewritings) if able else LinearForm("static")


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
        half = quantization.to_half(rung.path, calibration_feeds(lane.road, rung), out=out)
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
    """Make every form, as one stage; order them by their times beside fp32 where a device may judge the target."""
    road, numbers = lane.road, lane.target.numbers()

    def make(folder: Path) -> FormChoice:
        road.progress(f"try int8 forms of {rung.name}'s linear layers", None)
        feeds = first_feeds(lane, rung, count=SAMPLES)
        return quantization.choose_encoder_form(rung.path, feeds, numbers=numbers, folder=folder, progress=road.detail)

    key = {
        "spine": rung.spine.record.artifact.digest,
        "numbers": msgspec.to_builtins(numbers),
        "samples": SAMPLES,
        "versions": versions(*PACKAGES),
        **_data(lane),
    }
    return _by_time(lane, rung, made=road.workspace.stage("encoder", key=key, make=make, kind=FormChoice))


def _by_time(lane: Lane, rung: TorchRung, *, made: Stage[FormChoice]) -> Stage[FormChoice]:
    """Order forms by what they take on the device; an invalid measurement is not kept for the next run."""
    machine, _ = device_for(lane.target, lane.device)
    if machine is None:
        return made

    def make(folder: Path) -> FormChoice:
        timed = _timer(lane, rung, machine=machine, folder=folder)
        return quantization.time_encoder_forms(
            made.record, folder=made.folder, timed=timed, progress=lane.road.progress
        )

    key = {
        "forms": made.key,
        "runs": [lane.target.format, lane.target.threads],
        "device": lasting(machine.describe()),
        "mode": MODE,
        "versions": versions(*PACKAGES),
    }
    stage = lane.road.workspace.stage("encoder times", key=key, make=make, kind=FormChoice)
    # Under `torchrun` others may be about to read it.
    if stage.record.untimed and ranks.count() == 1:
        lane.road.workspace.forget(stage)
    return replace(stage, folder=made.folder)


def _timer(lane: Lane, rung: TorchRung, *, machine: Device, folder: Path) -> Callable[[Path], float | str]:
    """Return what measures a form beside fp32, each as it runs on the target: a share of fp32's time, or why not."""
    feeds = list(lane.road.parity_feeds(rung.spine.record.signature))
    spine = rung.path

    def ready(quantized: Path | None) -> Ready:
        samples = lambda: calibration_feeds(lane.road, rung)  # noqa: E731
        out = folder / f"timed-{quantized.stem if quantized else 'fp32'}.{lane.target.format}"
        made = runtimes.get(RUNTIME).convert(Conversion(spine, quantized, None, None, samples, lane.target), out)
        return Ready(out, made.session_options)

    def timed(path: Path) -> float | str:
        files = [ready(None), ready(path)]
        try:
            return ratio(lane.road, lane.target, files=files, feeds=feeds, machine=machine)
        except DeviceError as error:
            return str(error)
        finally:
            for file in files:
                file.path.unlink()

    return timed


def first_feeds(lane: Lane, rung: TorchRung, *, count: int) -> list[Feeds]:
    """Return the first calibration samples, at most `count`, in the spine's signature."""
    return list(itertools.islice(calibration_feeds(lane.road, rung), count))


def _building(lane: Lane, rung: TorchRung, *, choice: Stage[FormChoice], trial: FormTrial) -> Callable[[], Built]:
    def make(folder: Path) -> Quantized:
        shutil.copyfile(choice.folder / trial.path, folder / INT8)
        maker = " ".join(["quantize", trial.form, *trial.rewritings])
        return compared(lane, rung, folder=folder, maker=maker, notes=(choice.record.reason,))

    def build() -> Built:
        told = choice.record.reason
        key = {"choice": choice.key, "trial": trial.path, "told": told, "tolerance": lane.target.tolerance.int8_sqnr_db}
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
