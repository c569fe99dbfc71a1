"""The data check: each planted fault is found and named, and clean samples raise no alarm."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from edgeexport.data import check_samples
from edgeexport.errors import DataError
from edgeexport.records.artifact import Signature, TensorSpec
from edgeexport.records.data_check import DataCheck
from tests.needs import DATA, need

PICTURE = Signature((TensorSpec("image", "float32", ("batch", 3, "height", "width"), "NCHW"),), ())
Feeds = dict[str, np.ndarray]


def smooth(count: int) -> list[Feeds]:
    """Colourful random gradients with neighbours alike, as in photographs, about 0 ± 1."""
    random = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(0, 3, 32), np.linspace(0, 3, 32))
    waves = [random.uniform(-1, 1, (4, 3, 1, 1)) for _ in range(count)]
    fields = [np.sin(a * x + b * y * 2 + 3 * c) * 1.4 + d * 0.7 for a, b, c, d in waves]
    return [{"image": field[None].astype(np.float32)} for field in fields]


def kinds(samples: list[Feeds], **more: object) -> list[str]:
    return [finding.kind for finding in check(samples, **more).findings]


def check(samples: list[Feeds], **more: object) -> DataCheck:
    return check_samples(samples, signature=PICTURE, **more)  # type: ignore[arg-type]


def test_clean_samples_raise_no_alarm() -> None:
    found = check(smooth(12), normalized=True)
    assert not found.findings
    assert found.count == 12
    everything = np.concatenate([feeds["image"] for feeds in smooth(12)]).astype(np.float64)
    assert found.inputs["image"].std == pytest.approx(everything.std())


def test_copies_are_named_with_what_they_copy() -> None:
    samples = smooth(9)
    samples[5], samples[8] = samples[2], {"image": samples[2]["image"].copy()}
    (finding,) = check(samples).findings
    assert (finding.kind, finding.samples, finding.count) == ("duplicate", (5, 8), 2)
    assert "5 = 2, 8 = 2" in finding.text


def test_a_blank_sample_is_named() -> None:
    samples = smooth(9)
    samples[4]["image"][:] = 0.25
    (finding,) = check(samples).findings
    assert (finding.kind, finding.samples) == ("constant", (4,))


def test_raw_pixels_are_no_input_for_a_network_that_does_not_scale_them() -> None:
    pixels = [{"image": np.clip(feeds["image"] * 60 + 120, 0, 255)} for feeds in smooth(6)]
    (finding,) = check(pixels).findings
    assert finding.kind == "normalization"
    assert "raw 8-bit pixels" in finding.text
    assert not kinds(pixels, expected={"image": (127.0, 64.0)})


def test_a_model_that_scales_pixels_itself_gets_no_small_numbers() -> None:
    assert kinds(smooth(6), expected={"image": (127.0, 64.0)}) == ["normalization"]


def test_values_scaled_twice_are_found() -> None:
    assert kinds([{"image": (feeds["image"] / 255 - 0.5)} for feeds in smooth(6)]) == ["normalization"]


def test_values_between_0_and_1_are_wrong_only_where_mean_and_std_are_declared() -> None:
    unit = [{"image": np.clip(feeds["image"] / 5 + 0.5, 0, 1)} for feeds in smooth(6)]
    assert not kinds(unit)
    assert kinds(unit, normalized=True) == ["normalization"]


def test_channels_last_are_found_by_shape() -> None:
    swapped = [{"image": np.ascontiguousarray(feeds["image"].transpose(0, 2, 3, 1))} for feeds in smooth(4)]
    (finding,) = check(swapped).findings
    assert (finding.kind, finding.count) == ("layout", 4)


def _photographs() -> list[np.ndarray]:
    from PIL import Image

    with zipfile.ZipFile(DATA / "imagenet_sample" / "val.zip") as archive:
        names = [name for name in archive.namelist() if name.lower().endswith((".jpg", ".jpeg"))][:12]
        pictures = [Image.open(io.BytesIO(archive.read(name))).convert("RGB").resize((96, 96)) for name in names]
    return [(np.asarray(picture, np.float32) - 127) / 64 for picture in pictures]


@pytest.mark.real
def test_photographs_that_were_reshaped_instead_of_transposed_are_found() -> None:
    need("data")
    right = [{"image": np.ascontiguousarray(picture.transpose(2, 0, 1))[None]} for picture in _photographs()]
    wrong = [{"image": picture.reshape(1, 3, 96, 96)} for picture in _photographs()]
    assert not kinds(right)
    assert kinds(wrong) == ["layout"]


def test_no_samples_are_an_error() -> None:
    with pytest.raises(DataError, match="no calibration samples"):
        check([])
