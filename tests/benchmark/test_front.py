"""`bench`, `report` and `tune` by the command line, on real tiny models in real processes."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import edgeexport
from edgeexport import devices
from edgeexport.benchmark import opened, read_records
from edgeexport.benchmark import run as run_module
from edgeexport.benchmark import tuning as tuning_module
from edgeexport.benchmark.front import Benched
from edgeexport.benchmark.gating import gate
from edgeexport.benchmark.storage import raw_launches
from edgeexport.bundles import unpack
from edgeexport.cli import main
from edgeexport.errors import DataError, DeviceError, RequestError
from edgeexport.records.device import DeviceFacts
from edgeexport.records.measurement import Comparison, Interval
from edgeexport.terminal import show_bench
from edgeexport.validation.measure import Subject
from tests.benchmark.records import entry, record
from tests.bundles.making import make
from tests.needs import need

FACTS = DeviceFacts("scripted", "aarch64", "c", (), 4, "linux", "k", "3.11", capacities=(400, 400, 1024, 1024))


def test_a_model_is_measured_kept_judged_and_drawn(model: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "r.json"
    assert main(["bench", str(model), "--mode", "smoke", "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    kept = read_records(out)[0]
    entry = kept.entries[0]
    assert printed["entries"][0]["measurement"]["latency"]["median_ms"]["value"] > 0
    assert entry.measurement.conditions.inputs == "random inputs (seed 0)"
    assert len(raw_launches(out, entry)[0].iterations_ns) >= 10
    assert {node.op for node in entry.nodes} >= {"MatMul"} or entry.nodes
    assert entry.energy.reason.startswith("not measured")
    gated = ["bench", str(model), "--mode", "smoke", "--gate", "5%", "--against", str(out)]
    assert main(gated) == 4
    assert "not measured: m.onnx: latency: " in capsys.readouterr().err
    assert main(["report", str(out), "--out", str(tmp_path / "p.html")]) == 0
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 4
    assert "http" not in page.replace("http-equiv", "")


def test_processors_are_those_asked_for_and_an_accelerator_that_is_not_there_is_no_measurement(
    model: Path, capsys: Any
) -> None:
    assert main(["bench", str(model), "--mode", "smoke", "--affinity", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["entries"][0]["measurement"]["conditions"]
    assert (found["affinity"], found["accelerator"]) == ([0], "CPUExecutionProvider")
    assert main(["bench", str(model), "--mode", "smoke", "--accelerator", "CUDAExecutionProvider"]) == 4
    assert "CUDAExecutionProvider" in capsys.readouterr().err
    assert main(["bench", str(model), "--affinity", "big"]) == 2


def test_one_file_under_several_labels_is_compared_under_each(tmp_path: Path, monkeypatch: Any) -> None:
    labels, valid = ("a.bundle", "broken", "tuned", "tuned (2)"), (True, False, True, True)
    measured = [entry(label=label, valid=good).measurement for label, good in zip(labels, valid, strict=True)]
    subjects = [Subject(label, tmp_path / "m.onnx", "sha256:33", "ort", {}) for label in labels]
    found = [Comparison("sha256:33", "sha256:33", Interval(ratio), "no difference shown") for ratio in (0.9, 1.1)]

    def measure(*_: Any, keep: Path, **__: Any) -> Any:
        keep.mkdir(parents=True, exist_ok=True)
        for number in range(len(subjects)):
            (keep / f"{number}.json").write_text(str(number), encoding="utf-8")
        return measured, found

    monkeypatch.setattr(run_module, "measure", measure)
    monkeypatch.setattr(run_module, "_entry", lambda *_, **__: entry())
    left = tmp_path / "raw" / ".0" / "9.json"  # of a bench that was killed
    left.parent.mkdir(parents=True)
    left.touch()
    compared = run_module.bench(subjects, keep=tmp_path / "raw").compared
    named = [(each.baseline, each.candidate, each.comparison.ratio.value) for each in compared]
    assert named == [("a.bundle", "tuned", 0.9), ("a.bundle", "tuned (2)", 1.1)]


def test_a_raw_file_that_was_changed_is_not_drawn(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    assert main(["bench", str(model), "--mode", "smoke", "--out", str(out)]) == 0
    raw = next((tmp_path / "r.json.raw").iterdir())
    raw.write_bytes(raw.read_bytes() + b" ")
    assert raw_launches(out, read_records(out)[0].entries[0]) == []
    assert main(["report", str(out), "--out", str(tmp_path / "p.html")]) == 0
    assert "The raw launches are not beside the record" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_the_next_step_is_for_what_went_wrong() -> None:
    noisy = entry(valid=False, reasons=("launches lie 40% apart",))
    emulated = msgspec.structs.replace(noisy, device="emulated:armv8.0")
    lone = record(entry(medians=(1.0,)))
    few = gate(lone, lone, allowed=0.05)
    assert few[0].state == "unproven"
    steps = []
    for found in (Benched(record(noisy), ()), Benched(record(emulated), ()), Benched(lone, few)):
        with pytest.raises(DeviceError) as caught:
            found.raise_faults()
        steps.append(caught.value.next_step)
    assert steps[0].startswith("stop other programs")
    assert steps[1].startswith("instructions are counted on emulated:armv8.0")
    assert steps[2] == "measure both in more launches: --mode quick or official"


def test_figures_that_do_not_speak_for_a_bundles_target_say_so_in_the_table(tmp_path: Path, capsys: Any) -> None:
    need("ort")
    here, shown = platform.machine(), []
    with opened([make(tmp_path)]) as (subject,):
        for arch in (here, "riscv64"):
            target = msgspec.structs.replace(subject.target, arch=arch)
            made_for = replace(subject, target=target)
            found = run_module._warned(entry().measurement, made_for, device=devices.get("local"))
            show_bench(record(msgspec.structs.replace(entry(), measurement=found)), (), as_json=False)
            shown.append(" ".join(capsys.readouterr().out.split()))
    assert "not for its target" not in shown[0]
    assert f"not for its target, desk: local is {here}, the target is riscv64" in found.warnings
    assert "not for its target" in shown[1]


@pytest.mark.usefixtures("short_mode")
def test_throughput_is_swept_over_batch_and_threads(model: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "BATCHES", (1, 4))
    monkeypatch.setattr(run_module, "SWEEP_LAUNCHES", 1)
    assert main(["bench", str(model), "--mode", "smoke", "--throughput", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["entries"][0]["throughput"]
    assert {row["batch"] for row in rows} == {1, 4}
    assert all(row["least"] <= row["samples_per_second"] <= row["most"] for row in rows)


def test_a_bundle_brings_its_goldens_and_options(tmp_path: Path) -> None:
    need("ort")
    with opened([make(tmp_path)]) as subjects:
        assert subjects[0].inputs_are == "goldens"
        assert len(subjects[0].goldens) == len(subjects[0].samples()) == 2
        assert subjects[0].tolerance == {"y": 1e-4}
        assert subjects[0].options == {"config_entries": {"session.set_denormal_as_zero": "1"}}
        assert subjects[0].path.exists()


def test_two_files_of_one_name_get_two_labels(tmp_path: Path) -> None:
    need("ort")
    with opened([make(tmp_path / "a"), make(tmp_path / "b")]) as subjects:
        assert [subject.label for subject in subjects] == ["tiny.bundle (1)", "tiny.bundle (2)"]


def test_samples_of_an_npz_are_taken_one_by_one_and_named_in_the_record(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", anything=np.ones((3, 128), np.float64))
    with opened([model], samples=tmp_path / "s.npz") as subjects:
        assert [feeds["x"].shape for feeds in subjects[0].samples()] == [(1, 128)] * 3
        assert subjects[0].samples()[0]["x"].dtype == np.float32
        assert subjects[0].inputs_are.startswith("s.npz sha256:")


def test_what_cannot_be_opened_is_refused(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", a=np.ones(3), b=np.ones(3))
    with pytest.raises(DataError, match="needs"), opened([model], samples=tmp_path / "s.npz"):
        pass
    with pytest.raises(RequestError, match="no such file"), opened([tmp_path / "gone.onnx"]):
        pass
    with pytest.raises(RequestError, match="no runtime opens"), opened([tmp_path / "m.pt"]):
        pass
    assert main(["bench", str(model), "--gate", "5%"]) == 2


@pytest.mark.usefixtures("short_mode")
def test_tune_tries_each_setting_and_writes_what_is_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("ort")
    bundle, out = make(tmp_path), tmp_path / "tuned.bundle"
    plain = tuning_module.measure

    def scripted(subjects: list[Subject], **more: Any) -> Any:
        """Measure for real, and say that the arena makes it slow and the rest makes no difference."""
        measured, _ = plain(subjects, **{**more, "mode": "smoke"})
        off = [not subject.options.get("enable_cpu_mem_arena", True) for subject in subjects]
        return measured, [
            Comparison("a", "b", Interval(0.8, 0.7, 0.9), "faster")
            if faster
            else Comparison("a", "b", Interval(1.0, 0.9, 1.1), "no difference shown")
            for faster in off[1:]
        ]

    monkeypatch.setattr(tuning_module, "measure", scripted)
    tuning = edgeexport.tune(bundle, out=out)
    assert tuning.changed
    assert [(trial.setting, trial.value) for trial in tuning.trials if trial.kept] == [("arena", "off")]
    assert {trial.setting for trial in tuning.trials} >= {"arena", "optimization level"}
    verified = edgeexport.verify(out)
    assert verified.holds, verified.differences
    unpack(out, tmp_path / "unpacked")
    kept = json.loads((tmp_path / "unpacked" / "records" / "tuning.json").read_bytes())
    assert (kept["bundle"], kept["out"], tuning.out) == ("tiny.bundle", "tuned.bundle", str(out))
    with opened([out]) as subjects:
        assert subjects[0].options["enable_cpu_mem_arena"] is False
        assert "config_entries" in subjects[0].options


@pytest.mark.usefixtures("short_mode")
def test_tune_writes_nothing_where_nothing_is_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("ort")
    same = [Comparison("a", "b", Interval(1.0, 0.9, 1.1), "no difference shown")] * 8
    plain = tuning_module.measure
    monkeypatch.setattr(
        tuning_module, "measure", lambda subjects, **more: (plain(subjects, **{**more, "mode": "smoke"})[0], same)
    )
    assert main(["tune", str(make(tmp_path)), "--out", str(tmp_path / "t.bundle")]) == 0
    assert not (tmp_path / "t.bundle").exists()


def test_tune_places_threads_where_processors_differ() -> None:
    subject = Subject("m", Path("m.onnx"), "", "ort", {}, threads=2)
    assert tuning_module._settings(subject, FACTS) == ("threads", "processors", "optimization level", "arena")
    choice = next(tuning_module._choices("processors", subject, facts=FACTS))
    assert choice.value == "4"
    assert choice.subject.options == {"config_entries": {"session.intra_op_thread_affinities": "4"}}
    fewer = next(tuning_module._choices("threads", choice.subject, facts=FACTS)).subject
    assert fewer.options == {"config_entries": {}}


def test_from_python_a_lone_text_is_a_device_a_file_or_a_folder_and_never_letters(model: Path, tmp_path: Path) -> None:
    with opened(str(model)) as subjects:
        found = edgeexport.bench(subjects, on="local", keep=str(tmp_path / "raw"), mode="smoke")
    assert [each.device for each in found.entries] == ["local"]
    assert list((tmp_path / "raw").glob("*.json"))
    measured, _ = edgeexport.measure(str(model), samples=[{"x": np.ones((1, 128), np.float32)}], mode="smoke")
    assert [each.label for each in measured] == ["m.onnx"]


def test_one_launch_claims_nothing_about_a_difference(model: Path, capsys: Any) -> None:
    assert main(["bench", str(model), str(model), "--mode", "smoke"]) == 0
    told = capsys.readouterr().out
    assert "too few launches to say" in told
    assert "no difference shown" not in told
