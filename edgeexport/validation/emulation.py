"""Emulation: does a file compute on the target's kind of CPU what it computes here, and with how many instructions?

The rule: what nobody ran is never said to agree. Outputs are compared with this machine's on the same samples, within
the tolerance of the file's goldens; counts are a cost, never a latency. On x86 without VNNI the reference comes from
kernels that do not saturate, so that a fault of this machine is not laid to the other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport import devices
from edgeexport.devices import emulated
from edgeexport.devices.emulated.counts import WARM_UPS
from edgeexport.devices.guest import root
from edgeexport.devices.guest.presets import PRESETS, Preset
from edgeexport.devices.protocol import Device, NoAnswer, feature_gap
from edgeexport.errors import DeviceError
from edgeexport.progress import Progress, silent
from edgeexport.records.device import DeviceFacts
from edgeexport.records.emulation import EmulatedRun, EmulationRecord
from edgeexport.records.parity import OutputParity
from edgeexport.records.target import Target
from edgeexport.runtimes.ort import EXACT_SUMS, UNFUSED
from edgeexport.validation.compare import compare_outputs
from edgeexport.validation.measure import Subject, run_on_device

if TYPE_CHECKING:
    from edgeexport.runtimes.protocol import Feeds, Outputs

# Counts of one process differ by a few hundred instructions.
COUNTED = 3
AT_ONCE = 2
EXACT_X86 = {EXACT_SUMS: "1"}  # onnxruntime refuses it for some files; UNFUSED: off by a rounding, never saturated
LARGEST_HALF = "65,504"
OLD_RUNTIME = "tflite_runtime"


def presets_for(target: Target) -> tuple[Preset, ...]:
    """Return the presets that have all features of a target and none that it lacks: for a generic one, weak and strong.

    Empty where no emulated CPU stands for the target, such as x86 with VNNI.
    """
    same = (preset for preset in PRESETS.values() if preset.arch == target.arch)
    return tuple(preset for preset in same if feature_gap(preset.features, target) == ([], []))


def validate_emulated(subject: Subject, target: Target, *, int8: bool, progress: Progress = silent) -> EmulationRecord:
    """Run a file on every preset that stands for its target and compare its outputs with those of this machine.

    subject: the file with real samples and `tolerance`, the largest |difference| of each output. int8: whether it is
    meant to compute in integers, so that a missed fast path is noted. Without an installation, or a preset for the
    target, the record has no runs and a note that says why; a preset that is too slow for the file has a note only.
    Raises MissingExtra when this machine lacks the runtime, CorruptFile when the installation was changed.
    """
    absent = not_validated(subject.digest, target)
    if absent is not None:
        return absent
    presets = presets_for(target)
    longer, reference = replace(subject, inputs=_cycled(subject)), _reference(subject, devices.get("local"))
    progress(f"emulate {', '.join(preset.name for preset in presets)}", None)

    def run(preset: Preset) -> EmulatedRun | str:
        try:
            return _run(longer, preset, reference=reference)
        except NoAnswer as error:
            return f"not validated there: {error}"

    with ThreadPoolExecutor(AT_ONCE) as pool:
        has_old = subject.runtime == "litert"
        old = pool.submit(_old_board, subject, presets[0], reference=reference) if has_old else None
        found = list(pool.map(run, presets))
        told = old.result() if old else ""
    runs = tuple(each for each in found if isinstance(each, EmulatedRun))
    late = [each for each in found if isinstance(each, str)]
    return _record(subject, target, runs=runs, notes=(*late, *_missed(runs, int8=int8), *([told] if told else [])))


def run_emulated(subject: Subject, preset: Preset) -> EmulatedRun:
    """Run a file on one emulated CPU with one thread, compare with its own goldens, and count where that is possible.

    Without goldens nothing is compared. Raises NoAnswer when it takes too long, MachineError and CorruptFile for the
    installation.
    """
    import numpy as np

    goldens = subject.goldens
    reference = {name: np.concatenate([np.ravel(each[name]) for each in goldens]) for name in (goldens or [{}])[0]}
    return _run(replace(subject, inputs=_cycled(subject), threads=1), preset, reference=reference)


def _cycled(subject: Subject) -> Sequence[Feeds]:
    """The samples in turn, as many as counting takes."""
    samples = subject.samples()
    return [samples[index % len(samples)] for index in range(max(len(samples), WARM_UPS + COUNTED))]


def _record(
    subject: Subject, target: Target, *, runs: tuple[EmulatedRun, ...], notes: tuple[str, ...]
) -> EmulationRecord:
    reason = "; ".join(f"{run.device}: {run.reason}" for run in runs if not run.holds)
    return EmulationRecord(target.name, subject.digest, holds=not reason, reason=reason, runs=runs, notes=notes)


def not_validated(artifact: str, target: Target) -> EmulationRecord | None:
    """Return the record of a file that cannot be run under emulation here, with the reason; None where it can."""
    presets, absent = presets_for(target), root.missing()
    if presets and not absent:
        return None
    why = f"run `{root.INSTALL}`" if presets else f"no emulated CPU stands for {target.name}"
    notes = (f"not validated under emulation: {why}",)
    return EmulationRecord(target.name, artifact, holds=True, notes=notes)


def saturates(facts: DeviceFacts) -> bool:
    """Return whether onnxruntime's 8-bit products saturate on a machine: x86 without VNNI."""
    return facts.arch == "x86_64" and not any(name.endswith("vnni") for name in facts.features)


