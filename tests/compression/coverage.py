"""Which architectures can be pruned: prune 30 %, equal to the zero-masked one, exports, runs, smaller; else the reason.

python -m tests.compression.coverage [NAME...]    run all, or these, and renew their rows in the table of
edgeexport/compression; each row is kept as soon as it is there
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from edgeexport import graph, onnx_export
from edgeexport.compression.channels import Removal, mask
from edgeexport.compression.heads import HEADS
from edgeexport.compression.macs import tensors
from edgeexport.compression.misfit import told
from edgeexport.compression.prune import apply_pruning, plan_pruning
from edgeexport.errors import EdgeExportError, ModelError
from edgeexport.records.base import Record, from_json, to_json
from edgeexport.records.pruning import PruningPlan
from edgeexport.records.recipe import InputSpec, ModelSpec, Prune
from edgeexport.records.target import Tolerance
from edgeexport.runtimes.ort import open_session
from tests.compression.architectures import ARCHITECTURES, Example, built

SHARE = 0.3
RESULTS = Path(__file__).with_name("coverage.json")
README = Path(__file__).parents[2] / "edgeexport" / "compression" / "README.md"
BEGIN, END = "<!-- coverage: written by `python -m tests.compression.coverage` -->", "<!-- end of coverage -->"
# From the parts that change a network least to all there are.
PARTS = (("width",), ("width", "heads"), ("width", "heads", "depth"))


class Covered(Record):
    """What came out for one architecture. parts: those that went, of width, heads and depth.

    refused: part -> why it stays; reason: why the network is not pruned.
    """

    name: str
    parameters: int
    outcome: str
    parts: tuple[str, ...] = ()
    macs_ratio: float = 1.0
    bytes_ratio: float = 1.0
    error: float = 0.0
    refused: dict[str, str] = {}
    reason: str = ""


def cover(name: str) -> Covered:
    """Take one architecture through it all. What fails otherwise than by a named refusal raises."""
    torch.set_num_threads(1)
    module, example = built(name)
    parameters = sum(value.numel() for value in module.parameters())
    plan, reason = planned(module, example)
    if plan is None:
        return Covered(name, parameters, "refused", reason=reason)
    parts = went(plan)
    pruned = apply_pruning(copy.deepcopy(module), plan, example=example)
    error = difference(module, pruned, plan, example)
    with tempfile.TemporaryDirectory() as folder:
        try:
            sizes = [exported(each, example, Path(folder) / f"{index}.onnx") for index, each in
                     enumerate((module, pruned))]  # fmt: skip
        except EdgeExportError as failure:
            return Covered(name, parameters, "not exported", parts, reason=told(failure))
    ratio = plan.macs_before / plan.macs_after
    smaller = sizes[0] / sizes[1]
    good = error < 1e-4 and smaller > 1
    return Covered(name, parameters, "pruned" if good else "differs", parts, ratio, smaller, error, brief(plan.refused))


def planned(module: torch.nn.Module, example: Example) -> tuple[PruningPlan | None, str]:
    """A plan for 30 % less, with the fewest kinds of parts allowed that reach it; or why there is none."""
    reason = ""
    for parts in PARTS:
        try:
            step = Prune(macs=1 / (1 - SHARE), parts=parts, round_to=8)
            return plan_pruning(module, example, step=step), ""
        except ModelError as error:
            reason = f"{told(error)}; {error.next_step}"
    return None, reason


def went(plan: PruningPlan) -> tuple[str, ...]:
    """The kinds of parts that a plan takes away."""
    kinds = {HEADS if group.kind == HEADS else "width" for group in plan.groups} | ({"depth"} if plan.blocks else set())
    return tuple(each for each in PARTS[-1] if each in kinds)


def difference(module: torch.nn.Module, pruned: torch.nn.Module, plan: PruningPlan, example: Example) -> float:
    """How far the pruned network is from the zero-masked one, as a share of its largest output."""
    masked = copy.deepcopy(module)
    for name in plan.blocks:
        masked.get_submodule(name).register_forward_hook(give_back, with_kwargs=True)
    mask(masked, [Removal(group.layer, group.removed, group.kind) for group in plan.groups], example=example)
    with torch.no_grad():
        wanted, got = masked.eval()(*tensors(example)), pruned(*tensors(example))
    return float((wanted - got).abs().max() / wanted.abs().max())


def give_back(_, arguments, named, output):
    """A forward hook: the module gives back its input."""
    given = arguments[0] if arguments else next(iter(named.values()))
    return (given,) if isinstance(output, tuple) else given


def exported(module: torch.nn.Module, example: Example, path: Path) -> int:
    """Export, clean and run a network; return the size of the file."""
    inputs = {name: InputSpec(value.shape, str(value.dtype)) for name, value in example.items()}
    tolerance = Tolerance().float_error
    onnx_export.export_module(module, ModelSpec(factory=module, inputs=inputs), path=path, samples=[example],
                              tolerance=tolerance)  # fmt: skip
    model, _ = onnx_export.clean(graph.load(path))
    graph.save(model, path)
    (got,) = open_session(path).run(example).values()
    with torch.no_grad():
        wanted = module(*tensors(example)).numpy()
    if not abs(got - wanted).max() <= 10 * tolerance * abs(wanted).max():
        raise ModelError(f"onnxruntime is off by {abs(got - wanted).max():.3g}")
    return path.stat().st_size


def brief(refused: dict[str, str]) -> dict[str, str]:
    """One layer for each reason, with how many others it holds for."""
    found: dict[str, list[str]] = {}
    for layer, reason in refused.items():
        found.setdefault(kind_of(reason), []).append(layer)
    return {layers[0] if len(layers) == 1 else f"{layers[0]} and {len(layers) - 1} more": reason
            for reason, layers in found.items()}  # fmt: skip


def kind_of(reason: str) -> str:
    """A refusal without the figures and names that are its own."""
    kinds = {
        "an output of the model": "they are the output",
        "differs from the zero-masked": "not equal to the zero-masked network",
        "grouped convolution": "grouped convolution",
        "does not allow it": "`forward` fails without them",
        "is an nn.MultiheadAttention": "an nn.MultiheadAttention reads them",
        "heads share keys": "heads share keys",
    }
    return next((told for part, told in kinds.items() if part in reason), reason[:100])


def table(results: list[Covered]) -> str:
    """The README's table."""
    lines = [
        "| architecture | parameters | parts that went | MACs | file | what stays, and why |",
        "|---|---|---|---|---|---|",
    ]
    for each in results:
        stays = "; ".join(f"`{layer}`: {reason}" for layer, reason in each.refused.items())
        if each.outcome != "pruned":
            lines.append(f"| {each.name} | {each.parameters:,} | **{each.outcome}** | | | {each.reason} |")
            continue
        figures = f"÷ {each.macs_ratio:.2f} | ÷ {each.bytes_ratio:.2f}"
        lines.append(
            f"| {each.name} | {each.parameters:,} | {', '.join(each.parts)} | {figures} | {stays or 'nothing'} |"
        )
    done = sum(each.outcome == "pruned" for each in results)
    return f"{done} of {len(results)} are pruned by 30 %.\n\n" + "\n".join(lines)


