"""What the benchmarks of compression stand on: their front-end, their costs, what they keep, and how they cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import edgeexport
from edgeexport.records.measurement import Interval
from edgeexport.records.recipe import Training
from edgeexport.records.training import TrainingRecord
from edgeexport.training import TrainingData, resolve_loss, train
from edgeexport.workspace import Workspace
from tests.benchmarks import kept, keyword
from tests.benchmarks import resnet56 as benchmark
from tests.benchmarks.beside import TRIES, ratios
from tests.benchmarks.cost import step_costs
from tests.benchmarks.kept import trained
from tests.benchmarks.mixing import cut_mixed
from tests.benchmarks.muon import OTHERS, muon, orthogonal
from tests.benchmarks.qat_rescue import moved_integers
from tests.benchmarks.resnet56 import SOURCES, AskedTwice, Mirrored, chosen, cut, planned, spread, taught
from tests.benchmarks.sides import results, sides
from tests.real import keywords

SOURCE = SOURCES["resnet56"]
WHOLE = (9, 9, 9)


def test_the_log_mel_front_end_in_two_steps_equals_a_plain_fourier_transform() -> None:
    audio = np.random.default_rng(0).standard_normal((2, keywords.SAMPLES)).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(audio, keywords.FRAME, axis=1)[:, :: keywords.HOP]
    powers = np.abs(np.fft.rfft(frames * np.hanning(keywords.FRAME))) ** 2
    wanted = np.log(powers @ keywords._mel_filters().T + 1e-4).transpose(0, 2, 1)
    found = keywords.LogMel()(torch.from_numpy(audio)).numpy()
    np.testing.assert_allclose(found[:, 0], wanted, atol=1e-4)


def test_costs_of_steps_are_taken_once_for_the_same_trainings_and_kept(tmp_path: Path) -> None:
    data = TrainingData(np.zeros((64, 2), np.float32), np.zeros(64, np.int64))
    seen: list[int] = []
    trainings = {"count": lambda few: seen.append(len(few))}
    first = step_costs(tmp_path, trainings, data=data, batch_size=4, key={"epochs": 1})
    assert set(seen[1:]) == {16}
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text(encoding="utf-8")) == first
    seen.clear()
    assert step_costs(tmp_path, trainings, data=data, batch_size=4, key={"epochs": 1}) == first
    assert seen == []
    step_costs(tmp_path, trainings, data=data, batch_size=4, key={"epochs": 2})
    assert seen


def test_varied_clips_keep_their_shape_have_silence_in_them_and_repeat_with_the_seed() -> None:
    clips = np.random.default_rng(0).uniform(0.1, 1, (8, keywords.SAMPLES)).astype(np.float32)
    one, same, other = (keywords.varied(clips, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (one.shape, one.dtype) == (clips.shape, clips.dtype)
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1
    tenths = np.lib.stride_tricks.sliding_window_view(one, keywords.RATE // 10, axis=1)
    assert (tenths[:, ::10].std(axis=2).min(axis=1) < 0.25 * one.std(axis=1)).all()


def test_equalized_clips_have_smooth_gains_and_half_of_them_lack_a_band() -> None:
    clips = np.random.default_rng(0).standard_normal((64, keywords.SAMPLES)).astype(np.float32)
    one, same = (keywords.equalized(clips, np.random.default_rng(1)) for _ in range(2))
    assert (one.shape, one.dtype) == (clips.shape, clips.dtype)
    np.testing.assert_array_equal(one, same)
    decibels = 20 * np.log10(np.abs(np.fft.rfft(one) / np.fft.rfft(clips)))[:, 1:-1]
    lacking = np.abs(decibels + 40) < 0.5
    assert 0.25 < (lacking.any(axis=1)).mean() < 0.75
    assert (lacking.sum(axis=1) < 0.5 * lacking.shape[1]).all()
    whole = decibels[~lacking.any(axis=1)]
    assert 2.5 < whole.std() < 7.5
    assert np.abs(np.diff(whole, axis=1)).max() < 0.5


def test_half_of_the_mixed_clips_have_another_one_in_them_and_the_others_are_varied_ones() -> None:
    clips = np.random.default_rng(0).uniform(0.1, 1, (8, keywords.SAMPLES)).astype(np.float32)
    one, same, varied = (
        augment(clips, np.random.default_rng(1)) for augment in (keywords.mixed, keywords.mixed, keywords.varied)
    )
    assert (one.shape, one.dtype) == (clips.shape, clips.dtype)
    np.testing.assert_array_equal(one, same)
    np.testing.assert_array_equal(one[4:], varied[4:])
    for clip, own, other in zip(one[:4], varied, varied[::-1], strict=False):
        share = float(np.dot(clip - own, other - own) / np.dot(other - own, other - own))
        assert 0 < share < 1
        np.testing.assert_allclose(clip, own + share * (other - own), atol=1e-5)


def test_sides_have_one_thread_each_and_one_that_fails_is_told_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with sides() as pool:
        threads = [pool.submit(torch.get_num_threads) for _ in range(2)]
        assert results(threads) == [1, 1]
        with pytest.raises(ZeroDivisionError):
            results([pool.submit(divmod, 1, 1), pool.submit(divmod, 1, 0)])
    assert "failed: integer division" in capfd.readouterr().err


def test_a_network_that_was_trained_is_read_back_and_one_of_another_key_is_trained(tmp_path: Path) -> None:
    data = TrainingData(np.random.default_rng(0).random((32, 2), np.float32), np.arange(32) % 2)
    trainings: list[nn.Module] = []

    def fit(module: nn.Module, state: Path) -> TrainingRecord:
        trainings.append(module)
        return train(module, data, loss=resolve_loss("cross_entropy"), settings=Training(epochs=2), state=state)

    with Workspace(tmp_path) as work:
        one = trained(work, "net", key={"epochs": 2}, build=lambda: nn.Linear(2, 2), fit=fit)
        again = trained(work, "net", key={"epochs": 2}, build=lambda: nn.Linear(2, 2), fit=fit)
        trained(work, "net", key={"epochs": 3}, build=lambda: nn.Linear(2, 2), fit=fit)
    assert len(trainings) == 2
    torch.testing.assert_close(again.weight, one.weight, rtol=0, atol=0)
    torch.testing.assert_close(one.weight, trainings[0].weight, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "blocks"), [("resnet56", 9), ("resnet44", 7), ("resnet32", 5)])
def test_a_student_cut_from_its_source_has_blocks_of_it_and_leaves_it_whole(name: str, blocks: int) -> None:
    teacher = SOURCES[name].built().eval()
    for students in SOURCES[name].students:
        kept = spread(students, of=(blocks,) * 3)
        student = cut(teacher, kept)
        for stage in range(3):
            own, taken = getattr(student, f"layer{stage + 1}"), getattr(teacher, f"layer{stage + 1}")
            assert len(taken) == blocks
            assert len(own) == students[stage]
            for block, index in zip(own, kept[stage], strict=True):
                torch.testing.assert_close(block.conv1.weight, taken[index].conv1.weight, rtol=0, atol=0)
        assert student(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def offered(monkeypatch: pytest.MonkeyPatch, folder: Path, faster: dict[tuple[int, ...], float]) -> Path:
    """A source 11 times as large as any student, each of which is so many times faster."""
    current: list[tuple[int, ...]] = []

    def ship(student: Any, *_: object, **__: object) -> tuple[Path, Path]:
        current.append(tuple(len(stage) for stage in (student.layer1, student.layer2, student.layer3)))
        (folder / "int8.onnx").write_bytes(bytes(100))
        return folder, folder / "int8.onnx"

    monkeypatch.setattr(benchmark, "shipped", ship)
    monkeypatch.setattr(benchmark, "released", lambda of: of.built())
    monkeypatch.setattr(benchmark.Source, "written", lambda _: [])
    monkeypatch.setattr(benchmark, "speed_up", lambda *_, **__: faster[current[-1]])
    monkeypatch.setattr(benchmark, "_feeds", lambda *_: [])
    (folder / "source.onnx").write_bytes(bytes(1100))
    return folder / "source.onnx"


def test_the_student_is_the_largest_that_is_fast_enough_and_is_chosen_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = offered(monkeypatch, tmp_path, dict(zip(SOURCE.students, (5.4, 5.7, 6.6), strict=True)))
    data = TrainingData(np.zeros((1, 3, 32, 32), np.float32))
    wanted = spread(SOURCE.students[1], of=WHOLE)
    assert chosen(SOURCE, source, data=data, folder=tmp_path) == wanted
    monkeypatch.setattr(benchmark, "shipped", pytest.fail)
    assert chosen(SOURCE, source, data=data, folder=tmp_path) == wanted


@pytest.mark.parametrize(("faster", "said"), [
    ((5.4, 5.4, 5.4), r"no student is 10.0 x smaller and 5.5 x faster here: \(2, 5, 3\)"),
    ((float("nan"), 5.7, 6.6), r"\(2, 5, 3\) blocks could not be measured validly"),
])  # fmt: skip
def test_no_student_is_chosen_where_none_is_fast_enough_or_the_speed_is_not_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, faster: tuple[float, ...], said: str
) -> None:
    source = offered(monkeypatch, tmp_path, dict(zip(SOURCE.students, faster, strict=True)))
    data = TrainingData(np.zeros((1, 3, 32, 32), np.float32))
    for _ in range(2):  # and nothing is kept of it
        with pytest.raises(RuntimeError, match=said):
            chosen(SOURCE, source, data=data, folder=tmp_path)


@pytest.mark.parametrize("student_in", ["float32", "bfloat16"])
def test_both_sides_take_the_minutes_that_are_given_each_training_in_its_cheaper_precision(student_in: str) -> None:
    costs = {"tune float32": 2.0, "tune bfloat16": 1.5}
    for precision in ("float32", "bfloat16"):
        alone = 0.25 if precision == student_in else 0.5
        costs |= {f"alone {precision}": alone, f"distil {precision}": alone + 0.25}
    plan = planned(costs, steps=100)
    minutes = benchmark.MINUTES
    learning = plan.distil.training
    assert (plan.tune.precision, plan.control.precision, learning.precision) == ("bfloat16", "bfloat16", student_in)
    assert plan.control.epochs * 100 * 1.5 == pytest.approx(60 * minutes)
    assert learning.epochs > benchmark.VIEWS == learning.views
    spent = plan.tune.epochs * 1.5 + learning.epochs * 0.25 + benchmark.VIEWS * 0.25
    assert spent * 100 == pytest.approx(60 * minutes)


def test_a_student_with_less_time_than_the_views_take_is_taught_as_long_as_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(benchmark, "MINUTES", 1.0)
    names = (f"{name} {precision}" for name in ("tune", "alone", "distil") for precision in ("float32", "bfloat16"))
    plan = planned({name: 2.0 if name.startswith("distil") else 0.1 for name in names}, steps=3)
    assert plan.tune.epochs * 0.1 + plan.distil.training.epochs * 2.0 == pytest.approx(20)
    assert plan.distil.training.epochs < benchmark.VIEWS


def test_the_keyword_net_alone_gets_the_time_of_distilling() -> None:
    costs = {"distil": 3.0, "twice": 4.5, "alone": 0.5}
    later = keyword.DISTIL.training.epochs - keyword.VIEWS
    assert keyword.epochs_alone(costs) * 0.5 == pytest.approx(keyword.VIEWS * 3.0 + later * 1.5)


def measuring(valid: Callable[[str, int], bool], launched: list[list[str]]) -> Any:
    """A `measure` whose files are valid as told: (name, number of the measurement) -> whether."""

    def measure(models: list[Path], **_: object) -> tuple[list[Any], list[Any]]:
        launched.append([path.name for path in models])
        number = len(launched) - 1
        measured = [SimpleNamespace(valid=valid(path.name, number), reasons=("a neighbour",)) for path in models]
        others = zip(models[1:], measured[1:], strict=True)
        beside = [SimpleNamespace(ratio=Interval(float(path.stem))) for path, one in others if one.valid]
        return measured, beside if measured[0].valid else []

    return measure


def test_what_was_not_measured_validly_is_measured_again_beside_the_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[list[str]] = []
    disturbed = {("2.onnx", 0), ("1.onnx", 1)}
    monkeypatch.setattr(edgeexport, "measure", measuring(lambda *what: what not in disturbed, launched))
    found = ratios(Path("1.onnx"), [Path("2.onnx"), Path("3.onnx")], samples=[])
    assert [ratio.value for ratio in found if ratio] == [2.0, 3.0]
    assert launched == [["1.onnx", "2.onnx", "3.onnx"], ["1.onnx", "2.onnx"], ["1.onnx", "2.onnx"]]


def test_what_is_never_measured_validly_has_no_ratio_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launched: list[list[str]] = []
    monkeypatch.setattr(edgeexport, "measure", measuring(lambda name, _: name != "2.onnx", launched))
    assert ratios(Path("1.onnx"), [Path("3.onnx"), Path("2.onnx")], samples=[]) == [Interval(3.0), None]
    assert len(launched) == TRIES
    assert capsys.readouterr().err.count("2.onnx is not measured validly: a neighbour") == TRIES


def test_a_training_that_moves_no_integer_is_told_from_one_that_does(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("before.onnx", "same.onnx", "moved.onnx")]
    for path, last in zip(files, (3, 3, 4), strict=True):
        weight = np.array([[1, 2], [0, last]], np.int8)
        points = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.float32(0.1), "scale")]
        node = helper.make_node("DequantizeLinear", ["w", "scale"], ["y"])
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])
        onnx.save(helper.make_model(helper.make_graph([node], "net", [], [output], points)), path)
    assert [moved_integers(files[0], path) for path in files[1:]] == [0.0, 0.25]


def test_pieces_of_other_pictures_stand_in_half_of_the_mixed_ones_and_nothing_else_does() -> None:
    pictures = np.arange(1, 9, dtype=np.float32).reshape(8, 1, 1, 1) * np.ones((1, 3, 32, 32), np.float32)
    found = cut_mixed(pictures, np.random.default_rng(0))
    held = [set(np.unique(each)) - {0.0} for each in found]  # zeros come from outside of a shifted picture
    assert all(held[index] <= {index + 1, 8 - index} for index in range(4))
    assert any(len(each) == 2 for each in held[:4])
    assert held[4:] == [{5.0}, {6.0}, {7.0}, {8.0}]
    np.testing.assert_array_equal(found, cut_mixed(pictures, np.random.default_rng(0)))
    shares = [np.mean(each == 8 - index) for seed in range(50) for index, each in _mixed(pictures, seed)]
    assert 0.35 < float(np.mean(shares)) < 0.55  # half, less what fell on zeros


def _mixed(pictures: np.ndarray, seed: int) -> list[tuple[int, np.ndarray]]:
    return list(enumerate(cut_mixed(pictures, np.random.default_rng(seed))))[:4]


@pytest.mark.parametrize("shape", [(16, 144), (64, 16), (8, 8)])
def test_a_step_of_muon_is_nearly_orthogonal_and_points_as_the_gradient_does(shape: tuple[int, int]) -> None:
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonal(gradient)
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    inner = left.T @ found @ right.T
    torch.testing.assert_close(inner, torch.eye(len(inner)), atol=0.35, rtol=0)


def test_muon_steps_convolutions_by_their_size_and_the_rest_as_sgd_does() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))
    rest = [parameter for parameter in network.parameters() if parameter.ndim != 4]
    groups = [{"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": 0.1}]
    groups.append({"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0})
    before = [parameter.detach().clone() for parameter in rest]
    optimizer = muon(groups, 0.02)
    twins = [nn.Parameter(each.clone()) for each in before]
    decays = [0.1 if each.ndim > 1 else 0.0 for each in twins]
    plain = torch.optim.SGD(
        [{"params": [twin], "weight_decay": decay} for twin, decay in zip(twins, decays, strict=True)],
        lr=0.02 * OTHERS,
        momentum=0.9,
        nesterov=True,
    )
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.randn(4, 3, 8, 8)).square().mean().backward()
        for twin, parameter in zip(twins, rest, strict=True):
            twin.grad = parameter.grad.clone() if parameter.grad is not None else None
        filters = network[0].weight.detach().clone()
        optimizer.step()
        plain.step()
        torch.testing.assert_close(rest, twins)
        step = network[0].weight - filters * (8**0.5 / filters.norm())
        sizes = torch.linalg.svdvals(step.detach().flatten(1) / 0.02)
        torch.testing.assert_close(sizes, torch.ones_like(sizes), atol=0.35, rtol=0)


def test_a_teacher_asked_twice_says_the_same_to_a_mirrored_picture_and_its_student_sees_both() -> None:
    torch.manual_seed(0)
    network, pictures = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 5)), torch.randn(64, 3, 4, 4)
    mirrored = pictures.flip(-1)
    twice = AskedTwice(network)
    torch.testing.assert_close(twice(pictures), (network(pictures) + network(mirrored)) / 2)
    torch.testing.assert_close(twice(pictures), twice(mirrored))
    student = Mirrored(network)
    told = student(pictures)
    plain, other = ((told == network(each)).all(1) for each in (pictures, mirrored))
    assert (plain ^ other).all()
    assert 16 < int(plain.sum()) < 48
    assert torch.equal(student.eval()(pictures), network(pictures))


def test_no_network_is_taken_for_one_of_other_code_another_checkpoint_or_other_pictures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("checkpoints/resnet56-0.th", "checkpoints/resnet32-0.th", "cifar10/train.zip"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(benchmark, "DATA", tmp_path)
    before = SOURCE.written()
    assert SOURCE.written() == before
    assert SOURCES["resnet32"].written() != before
    (tmp_path / "cifar10" / "train.zip").write_text("others")
    other_pictures = SOURCE.written()
    monkeypatch.setattr(benchmark, "__file__", __file__)
    assert len({*map(tuple, (before, other_pictures, SOURCE.written()))}) == 3
    with pytest.raises(SystemExit, match="no resnet44"):
        SOURCES["resnet44"].written()

    keys: list[tuple[str, str]] = []

    def heard(_: Any, name: str, *, key: Any, **__: Any) -> nn.Module:
        keys.append((name, json.dumps(key, sort_keys=True)))
        return nn.Identity()

    monkeypatch.setattr(benchmark, "trained", heard)
    monkeypatch.setattr(benchmark, "_in_onnxruntime", lambda teacher, _, **__: teacher)
    work: Any = SimpleNamespace(path=Path())
    nothing: Any = None
    plan = benchmark.Plan(benchmark.TUNE, benchmark.DISTIL, benchmark.TUNE)
    for made_by in (before, other_pictures):
        taught(SOURCE, work, data=nothing, kept=spread((2, 5, 3), of=WHOLE), plan=plan, made_by=made_by)
        benchmark.trained_on(SOURCE, work, data=nothing, plan=plan, made_by=made_by)
    assert [name for name, _ in keys] == ["teacher", "student", "control"] * 2
    assert len({*keys}) == 6


def test_costs_and_choices_are_not_those_of_another_tool_or_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = [kept.kept_file(tmp_path, "costs", key=0)]
    for name, other in (
        ("tool_digest", lambda: "another"),
        ("versions", lambda *names: dict.fromkeys(names, "0")),
        ("host_features", lambda: ("avx2",)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(kept, name, other)
            found.append(kept.kept_file(tmp_path, "costs", key=0))
    assert len({*found}) == 4
    assert kept.kept_file(tmp_path, "costs", key=0) == found[0]
