"""Which int8 form suits an encoder: every form is made and compared with float on samples; numbers decide.

The rule: no form is taken on trust. Plain static int8 of a transformer fails without an error (cosine 0.37 on MiniLM);
smoothed, with its giant channels split off, it holds. A form that cannot be made leaves its reason.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from edgeexport.errors import DataError, ModelError
from edgeexport.progress import Progress, silent
from edgeexport.quantization.blockwise import quantize_blockwise
from edgeexport.quantization.calibrate import calibrate
from edgeexport.quantization.integer import keep_encoder_float, quantize_dynamic, quantize_static_encoder
from edgeexport.quantization.outliers import split_outliers
from edgeexport.quantization.plan import plan_quantization
from edgeexport.quantization.smooth import smooth
from edgeexport.records.base import file_digest
from edgeexport.records.encoder import EncoderForm, FormChoice, FormTrial
from edgeexport.records.target import NumberFormat
from edgeexport.runtimes.ort import open_session
from edgeexport.validation.compare import compare_sessions

if TYPE_CHECKING:
    from edgeexport.runtimes.protocol import Feeds

ENOUGH = 0.998
# Shares of fp32's time that differ by less are not told apart: then the nearer to float goes first.
ALIKE = 0.05
REWRITINGS = ("smoothed", "outliers split")
# The float model after both, beside the trials.
SPLIT = "split.onnx"


class LinearForm(NamedTuple):
    """A form of linear layers: how they multiply, and what is done to the float model before."""

    form: EncoderForm
    rewritings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spines:
    """The float model as it came, smoothed, and smoothed with its outliers split: what forms are made from."""

    plain: Path
    smoothed: Path
    split: Path


def encoder_spines(model_path: Path, samples: Sequence[Feeds], *, folder: Path) -> Spines:
    """Write the two rewritings of the float model into `folder`. samples: calibration feeds."""
    smoothed, split = folder / "smoothed.onnx", folder / SPLIT
    smooth(model_path, samples, out=smoothed)
    split_outliers(smoothed, samples, out=split)
    return Spines(model_path, smoothed, split)


def static_encoder(model_path: Path, samples: Sequence[Feeds], *, numbers: NumberFormat, out: Path) -> None:
    """Calibrate (min-max), plan and write the static form of a float model in one go."""
    unsigned = msgspec.structs.replace(numbers, activations="uint8", symmetric_activations=False)
    ranges = calibrate(model_path, samples, samples_digest="")
    plan = plan_quantization(model_path, ranges, numbers=unsigned, keep_float=keep_encoder_float(model_path))
    quantize_static_encoder(model_path, plan, out=out)


def choose_encoder_form(
    model_path: Path,
    samples: Sequence[Feeds],
    *,
    numbers: NumberFormat,
    folder: Path,
    timed: Callable[[Path], float | str] | None = None,
    progress: Progress = silent,
) -> FormChoice:
    """Make every form of an encoder in `folder`, compare each with float, and order them.

    samples: at least two feeds; one half calibrates, the other compares. timed: returns a file's time as a share of
    fp32's, or why there is none; it is asked of forms that hold. Order: forms with a cosine of at least ENOUGH first,
    by time in steps of ALIKE (where one was not measured: blockwise last) and then by cosine; then the rest by cosine.
    Raises DataError, and ModelError for no form at all.
    """
    if len(samples) < 2:
        raise DataError(f"{len(samples)} samples cannot both calibrate and compare", next_step="give at least two")
    seen, judged = samples[::2], samples[1::2]
    spines = encoder_spines(model_path, seen, folder=folder)
    trials: list[FormTrial] = []
    failed: dict[str, str] = {}
    for form, rewritings, source in _forms(spines):
        name = "-".join([form, *(word.replace(" ", "-") for word in rewritings)])
        progress(f"try {name}", None)
        out = folder / f"{name}.onnx"
        try:
            _make(form, source, out=out, samples=seen, numbers=numbers)
        except ModelError as error:
            failed[name] = str(error)
            continue
        trial = _trial(model_path, out, samples=judged, form=form)
        trials.append(msgspec.structs.replace(trial, rewritings=rewritings))
    if not trials:
        raise ModelError(f"no int8 form can be made of {model_path.name}: {list(failed.values())[-1]}")
    ordered = tuple(sorted(trials, key=_rank))
    choice = FormChoice(file_digest(model_path), len(judged), ordered, explain(ordered), failed)
    return choice if timed is None else time_encoder_forms(choice, folder=folder, timed=timed, progress=progress)


def quantize_encoder(
    model_path: Path, samples: Sequence[Feeds], *, how: LinearForm, numbers: NumberFormat, out: Path
) -> None:
    """Write one form of an encoder, the same file that `choose_encoder_form` makes of these samples.

    Raises ModelError where nothing can be quantized.
    """
    seen = samples[::2]
    with tempfile.TemporaryDirectory(prefix="edgeexport-encoder-") as folder:
        plain = Spines(model_path, model_path, model_path)
        spines = encoder_spines(model_path, seen, folder=Path(folder)) if how.rewritings else plain
        source = next(source for *known, source in _forms(spines) if tuple(known) == how)
        _make(how.form, source, out=out, samples=seen, numbers=numbers)


def time_encoder_forms(
    choice: FormChoice, *, folder: Path, timed: Callable[[Path], float | str], progress: Progress = silent
) -> FormChoice:
    """Return the choice ordered by the times of the forms in `folder` that hold; `timed` as in `choose_encoder_form`.

    Where one of them has none, the order stays, and `untimed` says why.
    """
    shares: dict[str, float] = {}
    untimed: dict[str, str] = {}
    holding = [trial.path for trial in choice.trials if trial.cosine >= ENOUGH]
    for index, path in enumerate(holding):
        progress(f"time {path}", index / len(holding))
        share = timed(folder / path)
        if isinstance(share, str):
            untimed[path] = share
        else:
            shares[path] = share
    if untimed:
        return msgspec.structs.replace(choice, untimed=untimed)
    trials = [msgspec.structs.replace(trial, time_ratio=shares.get(trial.path)) for trial in choice.trials]
    ordered = tuple(sorted(trials, key=_rank))
    return msgspec.structs.replace(choice, trials=ordered, reason=explain(ordered))


def explain(trials: Sequence[FormTrial]) -> str:
    """Say in one sentence why the first of these was taken, and what the others lost."""
    first, *rest = trials
    words = f"{_words(first)}: cosine {first.cosine:.4f} to float"
    words += f"{_at(first)} of its time" if first.time_ratio is not None else ""
    lost = [f"{_words(trial)} {trial.cosine:.4f}{_at(trial)}" for trial in rest]
    return f"{words}; others: {', '.join(lost)}" if lost else words


def _forms(spines: Spines) -> list[tuple[EncoderForm, tuple[str, ...], Path]]:
    return [
        ("static", REWRITINGS, spines.split),
        ("static", (), spines.plain),
        ("dynamic", REWRITINGS, spines.split),
        ("dynamic", REWRITINGS[:1], spines.smoothed),
        ("dynamic", (), spines.plain),
        ("blockwise", (), spines.plain),
    ]


def _make(form: EncoderForm, source: Path, *, out: Path, samples: Sequence[Feeds], numbers: NumberFormat) -> None:
    if form == "static":
        static_encoder(source, samples, numbers=numbers, out=out)
    elif form == "dynamic":
        quantize_dynamic(source, out=out, numbers=numbers)
    else:
        quantize_blockwise(source, out=out)


def _trial(model_path: Path, out: Path, *, samples: Sequence[Feeds], form: EncoderForm) -> FormTrial:
    digests = (file_digest(model_path), file_digest(out))
    runs = (open_session(model_path).run, open_session(out).run)
    parity = compare_sessions(*runs, samples=samples, artifacts=digests, sqnr_db=0.0)
    return FormTrial(
        form=form,
        rewritings=(),
        cosine=min(output.cosine for output in parity.outputs),
        sqnr_db=parity.worst_sqnr_db(),
        bytes=out.stat().st_size,
        path=out.name,
    )


def _rank(trial: FormTrial) -> tuple[bool, float, float]:
    usual = {"static": 1.0, "dynamic": 1.0, "blockwise": 2.0}[trial.form]
    cost = round(trial.time_ratio / ALIKE) if trial.time_ratio is not None else usual
    short = trial.cosine < ENOUGH
    return (short, -trial.cosine, cost) if short else (short, cost, -trial.cosine)


def _at(trial: FormTrial) -> str:
    return "" if trial.time_ratio is None else f" at {trial.time_ratio:.2f}"


def _words(trial: FormTrial) -> str:
    return f"{trial.form} int8" + (f" ({', '.join(trial.rewritings)})" if trial.rewritings else "")
