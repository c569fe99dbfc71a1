from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from edgeexport.data import prepare, resolve_preprocess
from edgeexport.data.resize import resize
from edgeexport.errors import DataError, RecipeError
from edgeexport.records.artifact import Signature, TensorSpec
from edgeexport.records.recipe import Preprocess, Resize
from tests.data.conftest import MakeRecipe, signature
from tests.needs import need

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
CIFAR = Preprocess(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), layout="CHW")


def test_pictures_are_scaled_normalised_and_moved_as_written_out_here() -> None:
    feeds = prepare(PIXELS, CIFAR, signature=signature("batch", 3, 9, 7))
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    expected = ((PIXELS.astype(np.float32) * np.float32(1 / 255) - mean) / std).transpose(2, 0, 1)[None]
    assert feeds["x"].dtype == np.float32
    assert feeds["x"].flags.c_contiguous
    assert np.array_equal(feeds["x"], expected)


def test_the_order_is_color_resize_crop_scale_mean_std_layout() -> None:
    how = Preprocess(
        color="BGR", resize=Resize(size=(6, 8)), crop=(4, 4), scale=2.0, mean=(1.0,), std=(4.0,), layout="CHW"
    )
    from PIL import Image

    small = np.asarray(Image.fromarray(PIXELS[..., ::-1].copy()).resize((8, 6), Image.Resampling.BILINEAR))
    expected = ((small[1:5, 2:6].astype(np.float32) * 2 - 1) / 4).transpose(2, 0, 1)
    assert np.array_equal(prepare(PIXELS, how, signature=signature(1, 3, 4, 4))["x"][0], expected)


def test_gray_is_pillows_to_the_bit() -> None:
    from PIL import Image

    how = Preprocess(color="gray", layout="HWC", dtype="uint8")
    found = prepare(PIXELS, how, signature=signature(1, 9, 7, 1, dtype="uint8"))["x"][0, ..., 0]
    assert np.array_equal(found, np.asarray(Image.fromarray(PIXELS).convert("L")))


def test_gray_samples_stay_as_they_are() -> None:
    digits = np.full((8, 8, 1), 16, np.uint8)
    how = Preprocess(color="gray", scale=1 / 16, layout="CHW")
    for raw in (digits, digits[..., 0]):
        feeds = prepare(raw, how, signature=signature(1, 1, 8, 8))
        assert np.array_equal(feeds["x"], np.ones((1, 1, 8, 8), np.float32))


