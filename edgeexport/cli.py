"""The command line: each verb reads its arguments, calls one function, and hands the record to `report`.

The rule: results go to stdout, talk and progress (and whatever user code prints) to stderr. This module is the one
place where an exception becomes a message and an exit code; nothing here knows how the work is done. Nothing heavy is
imported before a verb needs it.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgeexport import __version__, ranks
from edgeexport.errors import CheckFailed, EdgeExportError, NoSpace, RequestError
from edgeexport.progress import silent

if TYPE_CHECKING:
    from edgeexport.records.run import RunRecord

BUG_EXIT_CODE = 70
INTERRUPTED_EXIT_CODE = 130
F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print the record as JSON on stdout.")
target_option = click.option(
    "--target", "targets", multiple=True, required=True, help="A target's name, or the path of its TOML. Repeatable."
)
some_targets_option = click.option(
    "--target", "targets", multiple=True, help="A target's name, or the path of its TOML. Repeatable."
)
workspace_option = click.option(
    "--workspace",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="EDGEEXPORT_WORKSPACE",
    default=Path(".edgeexport"),
    show_default=True,
    help="Where stage results are kept.",
)
proof_option = click.option("--require-proof", is_flag=True, help="Ship nothing that is unproven; exit 1.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgeexport")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")  # read in `main`
def commands() -> None:
    """Turn a trained PyTorch or ONNX model into small, fast, checked bundles for phones and edge boxes."""


@commands.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("edgeexport-demo"))
@json_option
def demo(out: Path, as_json: bool) -> None:
    """Run the whole road on the embedded handwritten digits, about a minute."""
    from edgeexport.demo import run_demo
    from edgeexport.terminal import Display

    with Display() as display, redirect_stdout(sys.stderr):
        record = run_demo(out, progress=display)
    _finish(record, out, as_json=as_json)


@commands.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@target_option
@click.option("--device", help="Where to measure: `local` (the default), `ssh://USER@HOST`, `adb://SERIAL`, or `none`.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("edgeexport-out"), show_default=True
)
@workspace_option
@proof_option
@json_option
def run(recipe: Path, out: Path, *, as_json: bool, **choices: Any) -> None:
    """Take RECIPE down the whole road: ladder, gates, one verified bundle per target."""
    from edgeexport.pipeline import run as run_pipeline
    from edgeexport.records.recipe import load_recipe
    from edgeexport.terminal import Display

    with Display() as display, redirect_stdout(sys.stderr):
        progress = display if ranks.first() else silent
        record = run_pipeline(load_recipe(recipe), out=out, progress=progress, **choices)
    if ranks.first():
        _finish(record, out, as_json=as_json)


@commands.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--target", required=True, help="A target's name, or the path of its TOML.")
@click.option("--max-drop", type=float, help="What may be lost, in the metric's unit; else the recipe's or target's.")
@click.option("--speedup", type=float, help="How many times faster than the fp32 source it must become.")
@click.option("--max-size-mb", type=float, help="How large the model file may be.")
@click.option(
    "--budget",
    default="30m",
    show_default=True,
    help="Time for training students: 90m, 1.5h. Cutting, measuring and the final run come on top.",
)
@click.option("--device", help="Where to measure, as in `run`.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("edgeexport-out"), show_default=True
)
@workspace_option
@json_option
def shrink(recipe: Path, out: Path, *, budget: str, as_json: bool, **choices: Any) -> None:
    """Search for the best model within limits: cut students from RECIPE's network, train the best, ship one."""
    from edgeexport.records.recipe import Limits, load_recipe
    from edgeexport.search import minutes
    from edgeexport.search import shrink as search
    from edgeexport.search.leftovers import apart
    from edgeexport.terminal import Display, show_shrink

    apart([recipe], out=out)
    asked = {name: choices.pop(name) for name in ("max_drop", "max_size_mb", "speedup")}
    with Display() as display, redirect_stdout(sys.stderr):
        limits, time = Limits(**asked), minutes(budget)
        found = search(load_recipe(recipe), limits=limits, budget_minutes=time, out=out, progress=display, **choices)
    show_shrink(found, out, as_json=as_json)
    if not found.feasible:
        failure = CheckFailed(f"{found.outcome}: {'; '.join(found.explanation)}")
        failure.exit_code = found.exit_code
        raise failure


