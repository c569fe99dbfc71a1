"""Operators that move, cut, join, resize and multiply against onnxruntime; sizes that follow the batch."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper

from edgeexport.errors import UnsupportedOperator
from edgeexport.graph import lift
from tests.graph.lifting.compare import check, ints, normal
from tests.graph.models import make_model


@pytest.mark.parametrize("to", [(6, 4), (-1, 4), (0, -1), (0, 0, 4), (2, 3, 2, 2)])
def test_reshape(to: tuple[int, ...]) -> None:
    check("Reshape", [normal(2, 3, 4)], [ints(*to)])


def test_reshape_may_allow_zero() -> None:
    check("Reshape", [normal(0, 3)], [ints(3, 0)], allowzero=1)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_flatten(axis: int) -> None:
    check("Flatten", [normal(2, 3, 4)], axis=axis)


@pytest.mark.parametrize("perm", [None, [0, 2, 1], [2, 0, 1]])
def test_transpose(perm: list[int] | None) -> None:
    check("Transpose", [normal(2, 3, 4)], **({"perm": perm} if perm else {}))


@pytest.mark.parametrize("opset", [11, 20])
def test_squeeze_and_unsqueeze(opset: int) -> None:
    for op, shape, axes in (("Squeeze", (2, 1, 3, 1), [1, -1]), ("Unsqueeze", (2, 3), [0, -1])):
        given: dict[str, Any] = {"axes": axes} if opset == 11 else {}
        check(op, [normal(*shape)], [] if opset == 11 else [ints(*axes)], opset=opset, **given)
    check("Squeeze", [normal(1, 2, 1, 3)], opset=opset)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(axis: int) -> None:
    check("Concat", [normal(2, 3, 4), normal(2, 3, 4)], axis=axis)


def test_split() -> None:
    check("Split", [normal(2, 7)], [ints(2, 4, 1)], outputs=3, axis=1)
    check("Split", [normal(2, 7)], outputs=3, axis=-1, num_outputs=3)
    check("Split", [normal(2, 6)], outputs=3, axis=1, opset=11)
    check("Split", [normal(2, 6)], outputs=2, axis=1, opset=11, split=[1, 5])


SLICES = [
    ([0, 0], [2, 3], [0, 1], None), ([1], [-1], [2], None), ([0], [2**63 - 1], [1], [2]), ([-1], [-(2**63)], [2], [-1]),
    ([4], [0], [2], [-2]), ([-3], [99], [1], None), ([0, 0, 1], [9, 9, 9], None, None), ([3], [1], [1], None),
    ([99], [0], [2], [-3]),
]  # fmt: skip


@pytest.mark.parametrize("cut", SLICES, ids=str)
def test_slice(cut: tuple[list[int] | None, ...]) -> None:
    check("Slice", [normal(3, 5, 7)], [None if part is None else ints(*part) for part in cut])


def test_slice_with_attributes() -> None:
    check("Slice", [normal(3, 5, 7)], opset=9, starts=[1, 0], ends=[3, -2], axes=[1, 2])


PADS = [(0, 0, 1, 2, 0, 0, 2, 1), (0, 2, 0, 0, 0, 1, 0, 0), (0, 0, -1, 1, 0, 0, 1, -1)]


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("pads", PADS, ids=str)
def test_pad(mode: str, pads: tuple[int, ...]) -> None:
    if min(pads) < 0 and mode != "constant":
        pads = tuple(abs(size) for size in pads)
    check("Pad", [normal(2, 3, 4, 5)], [ints(*pads)], mode=mode)


def test_pad_with_a_value_on_some_axes() -> None:
    check("Pad", [normal(2, 3, 4)], [ints(1, 2, 3, 0), np.array(7, np.float32), ints(2, -2)])
    check("Pad", [normal(2, 3)], opset=10, pads=[0, 1, 1, 0], value=3.0)


@pytest.mark.parametrize("to", [(2, 3, 4), (1, 3, 1), (5, 2, 3, 4), (4,)])
def test_expand(to: tuple[int, ...]) -> None:
    check("Expand", [normal(2, 3, 1)], [ints(*to)])


def test_tile_and_trilu() -> None:
    check("Tile", [normal(2, 3)], [ints(2, 3)])
    check("Trilu", [normal(4, 5)], [np.array(1, np.int64)], upper=0)
    check("Trilu", [normal(4, 5)])


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("indices", [np.array(1), np.array(-1), ints(0, 2, -1), np.array([[0, 1], [2, -2]])], ids=str)
def test_gather(axis: int, indices: np.ndarray) -> None:
    check("Gather", [normal(3, 4, 5)], [indices], axis=axis)
    check("Gather", [normal(3, 4, 5), indices], axis=axis)


def test_gather_looks_up_an_embedding() -> None:
    table = {"table": normal(7, 3)}
    nodes = [node("Cast", "x", "i", to=7), node("Gather", "table i", "y")]
    model = make_model(nodes, inputs={"x": ["n", 4]}, outputs=["y"], stored=table)
    rows = lift(model)(torch.tensor([[0.0, 3.0, 6.0, 3.0]])).detach().numpy()
    np.testing.assert_array_equal(rows, table["table"][[[0, 3, 6, 3]]])


@pytest.mark.parametrize("axis", [0, 1])
def test_gather_elements(axis: int) -> None:
    check("GatherElements", [normal(3, 3), np.array([[0, -1, 2], [1, 1, -3]])], axis=axis)


@pytest.mark.parametrize(("batch", "rows"), [
    (0, [[0, 1], [2, -1]]), (0, [[[1]], [[-2]]]), (1, [[1], [0], [-3]]), (1, [[[2, 1]], [[0, 0]], [[1, -1]]]),
    (2, [[[2], [1], [0], [-1]]] * 3),
])  # fmt: skip
def test_gather_nd(batch: int, rows: list[object]) -> None:
    check("GatherND", [normal(3, 4, 5), np.array(rows)], batch_dims=batch)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    check("DepthToSpace", [normal(2, 12, 3, 4)], blocksize=2, mode=mode)


def test_space_to_depth() -> None:
    check("SpaceToDepth", [normal(2, 3, 4, 6)], blocksize=2)


GEMM = [dict(zip(("transA", "transB"), turn, strict=True)) for turn in itertools.product((0, 1), (0, 1))]


@pytest.mark.parametrize("turns", GEMM, ids=str)
@pytest.mark.parametrize("bias", [(4,), (1, 4), (3, 4), (1,), (), None], ids=str)
@pytest.mark.parametrize("factors", [{}, {"alpha": 0.5, "beta": 2.0}], ids=str)
def test_gemm(turns: dict[str, int], bias: tuple[int, ...] | None, factors: dict[str, float]) -> None:
    a = normal(5, 3) if turns["transA"] else normal(3, 5)
    b = normal(4, 5) if turns["transB"] else normal(5, 4)
    check("Gemm", [a], [b] if bias is None else [b, normal(*bias).astype(np.float32)], **turns, **factors)


@pytest.mark.parametrize("shapes", [((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((5, 2, 3), (5, 3, 4)), ((3,), (3, 2))])
def test_matmul(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    check("MatMul", [normal(*shapes[0])], [normal(*shapes[1])])
    check("MatMul", [normal(*shapes[0]), normal(*shapes[1])])


def test_einsum() -> None:
    check("Einsum", [normal(2, 3, 4), normal(2, 4, 5)], equation="bij,bjk->bik")


COORDINATES = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"]
ROUNDING = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
SIZES = [(8, 10), (4, 5), (6, 7), (3, 2), (1, 13)]


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("rounding", ROUNDING)
@pytest.mark.parametrize("size", SIZES)
def test_resize_nearest_to_sizes(coordinates: str, rounding: str, size: tuple[int, int]) -> None:
    way = {"coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
    check("Resize", [normal(1, 2, 4, 5)], [None, None, ints(1, 2, *size)], mode="nearest", **way)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("scale", [2.0, 1.7, 0.5, 0.55])
def test_resize_by_scales(mode: str, coordinates: str, scale: float) -> None:
    scales = np.array([1, 1, scale, scale], np.float32)
    check("Resize", [normal(1, 2, 6, 7)], [None, scales], mode=mode, coordinate_transformation_mode=coordinates)


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("size", SIZES)
def test_resize_linear_to_sizes(coordinates: str, size: tuple[int, int]) -> None:
    way = {"coordinate_transformation_mode": coordinates, "mode": "linear"}
    check("Resize", [normal(1, 2, 4, 5)], [None, None, ints(1, 2, *size)], **way)


@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners"])
def test_resize_cubic(coordinates: str) -> None:
    way = {"coordinate_transformation_mode": coordinates, "mode": "cubic"}
    check("Resize", [normal(1, 2, 6, 6)], [None, None, ints(1, 2, 12, 9)], **way)


def test_resize_on_named_axes_and_before_opset_11() -> None:
    check("Resize", [normal(1, 2, 4, 5)], [None, None, ints(8, 10)], axes=[2, 3], mode="linear")
    check("Resize", [normal(1, 2, 4, 5)], [np.array([1, 1, 2, 2], np.float32)], opset=10, mode="nearest")


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample(mode: str) -> None:
    check("Upsample", [normal(1, 2, 4, 5)], [np.array([1, 1, 2, 3], np.float32)], opset=9, mode=mode)


def test_a_resize_that_torch_cannot_express_is_refused() -> None:
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], coordinate_transformation_mode="tf_crop_and_resize")
    stored = {"s": np.ones(4, np.float32)}
    with pytest.raises(UnsupportedOperator, match="tf_crop_and_resize"):
        lift(make_model([node], inputs={"x": [1, 1, 4, 4]}, outputs=["y"], stored=stored))


def follow(nodes: list[onnx.NodeProto], stored: dict[str, np.ndarray], *, shape: tuple[int, ...] = (3, 4)) -> None:
    """Lift, torch.export with a free batch, and compare with onnxruntime on other batch sizes."""
    model = make_model(nodes, inputs={"x": ["batch", *shape]}, outputs=["y"], stored=stored)
    lifted = lift(model)
    program = torch.export.export(lifted, (torch.randn(2, *shape),), dynamic_shapes=lifted.dynamic_batch())
    session = ort.InferenceSession(model.SerializeToString())
    for count in (1, 2, 5):
        x = normal(count, *shape)
        got = program.module()(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(got, session.run(None, {"x": x})[0], rtol=1e-5, atol=1e-5)


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attributes)


def test_a_reshape_computed_from_the_shape_keeps_the_batch_free() -> None:
    first = [node("Shape", "x", "s"), node("Gather", "s zero", "n", axis=0), node("Unsqueeze", "n axis", "n1")]
    last = [node("Concat", "n1 rest", "to", axis=0), node("Reshape", "x to", "y")]
    follow([*first, *last], {"zero": np.array(0), "axis": ints(0), "rest": ints(-1)})


def test_a_reshape_by_sliced_sizes_keeps_the_batch_free() -> None:
    first = [node("Shape", "x", "s"), node("Slice", "s zero one", "n"), node("Slice", "s one three", "r")]
    last = [node("ReduceProd", "r zero", "p", keepdims=1), node("Concat", "n p", "to", axis=0)]
    follow([*first, *last, node("Reshape", "x to", "y")], {"zero": ints(0), "one": ints(1), "three": ints(3)})


def test_arithmetic_on_sizes_keeps_the_batch_free() -> None:
    first = [node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Mul", "n three", "m")]
    last = [node("Concat", "m four", "to", axis=0), node("Reshape", "x to", "y")]
    follow([*first, *last], {"zero": ints(0), "three": ints(3), "four": ints(4)})


def test_expanding_a_stored_tensor_to_the_batch_keeps_it_free() -> None:
    first = [node("Shape", "x", "s", end=1), node("Concat", "s tail", "to", axis=0), node("Expand", "token", "e")]
    first[-1].input.append("to")
    follow([*first, node("Concat", "e x", "y", axis=1)], {"tail": ints(1, 4), "token": normal(1, 1, 4)})


def test_a_tensor_made_to_the_size_of_the_batch_keeps_it_free() -> None:
    first = [
        node("Shape", "x", "s"),
        node("ConstantOfShape", "s", "ones", value=helper.make_tensor("v", 1, [1], [2.0])),
    ]
    follow([*first, node("Mul", "x ones", "y")], {})


def test_a_resize_to_computed_sizes_keeps_the_batch_free() -> None:
    first = [node("Shape", "x", "s"), node("Slice", "s zero two", "front"), node("Slice", "s two four", "back")]
    middle = [node("Cast", "back", "b", to=1), node("Mul", "b twice", "c"), node("Floor", "c", "d")]
    last = [node("Cast", "d", "e", to=7), node("Concat", "front e", "to", axis=0)]
    resize = helper.make_node("Resize", ["x", "", "", "to"], ["y"], mode="nearest", nearest_mode="floor",
                              coordinate_transformation_mode="asymmetric")  # fmt: skip
    stored = {"zero": ints(0), "two": ints(2), "four": ints(4), "twice": np.array([2.0, 2.0], np.float32)}
    follow([*first, *middle, *last, resize], stored, shape=(2, 3, 4))


def test_a_shape_used_as_numbers_among_the_data() -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s one", "n"),
        node("Cast", "n", "f", to=1),
        node("Div", "x f", "y"),
    ]
    follow(nodes, {"one": np.array(1)})


def test_the_size_of_a_tensor_follows_the_batch() -> None:
    follow([node("Size", "x", "s"), node("Cast", "s", "f", to=1), node("Div", "x f", "y")], {})


def test_a_reshape_computed_from_the_data_is_refused() -> None:
    nodes = [node("Cast", "x", "i", to=7), node("Reshape", "x i", "y")]
    model = make_model(nodes, inputs={"x": [2]}, outputs=["y"])
    with pytest.raises(UnsupportedOperator, match="known before the data"):
        lift(model)


def test_stored_numbers_are_folded_before_anything_runs() -> None:
    nodes = [node("Range", "a b c", "r"), node("Cast", "r", "f", to=1), node("Add", "x f", "y")]
    stored = {"a": np.array(0), "b": np.array(4), "c": np.array(1)}
    model = make_model(nodes, inputs={"x": ["n", 4]}, outputs=["y"], stored=stored)
    assert lift(model)(torch.zeros(1, 4)).tolist() == [[0, 1, 2, 3]]
    assert list(lift(model).weight_names) == ["f"]