@pytest.mark.parametrize("kernel", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_antialiased_resizing_is_pillows(kernel: Any) -> None:
    from PIL import Image

    found = resize(PIXELS, Resize(size=(4, 11), kernel=kernel))
    expected = Image.fromarray(PIXELS).resize((11, 4), Image.Resampling[kernel.upper()])
    assert np.array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("size", [(4, 3), (18, 21), (4, 11)])
def test_plain_bilinear_is_torchs_without_antialias(size: tuple[int, int]) -> None:
    need("torch")
    import torch

    array = PIXELS.astype(np.float32)
    found = resize(array, Resize(size=size, antialias=False))
    nchw = torch.from_numpy(array).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(nchw, size, mode="bilinear")[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_antialias_makes_a_difference_when_shrinking() -> None:
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::4] = 255
    smooth, plain = (resize(stripes, Resize(size=(64, 16), antialias=flag)) for flag in (True, False))
    assert np.ptp(smooth[:, 2:-2]) < 30
    assert not np.array_equal(smooth, plain)


@pytest.mark.parametrize("kernel", ["bicubic", "lanczos"])
def test_plain_kernels_keep_flat_pictures_flat_and_agree_with_pillow_when_growing(kernel: Any) -> None:
    assert (resize(np.full((9, 7, 1), 77, np.uint8), Resize(size=(4, 5), kernel=kernel, antialias=False)) == 77).all()
    grown = [resize(PIXELS, Resize(size=(27, 21), kernel=kernel, antialias=flag)) for flag in (True, False)]
    inner = [picture[9:-9, 9:-9].astype(int) for picture in grown]
    assert np.abs(inner[0] - inner[1]).max() <= 2


@pytest.mark.parametrize(("shape", "expected"), [((9, 7), (5, 4)), ((7, 9), (4, 5)), ((4, 4), (4, 4))])
def test_the_shorter_side_is_named(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resize(np.zeros((*shape, 3), np.uint8), Resize(shorter=4)).shape == (*expected, 3)


def test_tabular_rows_pass_and_are_narrowed() -> None:
    feeds = prepare(np.arange(4.0), None, signature=signature("batch", 4))
    assert feeds["x"].dtype == np.float32
    assert feeds["x"].shape == (1, 4)


def test_tabular_rows_are_normalised_on_the_last_axis() -> None:
    how = Preprocess(mean=(1.0, 2.0), std=(2.0, 4.0))
    assert prepare(np.array([3, 6]), how, signature=signature(1, 2))["x"].tolist() == [[1.0, 1.0]]


def test_several_inputs_go_by_name() -> None:
    pair = Signature((TensorSpec("ids", "int64", (1, "n")), TensorSpec("image", "float32", (1, 3, 9, 7))), ())
    how = Preprocess(input="image", scale=1 / 255, layout="CHW")
    feeds = prepare({"image": PIXELS, "ids": np.array([1, 2], np.int32)}, how, signature=pair)
    assert feeds["ids"].dtype == np.int64
    assert feeds["ids"].shape == (1, 2)
    assert feeds["image"].shape == (1, 3, 9, 7)


@pytest.mark.parametrize(
    ("raw", "how", "message"),
    [
        (PIXELS, None, "has dtype uint8, the model expects float32"),
        (PIXELS.astype(np.float32), None, r"shape \(1, 9, 7, 3\).* expects \('batch', 3, 9, 7\)"),
        (PIXELS[None], CIFAR, r"has shape \(1, 9, 7, 3\), expected a picture"),
        (PIXELS[:5], CIFAR, r"shape \(1, 3, 5, 7\).*\('batch', 3, 9, 7\)"),
        (np.zeros((3, 9, 7)) * 1j, None, "dtype complex128"),
        (np.full((3, 9, 7), 1e300), None, "inf at"),
        (np.full((3, 9, 7), np.nan), None, "189 of 189 values are not finite"),
        ({"y": PIXELS}, CIFAR, "has inputs y, the model has inputs x"),
        ({}, CIFAR, "no inputs"),
        ([[1, 2], [3]], None, "not readable as an array"),
        (PIXELS, Preprocess(crop=(10, 7)), "is 9x7, smaller than the crop 10x7"),
        (PIXELS, Preprocess(mean=(1.0, 2.0)), "`mean` has 2 values, the last axis has 3"),
        (PIXELS[..., :2], Preprocess(color="BGR"), r"needs shape \(height, width, 3\).*\(9, 7, 2\)"),
        (PIXELS, Preprocess(dtype="int64", layout="CHW"), "preprocessing makes int64, the model expects float32"),
    ],
)
def test_samples_that_do_not_fit_are_refused_with_both_values(raw: Any, how: Preprocess | None, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        prepare(raw, how, signature=signature("batch", 3, 9, 7), name="train[5]")
    assert "train[5]" in str(caught.value)


def test_the_hint_names_the_layout() -> None:
    with pytest.raises(DataError) as caught:
        prepare(PIXELS.astype(np.float32), None, signature=signature("batch", 3, 9, 7))
    assert re.search(r'layout = "CHW"', caught.value.next_step)


def test_integers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="holds 0 to 300, which uint8 cannot"):
        prepare(np.array([0, 300]), None, signature=signature(1, 2, dtype="uint8"))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (Preprocess(scale=0.5, dtype="uint8"), "make floats"),
        (Preprocess(std=(1.0, 0.0, 1.0)), "zero"),
        (Preprocess(input="image"), "the model has inputs x"),
    ],
)
def test_preprocessings_that_make_no_sense_are_refused(how: Preprocess, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        prepare(PIXELS, how, signature=signature("batch", 9, 7, 3))


def test_several_inputs_need_an_owner() -> None:
    pair = Signature((TensorSpec("a", "float32", (1, 2)), TensorSpec("b", "float32", (1, 2))), ())
    with pytest.raises(RecipeError, match=r"`preprocess\.input` is missing"):
        prepare({"a": [1.0, 2.0], "b": [1.0, 2.0]}, Preprocess(), signature=pair)


@pytest.mark.parametrize(("name", "said"), [("cifar01", "did you mean 'cifar10'?"), ("nothing like it", "known: ")])
def test_an_unknown_preprocessing_names_the_nearest(recipe: MakeRecipe, name: str, said: str) -> None:
    with pytest.raises(RecipeError, match="names no preprocessing") as caught:
        resolve_preprocess(recipe(preprocess=name))
    assert said in caught.value.next_step
