"""Every target under targets/ loads, says what it is, and asks for the numbers that its CPU can compute."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgeexport import demo
from edgeexport.devices.protocol import feature_gap
from edgeexport.errors import RecipeError
from edgeexport.records.target import load_target, target_names
from tests.needs import ROOT

EXPECTED = {  # activations, pairs of weights fitted to 16-bit sums
    "android-arm64": ("int8", False),
    "android-arm64-litert": ("int8", False),
    "linux-arm64": ("int8", False),
    "linux-x86_64-avx2": ("uint8", True),
    "linux-x86_64-avxvnni": ("uint8", False),
    "linux-x86_64-litert": ("int8", False),
    "linux-x86_64-vnni": ("uint8", False),
    "raspberry-pi-5": ("int8", False),
    "raspberry-pi-5-litert": ("int8", False),
}
# As arch/x86/include/asm/cpufeatures.h and arch/arm64/kernel/cpuinfo.c of Linux print them.
CPU_FEATURES = {
    "x86_64": {"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx_vnni"},
    "aarch64": {"fp", "asimd", "asimddp", "asimdhp", "fphp", "i8mm", "bf16", "sve"},
}
FORMATS = {"ort": {"onnx", "ort"}, "litert": {"tflite"}}


def test_the_targets_are_the_files_in_the_folder() -> None:
    assert target_names() == sorted(path.stem for path in (ROOT / "targets").glob("*.toml"))


@pytest.mark.parametrize("name", target_names())
def test_a_target_loads_under_the_name_of_its_file_and_says_what_it_is(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.title
    assert target.notes
    assert target.format in FORMATS[target.runtime]
    assert target.limits.max_drop is not None


@pytest.mark.parametrize("name", target_names())
def test_features_are_spelt_as_linux_spells_them(name: str) -> None:
    target = load_target(name)
    assert target.features
    assert set(target.features) <= CPU_FEATURES[target.arch]


@pytest.mark.parametrize(("name", "expected"), EXPECTED.items())
def test_number_formats_follow_from_the_cpu_and_the_runtime(name: str, expected: tuple[str, bool]) -> None:
    numbers = load_target(name).numbers()
    assert (numbers.activations, numbers.fit_pairs) == expected
    assert not numbers.reduce_range
    assert (numbers.weights, numbers.per_channel) == ("int8", True)


@pytest.mark.parametrize(
    ("features", "here"),
    [
        (("asimd",), "linux-arm64"),
        (("asimd", "asimddp"), "raspberry-pi-5"),
        (("avx2", "fma"), "linux-x86_64-avx2"),
        (("avx2", "avx_vnni"), "linux-x86_64-avxvnni"),
        (("avx2", "avx512_vnni"), "linux-x86_64-vnni"),
        (("avx2", "avx_vnni", "avx512_vnni"), "linux-x86_64-vnni"),
    ],
)
def test_the_demo_takes_the_target_that_this_cpu_can_judge(
    monkeypatch: pytest.MonkeyPatch, features: tuple[str, ...], here: str
) -> None:
    monkeypatch.setattr(demo, "host_features", lambda: features)
    assert demo.demo_targets()[0] == here
    target = load_target(here)
    missing, more = feature_gap((*features, *load_target("linux-x86_64-vnni").features[1:4]), target)
    assert not {"avx_vnni", "avx512_vnni", "asimddp"} & {*missing, *more}


def test_a_target_may_be_a_path(tmp_path: Path) -> None:
    text = (ROOT / "targets" / "linux-arm64.toml").read_text()
    (tmp_path / "my-phone.toml").write_text(text.replace('"asimd"', '"asimd", "asimddp"'))
    target = load_target(str(tmp_path / "my-phone.toml"))
    assert (target.name, target.features) == ("my-phone", ("asimd", "asimddp"))


@pytest.mark.parametrize(
    ("find", "replace", "said"),
    [
        ("threads", "thread", "did you mean `threads`"),
        ('"aarch64"', '"sparc"', "sparc"),
        ("max_drop", "max_dorp", "`limits.max_dorp`"),
        ('title = "', "title = ", "TOML"),
    ],
)
def test_a_target_that_says_nonsense_is_refused(tmp_path: Path, find: str, replace: str, said: str) -> None:
    text = (ROOT / "targets" / "linux-arm64.toml").read_text()
    (tmp_path / "bad.toml").write_text(text.replace(find, replace))
    with pytest.raises(RecipeError) as caught:
        load_target(str(tmp_path / "bad.toml"))
    assert re.search(re.escape(said), f"{caught.value} {caught.value.next_step}")


def test_an_unknown_target_names_the_known_ones() -> None:
    with pytest.raises(RecipeError) as caught:
        load_target("raspberry-pi-9")
    assert "raspberry-pi-5" in caught.value.next_step
