"""A tiny bundle for tests. `python -m tests.bundles.making PATH` writes one where there is none yet.

Files under `released/` were written by the version they are named after and are never written again: they must stay
readable.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np

from edgeexport.bundles import Example, Parts, pack
from edgeexport.records.artifact import Signature, TensorSpec
from edgeexport.records.base import digest
from edgeexport.records.manifest import FORMAT_VERSION, Ancestor, Manifest
from edgeexport.records.measurement import Comparison, Conditions, Interval, Latency, Measurement, Memory
from edgeexport.records.recipe import Preprocess
from edgeexport.records.target import Target
from edgeexport.records.verdict import Drop, LimitVerdict, Score, Verdict

WEIGHT = np.array([[1, -2, 0.5], [0.25, 3, -1], [2, 0, 1], [-1, 1, 4]], np.float32)


def write_model(path: Path) -> Path:
    """Write y = x @ WEIGHT as an .onnx file, the batch free."""
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"], name="mul")],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def draft(model: Path) -> Manifest:
    """Everything but what `pack` fills in."""
    model_digest = digest(model.read_bytes())
    score = Score("top1", 90.0, "points", 400, "sha256:00", per_class=(("0", 200, 91.0), ("1", 200, 89.0)))
    limit = LimitVerdict("max_drop", 1.0, 0.25, 1.2, "unproven", "about 700 samples would prove it")
    return Manifest(
        format_version=FORMAT_VERSION,
        name="tiny",
        tool_version="0.1.0",
        target=Target("desk", "A desk", "ort", "onnx", "x86_64"),
        runtime="ort",
        runtime_version="1.32.0",
        floor="1.13",
        model="",
        model_digest="",
        signature=Signature((TensorSpec("x", "float32", ("batch", 4)),), (TensorSpec("y", "float32", ("batch", 3)),)),
        preprocess=Preprocess(input="x", scale=0.5),
        labels=("cat", "dog", "eel"),
        session_options={"config_entries": {"session.set_denormal_as_zero": "1"}},
        lineage=(Ancestor("source", "sha256:11", 90), Ancestor("clean", model_digest, model.stat().st_size)),
        goldens=(),
        files={},
        metric="top1",
        score=score,
        source_score=score,
        drop=Drop(0.25, -0.5, 1.3, 1.2, "mcnemar", 400, 0.99, ("1", 1.0, 0.4), 3, 2),
        verdict=Verdict("desk", model_digest, "evaluation", (limit,)),
        measurement=measurement(),
        source_measurement=None,
        comparison=Comparison("sha256:11", model_digest, Interval(0.5, 0.45, 0.6), "faster"),
        licences=("The weights are in the public domain.",),
    )


def measurement() -> Measurement:
    """A valid measurement on the target of `draft`."""
    conditions = Conditions("local", "x86_64", (), "a cpu", 2, "ort", "1.32.0", 1, "quick", "sha256:22")
    latency = Latency(Interval(1.0, 0.9, 1.1), (0.9, 1.0, 1.1), 192, 5.0, 1.5)
    return Measurement("sha256:33", "tiny", conditions, True, latency=latency, memory=Memory(30_000_000, 20_000_000))


def parts(model: Path) -> Parts:
    """The model with two goldens, a record and a report."""
    rows = np.array([[1, 2, 3, 4], [-1, 0.5, 0, 2]], np.float32)
    examples = [Example({"x": row[None]}, {"y": row[None] @ WEIGHT}, {"y": 1e-4}) for row in rows]
    return Parts(model, examples, {"measurement": measurement()}, "<html>report</html>")


def make(folder: Path, name: str = "tiny.bundle") -> Path:
    """Pack the tiny bundle into `folder` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    model = write_model(folder / "tiny.onnx")
    pack(folder / name, draft(model), parts=parts(model))
    return folder / name


def without(manifest: Manifest, **fields: object) -> Manifest:
    """A copy with other fields."""
    return msgspec.structs.replace(manifest, **fields)


if __name__ == "__main__":
    wanted = Path(sys.argv[1])
    if wanted.exists():
        sys.exit(f"{wanted} exists: a released bundle is never written again")
    made = make(wanted.parent, wanted.name)
    (wanted.parent / "tiny.onnx").unlink()
