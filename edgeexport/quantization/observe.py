"""How the tensors inside a model are looked at: one run of a sample, and what each tensor showed of itself.

The rule: the graph computes what onnxruntime's own calibration computes, no optimisation, the same threads. For the
extremes alone the graph reduces each tensor itself, so that none is ever held; for histograms they are its outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edgeexport import graph
from edgeexport.errors import DataError
from edgeexport.quantization.seen import Seen, extremes
from edgeexport.runtimes.ort import OrtSession, open_session
from edgeexport.runtimes.protocol import Feeds

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# Intra-op threads: one per core, as onnxruntime's own calibration has it.
THREADS = 0
_OPTIONS = {
    "graph_optimization_level": "disable",
    "enable_cpu_mem_arena": False,
    "config_entries": {"session.intra_op.allow_spinning": "0"},
}
# A sum is not finite whenever a value is not, which minimum and maximum do not promise in onnxruntime.
_LEAST, _GREATEST, _SUM = "ReduceMin", "ReduceMax", "ReduceSum"
_PREFIX = "edgeexport/"
_FLOAT32 = 1


Question = tuple[str, str]  # an operator and the tensor that it is asked of


class Observer(Protocol):
    """A model opened so that some of its tensors can be seen."""

    def look(self, feeds: Feeds, *, where: str) -> None:
        """Run one sample and take in its tensors. Raises DataError naming `where` and the tensor."""
        ...


def observer(model: ModelProto, seen: Mapping[str, Seen], *, histograms: bool) -> Observer:
    """Open a model so that `seen` takes in these tensors; histograms: all their values, not just their extremes."""
    types = graph.tensor_types(model)
    plain = all(types[name].type.tensor_type.elem_type == _FLOAT32 for name in seen)
    if histograms or not plain or not seen:
        return Exposing.open(model, seen, histograms=histograms)
    return Reducing.open(model, seen)


@dataclass(frozen=True)
class Exposing:
    """The tensors are outputs: all of them are held at once."""

    seen: Mapping[str, Seen]
    session: OrtSession
    histograms: bool

    @staticmethod
    def open(model: ModelProto, seen: Mapping[str, Seen], *, histograms: bool) -> Exposing:
        """Open a model with these tensors as outputs."""
        inputs = {value.name for value in model.graph.input}
        exposed = graph.expose(model, [name for name in seen if name not in inputs])
        return Exposing(seen, _session(exposed), histograms)

    def look(self, feeds: Feeds, *, where: str) -> None:
        """Take in the tensors in graph order, so that an error names the first bad one."""
        values = {**feeds, **_run(self.session, feeds, where=where)}
        for name, item in self.seen.items():
            item.add(values[name], where=f"{where}, tensor {name!r}", count=self.histograms)


@dataclass(frozen=True)
class Reducing:
    """The graph itself takes the extremes of its tensors: none of them is held longer than the model needs it."""

    model: ModelProto
    seen: Mapping[str, Seen]
    asked: Sequence[Question]
    session: OrtSession

    @staticmethod
    def open(model: ModelProto, seen: Mapping[str, Seen]) -> Reducing:
        """Open a model with one output: all answers, in the order of the questions."""
        asked = [(operator, name) for name in seen for operator in (_LEAST, _GREATEST, _SUM)]
        return Reducing(model, seen, asked, _session(asking(model, asked)))

    def look(self, feeds: Feeds, *, where: str) -> None:
        """Take in the extremes; where a sum is not finite, look at the tensors themselves for the value that is not."""
        import numpy as np

        answers = _run(self.session, feeds, where=where)[_PREFIX]
        if not np.isfinite(answers).all():
            # A sum may overflow though all values are finite: then this passes, and the extremes are right.
            Exposing.open(self.model, {name: Seen() for name in self.seen}, histograms=False).look(feeds, where=where)
        for (operator, name), answer in zip(self.asked, answers.tolist(), strict=True):
            if operator != _SUM:
                self.seen[name].widen(answer, answer)


def sizes(model: ModelProto, names: Sequence[str], *, feeds: Feeds) -> dict[str, int]:
    """Return how many values each tensor holds on this sample."""
    found = _session(asking(model, [("Size", name) for name in names])).run(feeds)[_PREFIX]
    return dict(zip(names, map(int, found), strict=True))


def asking(model: ModelProto, questions: Sequence[Question]) -> ModelProto:
    """Return a copy with one output, the answers to questions of one type, each an operator that makes one number."""
    import numpy as np
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1], np.int64), f"{_PREFIX}one"))
    parts = [_answer(operator, name) for operator, name in questions]
    copy.graph.node.extend(node for pair in parts for node in pair)
    answers = [pair[1].output[0] for pair in parts]
    copy.graph.node.append(onnx.helper.make_node("Concat", answers, [_PREFIX], axis=0))
    kind = onnx.TensorProto.INT64 if questions[0][0] == "Size" else onnx.TensorProto.FLOAT
    del copy.graph.output[:]
    copy.graph.output.append(onnx.helper.make_tensor_value_info(_PREFIX, kind, [len(parts)]))
    return copy


def check_inputs(feeds: Feeds, *, where: str) -> None:
    """Raise DataError, naming the input, if a sample holds a value that is not finite."""
    for name, value in feeds.items():
        if value.dtype.kind == "f" and value.size:
            extremes(value, where=f"{where}, input {name!r}")


def _answer(operator: str, name: str) -> tuple[NodeProto, NodeProto]:
    """A tensor to one number, and that number as a vector."""
    import onnx

    number = f"{_PREFIX}{operator}/{name}"
    node = onnx.helper.make_node(operator, [name], [number])
    if operator != "Size":
        node.attribute.append(onnx.helper.make_attribute("keepdims", 0))
    return (
        node,
        onnx.helper.make_node("Reshape", [number, f"{_PREFIX}one"], [f"{number}/1"]),
    )


def _session(model: ModelProto) -> OrtSession:
    return open_session(model.SerializeToString(), threads=THREADS, options=_OPTIONS)


def _run(session: OrtSession, feeds: Feeds, *, where: str) -> Feeds:
    try:
        return session.run(feeds)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
