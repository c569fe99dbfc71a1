"""Calibration as a stream: any number and shape of samples, little memory, several passes, resumed after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeexport import graph
from edgeexport.errors import DataError, MachineError
from edgeexport.quantization import calibrate, room, unfinished
from edgeexport.records.base import from_json, to_json
from edgeexport.records.ranges import Ranges
from tests.quantization.nets import Net, pictures, small_mobilenet, small_resnet

METHODS = ["minmax", "percentile", "entropy", "mse"]
Feeds = dict[str, np.ndarray]


class Lazy:
    """Samples made when they are asked for; notes which were."""

    def __init__(self, count: int, make: Callable[[int], Feeds] | None = None) -> None:
        self.count, self.asked = count, []
        self.make = make or (lambda index: pictures(1, seed=index)[0])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Feeds:
        self.asked.append(index)
        return self.make(index)

    def __iter__(self) -> Iterator[Feeds]:
        return (self[index] for index in range(self.count))


def ranges_of(path: Path, samples: Any, method: str = "minmax", **more: Any) -> Ranges:
    return calibrate(path, samples, method=method, samples_digest="sha256:0", **more)


def any_size(path: Path) -> Path:
    """A convolutional net whose batch, height and width are free."""
    net = Net()
    x = net.put("Relu", net.conv("image", 3, 8))
    x = net.put("Relu", net.conv(x, 8, 8))
    net.gemm(net.put("Flatten", net.put("GlobalAveragePool", x)), 8, 4)
    model = graph.load(net.save(path))
    free = helper.make_tensor_value_info("image", TensorProto.FLOAT, ("batch", 3, "height", "width"))
    model.graph.input[0].CopyFrom(free)
    del model.graph.value_info[:]
    graph.save(model, path)
    return path


def mixed_shapes(count: int) -> list[Feeds]:
    random = np.random.default_rng(1)
    shapes = [(*random.integers(1, 4, 1), 3, *random.integers(4, 40, 2)) for _ in range(count)]
    return [{"image": random.standard_normal(shape).astype(np.float32)} for shape in shapes]


@pytest.mark.parametrize("method", METHODS)
def test_batches_and_sizes_may_vary_from_sample_to_sample(method: str, tmp_path: Path) -> None:
    path, samples = any_size(tmp_path / "net.onnx"), mixed_shapes(12)
    ranges = ranges_of(path, samples, method)
    assert ranges.count == 12
    seen = ranges.tensors["image"]
    assert seen.seen_high == max(float(feeds["image"].max()) for feeds in samples)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_counts_like_its_samples_one_by_one(method: str, tmp_path: Path) -> None:
    path, samples = small_mobilenet(tmp_path / "net.onnx"), pictures(8)
    batch = {"image": np.concatenate([feeds["image"] for feeds in samples])}
    single, together = ranges_of(path, samples, method).tensors, ranges_of(path, [batch], method).tensors
    for name, item in single.items():
        assert item.high == pytest.approx(together[name].high, rel=1e-5, abs=1e-5), name


def crowd(monkeypatch: pytest.MonkeyPatch, samples: list[Feeds]) -> None:
    """Let a process under a limit of 10 MB seem to have room for the largest tensor of `any_size`, not for two."""
    largest = max(feeds["image"].size for feeds in samples) // 3 * 8 * 4
    monkeypatch.setattr(room, "_BYTES_A_HISTOGRAM", 0)
    monkeypatch.setattr(room, "_WORKING_TENSORS", 0)
    monkeypatch.setattr(room, "resident", lambda: 10_000_000 - 24_000 - largest)


@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_several_passes_under_a_limit_give_the_same_ranges(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, samples = any_size(tmp_path / "net.onnx"), mixed_shapes(12)
    whole, lazy = ranges_of(path, samples, method), Lazy(12, lambda index: samples[index])
    crowd(monkeypatch, samples)
    limited = ranges_of(path, lazy, method, memory_limit_mb=10)
    assert to_json(limited) == to_json(whole)
    assert (len(lazy.asked) > 14) == (method != "minmax"), lazy.asked


def test_what_can_be_read_only_once_is_refused_before_the_start_when_it_must_be_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, samples = any_size(tmp_path / "net.onnx"), [{"image": np.ones((3, 3, 40, 40), np.float32)}] * 3
    crowd(monkeypatch, samples)
    with pytest.raises(DataError, match=r"sample 0: .*memory_limit_mb = 10.*can be read once"):
        ranges_of(path, iter(samples), "entropy", memory_limit_mb=10)
    assert ranges_of(path, iter(samples), "entropy").count == 3


def test_a_limit_below_what_the_process_holds_is_refused_with_both_values(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"memory_limit_mb = 5 .* takes \d+ MB already"):
        ranges_of(small_resnet(tmp_path / "net.onnx"), pictures(2), "mse", memory_limit_mb=5)


@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_a_nan_that_arises_inside_the_model_in_one_sample_is_named(method: str, tmp_path: Path) -> None:
    net = Net()
    root = net.put("Sqrt", net.put("Add", net.conv("image", 3, 4), net.store(np.float32(1e4))))
    net.conv(net.put("Relu", root), 4, 4)
    path = net.save(tmp_path / "net.onnx")
    samples = pictures(20)
    samples[13]["image"] *= -1e6
    samples[13]["image"][0, :, 8, 8] = 1e7
    with pytest.raises(DataError, match=r"calibration sample 13, tensor .* values are not finite"):
        ranges_of(path, samples, method)


def test_finite_values_with_a_sum_that_overflows_are_no_error(tmp_path: Path) -> None:
    net = Net()
    net.conv(net.put("Mul", "image", net.store(np.float32(1e37))), 3, 4, size=1)
    model_path = net.save(tmp_path / "net.onnx")
    feeds = {"image": np.full((1, 3, 16, 16), 1.0, np.float32)}
    assert max(item.high for item in ranges_of(model_path, [feeds]).tensors.values()) > 9e36


@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_an_interrupted_calibration_goes_on_where_it_was_to_the_same_bits(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfinished, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(unfinished, "_SAVE_RATIO", 0.0)
    path, state = small_mobilenet(tmp_path / "net.onnx"), tmp_path / "state"

    def broken(index: int) -> Feeds:
        if index == 7:
            raise KeyboardInterrupt
        return pictures(1, seed=index)[0]

    with pytest.raises(KeyboardInterrupt):
        ranges_of(path, Lazy(12, broken), method, state=state)
    rest = Lazy(12)
    resumed = ranges_of(path, rest, method, state=state)
    assert rest.asked == list(range(7, 12))
    assert to_json(resumed) == to_json(ranges_of(path, Lazy(12), method))


def test_methods_with_histograms_share_what_was_collected(tmp_path: Path) -> None:
    path, again = small_mobilenet(tmp_path / "net.onnx"), Lazy(6)
    ranges_of(path, Lazy(6), "entropy", state=tmp_path)
    shared = ranges_of(path, again, "mse", state=tmp_path)
    assert not again.asked
    assert to_json(shared) == to_json(ranges_of(path, Lazy(6), "mse"))


@pytest.mark.parametrize("change", ["model", "method", "samples", "damage"])
def test_the_state_of_something_else_is_ignored(change: str, tmp_path: Path) -> None:
    path, state, samples = small_mobilenet(tmp_path / "net.onnx"), tmp_path / "state", Lazy(4)
    ranges_of(path, Lazy(4), "entropy", state=state)
    if change == "model":
        path = small_resnet(tmp_path / "net.onnx")
    if change == "damage":
        (state / unfinished.NAME).write_bytes((state / unfinished.NAME).read_bytes()[:-900])
    digest = "sha256:1" if change == "samples" else "sha256:0"
    method = "minmax" if change == "method" else "entropy"
    calibrate(path, samples, method=method, samples_digest=digest, state=state)
    assert samples.asked == list(range(4))


KILLED = """
import sys, time
from pathlib import Path
from edgeexport.quantization import calibrate, unfinished
from edgeexport.records.base import to_json
from tests.quantization.nets import pictures
unfinished.SAVE_SECONDS = unfinished._SAVE_RATIO = 0.0
class Slow:
    def __len__(self): return 60
    def __getitem__(self, index):
        print(index, flush=True)
        time.sleep(float(sys.argv[3]))
        return pictures(1, seed=index)[0]
    def __iter__(self): return (self[index] for index in range(60))
found = calibrate(Path(sys.argv[1]), Slow(), method="entropy", samples_digest="sha256:0", state=Path(sys.argv[2]))
Path(sys.argv[2], "ranges.json").write_bytes(to_json(found))
"""


@pytest.mark.faults
def test_a_killed_process_loses_little(tmp_path: Path) -> None:
    path, state = small_mobilenet(tmp_path / "net.onnx"), tmp_path / "state"
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(path), str(state)]
    process = subprocess.Popen([*command, "0.03"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    until = time.monotonic() + 60
    for line in process.stdout:
        if int(line) >= 20 or time.monotonic() > until:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    done = subprocess.run([*command, "0"], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[0]) > 3
    resumed = from_json((state / "ranges.json").read_bytes(), Ranges, origin="test")
    assert to_json(resumed) == to_json(ranges_of(path, Lazy(60), "entropy"))


def test_many_samples_are_no_matter(tmp_path: Path) -> None:
    net = Net()
    net.conv(net.put("Relu", net.conv("image", 3, 4)), 4, 4)
    path, sample = net.save(tmp_path / "net.onnx"), pictures(1)[0]
    assert ranges_of(path, Lazy(3000, lambda _: sample), "percentile").count == 3000