def _reference(subject: Subject, here: Device) -> Outputs:
    """This machine's outputs, from kernels that are right here; where the exact ones refuse a file, from float ones."""
    if subject.runtime == "ort" and saturates(here.describe()):
        try:
            entries = {**subject.options.get("config_entries", {}), **EXACT_X86}
            return _outputs(replace(subject, options={**subject.options, "config_entries": entries}), here)
        except DeviceError:
            return _outputs(replace(subject, options={**subject.options, **UNFUSED}), here)
    return _outputs(subject, here)


def _run(subject: Subject, preset: Preset, *, reference: Outputs) -> EmulatedRun:
    machine = emulated.counting(preset.name)
    cpu = f"{preset.model}, emulated"
    try:
        outputs = _outputs(subject, machine)
    except NoAnswer:
        raise
    except DeviceError as error:
        return EmulatedRun(machine.name, cpu, machine.runtime_version, holds=False, reason=str(error).splitlines()[0])
    found = {name: values[: len(reference[name])] for name, values in outputs.items() if name in reference}
    figures = compare_outputs(reference, found)
    reasons = _differences(figures, found, subject=subject)
    return EmulatedRun(
        machine.name,
        cpu,
        machine.runtime_version,
        holds=not reasons,
        reason="; ".join(reasons) + (_half(found, preset) if reasons else ""),
        outputs=figures,
        counts=machine.counts,
        counts_missing=emulated.counts_missing(preset),
    )


def _differences(figures: Iterable[OutputParity], found: Outputs, *, subject: Subject) -> list[str]:
    """Say of each output by how much more than its tolerance it differs."""
    reasons = []
    for figure in figures:
        if figure.output not in found:
            reasons.append(f"output {figure.output!r} is missing")
            continue
        values, allowed = found[figure.output], subject.tolerance.get(figure.output, 0.0)
        if bad := _not_finite(values):
            reasons.append(f"output {figure.output!r}: {bad} of {values.size} values are NaN or Inf")
        elif not figure.max_abs_error <= allowed:
            reasons.append(f"output {figure.output!r} differs by {figure.max_abs_error:.4g}, allowed {allowed:.4g}")
    return reasons


def _half(found: Outputs, preset: Preset) -> str:
    """Name the likely cause where a CPU that computes fp16 in fp16 has no finite outputs."""
    if "asimdhp" not in preset.features or not any(map(_not_finite, found.values())):
        return ""
    return (
        f" (from Armv8.2 on fp16 is computed in fp16, and numbers above {LARGEST_HALF} overflow; Armv8.0 and x86 "
        "compute it in fp32: keep the layers in float32 where numbers are as large)"
    )


def _not_finite(values: Any) -> int:
    import numpy as np

    return int(np.count_nonzero(~np.isfinite(values)))


def _missed(runs: Iterable[EmulatedRun], *, int8: bool) -> list[str]:
    """Note where an int8 file makes no use of the dot products that a CPU has."""
    able = [
        run for run in runs if run.counts is not None and "asimddp" in PRESETS[run.device.partition(":")[2]].features
    ]
    return [
        f"{run.device}: int8 uses no dot products: the fast path was missed"
        for run in able
        if int8 and run.counts is not None and not run.counts.dot_product
    ]


def _old_board(subject: Subject, preset: Preset, *, reference: Outputs) -> str:
    """Say what tflite-runtime 2.14, the last one of old boards, makes of a file: a note, never a gate."""
    if preset.arch != "aarch64":
        return ""
    machine = emulated.machine(preset.name)
    old = replace(subject, runtime=OLD_RUNTIME)
    told = f"{root.LEGACY[0].replace('==', ' ')} on {machine.name}"
    try:
        found = _outputs(old, machine)
    except DeviceError as error:
        return f"{told} does not run it: {str(error).splitlines()[0]}"
    figures = compare_outputs(reference, found)
    reasons = _differences(figures, found, subject=subject)
    worst = max(figure.max_abs_error for figure in figures)
    return f"{told} runs it, but {'; '.join(reasons)}" if reasons else f"{told} agrees (off by at most {worst:.4g})"


def _outputs(subject: Subject, device: Device) -> Outputs:
    """All samples of each output in one row. A TFLite tensor has several names: those of `tolerance` count."""
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="edgeexport-emulation-") as folder:
        every = run_on_device(subject, device=device, folder=Path(folder))
    names = [name for name in every[0] if name in subject.tolerance or not subject.tolerance]
    return {name: np.concatenate([np.ravel(outputs[name]) for outputs in every]) for name in names}