def stored() -> list[Covered]:
    """The rows that are there, in the order of ARCHITECTURES."""
    return from_json(RESULTS.read_bytes(), list[Covered], origin=str(RESULTS)) if RESULTS.is_file() else []


def with_row(rows: list[Covered], row: Covered) -> list[Covered]:
    """The rows with this one new or renewed, in the order of ARCHITECTURES."""
    found = {each.name: each for each in [*rows, row]}
    return [found[name] for name in ARCHITECTURES if name in found]


def with_table(text: str, results: list[Covered]) -> str:
    """The README with the table of these results between its marks."""
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}"


def main() -> int:
    """Run all or some."""
    parser = argparse.ArgumentParser(prog="python -m tests.compression.coverage")
    parser.add_argument("names", nargs="*")
    names = parser.parse_args().names or list(ARCHITECTURES)
    warnings.simplefilter("ignore")
    rows: list[Covered] = []
    for name in names:
        start = time.monotonic()
        rows.append(cover(name))
        results = with_row(stored(), rows[-1])
        RESULTS.write_bytes(to_json(results))
        README.write_text(with_table(README.read_text(encoding="utf-8"), results), encoding="utf-8")
        told = f"{rows[-1].outcome} {rows[-1].reason}".strip()
        sys.stderr.write(f"{name} ({time.monotonic() - start:.0f} s): {told}\n")
    return 0 if all(each.outcome in {"pruned", "refused"} for each in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