@commands.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@some_targets_option
@json_option
def explain(recipe: Path, targets: tuple[str, ...], *, as_json: bool) -> None:
    """Show every value in force for RECIPE, and on each target; nothing is run, user code is not imported."""
    from edgeexport.explain import explanation
    from edgeexport.records.recipe import load_recipe
    from edgeexport.terminal import show_explanation

    show_explanation(explanation(load_recipe(recipe), targets), as_json=as_json)


@commands.command()
@json_option
def targets(as_json: bool) -> None:
    """List the targets that come with edgeexport."""
    from edgeexport.records.target import load_target, target_names
    from edgeexport.terminal import show_targets

    show_targets([load_target(name) for name in target_names()], as_json=as_json)


@commands.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@json_option
def verify(bundle: Path, as_json: bool) -> None:
    """Check that BUNDLE is what was packed; exit 1 with the list of differences when it is not."""
    from edgeexport.bundles.verify import verify as verify_bundle
    from edgeexport.terminal import show_verification

    verification = verify_bundle(bundle)
    show_verification(verification, as_json=as_json)
    if not verification.holds:
        raise CheckFailed(f"{bundle} is not what was packed: {len(verification.differences)} difference(s)")


@commands.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what this machine can build, run and judge, and the one command that adds the rest."""
    from edgeexport.explain import diagnosis
    from edgeexport.terminal import show_diagnosis

    show_diagnosis(diagnosis(), as_json=as_json)


@commands.group(invoke_without_command=True)
@json_option
@click.pass_context
def devices(context: click.Context, as_json: bool) -> None:
    """List the devices that can run a model from here, and why the others cannot."""
    from edgeexport.devices import available
    from edgeexport.terminal import show_devices

    if context.invoked_subcommand is None:
        show_devices(available(), as_json=as_json)


@devices.command()
@click.argument("device", type=click.Choice(["emulated", "browser"]))
@click.option("--again", is_flag=True, help="Build it anew even if it is there.")
def install(device: str, *, again: bool) -> None:
    """Install DEVICE in this user's cache folder: emulated Arm CPUs with their runtimes, or onnxruntime-web (npm)."""
    from edgeexport.terminal import Display

    if device == "browser":
        from edgeexport.devices.browser.package import install as build
    else:
        from edgeexport.devices.guest.install import install as build
    with Display() as display, redirect_stdout(sys.stderr):
        folder = build(again=again, progress=display)
    click.echo(f"{device}  {folder}")


@commands.command()
@click.argument("model", type=click.Path(path_type=Path))
@workspace_option
@some_targets_option
@click.option("--input", "shapes", multiple=True, help="NAME=1,3,224,224: sizes that the file leaves free. Repeatable.")
@json_option
def inspect(model: Path, targets: tuple[str, ...], *, shapes: tuple[str, ...], workspace: Path, as_json: bool) -> None:
    """Show what MODEL (.onnx, or a bundle with one) holds, and what will not run or not fuse on each target, and why.

    For a recipe (.toml): what is wrong with its calibration samples, and whether there are enough of them.
    """
    if model.suffix == ".toml":
        if targets or shapes:
            raise RequestError(f"{model}: of a recipe the samples are checked, whatever --target and --input say")
        _inspect_recipe(model, workspace, as_json=as_json)
        return
    from edgeexport.inspection import inspect as inspect_model
    from edgeexport.inspection import read_shapes
    from edgeexport.terminal import Display, show_inspection

    with Display() as display:
        record = inspect_model(model, targets, shapes=read_shapes(shapes), progress=display)
    show_inspection(record, as_json=as_json)


@commands.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--device", "on", multiple=True, default=("local",), show_default=True, help="Where. Repeatable.")
@click.option("--mode", type=click.Choice(["smoke", "brief", "quick", "official"]), default="quick", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Of the runtime; else the bundle's own, or 1.")
@click.option(
    "--samples", type=click.Path(path_type=Path), help="An .npz of inputs; else a bundle's goldens, or noise."
)
@click.option("--affinity", default="", help="Processors to be confined to: 0,1 or 2-3.")
@click.option("--accelerator", default="", help="The execution provider to ask onnxruntime for.")
@click.option("--throughput", is_flag=True, help="Sweep batch and threads as well.")
@click.option("--gate", help="Exit 1 if worse by more than this, `5%`, than --against.")
@click.option("--against", type=click.Path(path_type=Path), help="The file whose last record the gate compares with.")
@click.option("--out", type=click.Path(path_type=Path), help="The file that the record is appended to.")
@json_option
def bench(models: tuple[Path, ...], *, as_json: bool, **choices: Any) -> None:
    """Measure bundles or model files, interleaved; each later one is compared with the first."""
    from edgeexport.benchmark.front import bench_files
    from edgeexport.terminal import Display, show_bench

    with Display() as display, redirect_stdout(sys.stderr):
        found = bench_files(models, progress=display, **choices)
    show_bench(found.record, found.gated, as_json=as_json)
    found.raise_faults()


@commands.command()
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench.html"), show_default=True)
def report(records: tuple[Path, ...], out: Path) -> None:
    """Draw RECORDS of `bench` on one offline page: launches, latency over time, memory, operators."""
    from edgeexport.benchmark.front import draw

    draw(records, out)
    click.echo(f"report  {out}")


@commands.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--device", "on", default="local", show_default=True, help="Where to measure.")
@click.option("--mode", type=click.Choice(["brief", "quick", "official"]), default="brief", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="The new bundle; else NAME.tuned.bundle beside it.")
@json_option
def tune(bundle: Path, *, out: Path | None, as_json: bool, **choices: Any) -> None:
    """Find the fastest threads, arena and optimization level for BUNDLE on a device; write them into a new bundle."""
    from edgeexport.benchmark import tune as tune_bundle
    from edgeexport.terminal import Display, show_tuning

    with Display() as display:
        tuning = tune_bundle(bundle, out=out or bundle.with_suffix(".tuned.bundle"), progress=display, **choices)
    show_tuning(tuning, as_json=as_json)


def _inspect_recipe(path: Path, workspace: Path, *, as_json: bool) -> None:
    from edgeexport.recipe_check import inspect_recipe
    from edgeexport.records.recipe import load_recipe
    from edgeexport.terminal import Display, show_data_check

    with Display() as display, redirect_stdout(sys.stderr):
        report = inspect_recipe(load_recipe(path), workspace=workspace, progress=display)
    show_data_check(report, as_json=as_json)


def _finish(record: RunRecord, out: Path, *, as_json: bool) -> None:
    """Show a run, then raise CheckFailed when a target has no bundle."""
    from edgeexport.terminal import show_run

    show_run(record, out, as_json=as_json)
    missed = [result for result in record.targets if result.bundle is None]
    if missed:
        failure = CheckFailed("; ".join(f"{result.target}: {result.nearest_miss}" for result in missed))
        failure.exit_code = max(result.exit_code for result in missed)
        raise failure


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code (see `errors` for the table)."""
    arguments, debug = _without_debug(sys.argv[1:] if arguments is None else arguments)
    # Threads that spin while they wait make a training many times slower as soon as another process wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        commands.main(args=arguments, prog_name="edgeexport", standalone_mode=False)
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.ClickException as error:
        error.show(sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; what was finished is kept, run the same command to go on", err=True)
        return INTERRUPTED_EXIT_CODE
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _tell(error)
    return 0


def _without_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """Return the arguments without `--debug`, which may stand anywhere before a `--`, and whether it was there."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [argument for argument in arguments[:end] if argument != "--debug"]
    return [*kept, *arguments[end:]], len(kept) < end


def _tell(error: Exception) -> int:
    """Turn an exception into one message on stderr and its exit code; what nobody expects is a bug, and said so."""
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    known = error if isinstance(error, EdgeExportError) else _known_cause(error)
    if known is not None:
        click.echo(f"error: {known}", err=True)
        if known.next_step:
            click.echo(f"next:  {known.next_step}", err=True)
        return known.exit_code
    kind = type(error).__name__
    click.echo(f"error: this is a bug in edgeexport: {kind}: {error}", err=True)
    click.echo("next:  run again with `edgeexport --debug ...` and report what it prints", err=True)
    return BUG_EXIT_CODE


def _known_cause(error: Exception) -> EdgeExportError | None:
    """Libraries report a full disk in their own exceptions; the user should hear of the disk."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left on device" in str(error):
        return NoSpace("no space left on the disk", next_step="free some, or choose another --workspace and --out")
    return None


if __name__ == "__main__":
    sys.exit(main())
