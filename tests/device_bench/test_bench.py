"""The program that runs on the device, started as a user would start it by hand."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.device_bench.tiny import BENCH, dense_model, job, run, sample, saved
from tests.needs import need

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def model(tmp_path: Path) -> Path:
    need("ort")
    return dense_model(tmp_path / "m.onnx")


@pytest.fixture
def golden(model: Path) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, sample())[0])


@pytest.fixture(scope="session")
def tflite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny .tflite: 8 numbers in, 8 out, made by litert-torch."""
    need("litert")
    path = tmp_path_factory.mktemp("tflite") / "m.tflite"
    code = (
        "import sys, torch, litert_torch\n"
        "torch.manual_seed(0)\n"
        "net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()).eval()\n"
        "litert_torch.convert(net, (torch.ones(1, 8),)).export(sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, timeout=300)
    return path


def test_it_is_written_in_python_3_8_and_imports_nothing_of_ours() -> None:
    tree = ast.parse(BENCH.read_text(encoding="utf-8"), feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(name.startswith(("edgeexport", "device_bench", "tests")) for name in imported)
    assert {name.partition(".")[0] for name in imported} <= {*sys.stdlib_module_names, "numpy"}


@pytest.mark.parametrize(
    ("line", "least"),
    [("x = 1", 0), ("'x'.removesuffix('y')", 1), ("zip((), (), strict=True)", 1), ("import tomllib", 1)],
)
def test_it_uses_nothing_that_came_after_python_3_8(line: str, least: int, tmp_path: Path) -> None:
    program = tmp_path / "bench.py"
    program.write_text(f"{BENCH.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    start = [sys.executable, "-c", "import vermin; vermin.main()"]
    command = [*start, "-t=3.8-", "--no-tips", "--no-parse-comments", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert min(done.returncode, 1) == least, done.stdout


def test_it_evaluates_nothing_that_came_after_python_3_8() -> None:
    text = BENCH.read_text(encoding="utf-8")
    assert _newer_than_3_8(text) == []
    assert _newer_than_3_8("x = dict[str, int]") == ["dict[...]"]
    assert _newer_than_3_8("x = name.removesuffix('y')") == ["removesuffix"]
    assert _newer_than_3_8("zip(a, b, strict=True)") == ["strict"]


def _newer_than_3_8(text: str) -> list[str]:
    """Generic builtins outside annotations and `if TYPE_CHECKING`, and methods and arguments that 3.8 does not have."""
    tree = ast.parse(text)
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        aside: list[ast.AST | None] = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        aside += [node] if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" else []
        skipped.update(inner for part in aside if part is not None for inner in ast.walk(part))
    found = []
    for node in set(ast.walk(tree)) - skipped:
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) in {"dict", "list", "tuple", "type", "set"}:
            found.append(f"{ast.unparse(node.value)}[...]")
        if isinstance(node, ast.Attribute) and node.attr in {"removeprefix", "removesuffix", "file_digest", "pairwise"}:
            found.append(node.attr)
        if isinstance(node, ast.keyword) and node.arg == "strict":
            found.append("strict")
    return found


def test_it_describes_a_machine_under_python_3_9() -> None:
    pypy = shutil.which("pypy3") or shutil.which("python3.8") or shutil.which("python3.9")
    if pypy is None:
        pytest.skip("no Python 3.8 or 3.9 here; Debian 12 has one as `pypy3`")
    done = subprocess.run([pypy, str(BENCH)], input='{"mode": "describe"}', capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["python"].startswith(("3.8", "3.9"))


def test_help_is_for_people_without_edgeexport() -> None:
    done = subprocess.run([sys.executable, str(BENCH), "--help"], capture_output=True, text=True, check=True)
    assert "python bench.py" in done.stdout
    assert "affinity" in done.stdout


def test_affinity_asked_for_is_affinity_had_and_both_are_said(model: Path) -> None:
    mine = sorted(os.sched_getaffinity(0))
    code, answer, _ = run(job("time", model, affinity=mine[:1]))
    assert code == 0, answer
    assert answer["affinity"] == {"requested": mine[:1], "actual": mine[:1]}
    assert run(job("time", model))[1]["affinity"] == {"requested": None, "actual": mine}
    code, answer, _ = run(job("time", model, affinity=[4096]))
    assert (code, answer["error"]["kind"]) == (1, "job")


def test_an_accelerator_that_is_not_there_is_not_what_is_said_to_have_run(model: Path) -> None:
    answer = run(job("time", model, accelerator="XnnpackExecutionProvider"))[1]
    assert "error" in answer or answer["accelerator"]["actual"] == "CPUExecutionProvider"


def test_a_profile_has_the_time_of_each_node(model: Path) -> None:
    answer = run(job("profile", model))[1]
    nodes = answer["profile"]["nodes"]
    assert {node["provider"] for node in nodes} == {"CPUExecutionProvider"}
    assert all(node["calls"] >= answer["profile"]["iterations"] and node["us"] >= 0 for node in nodes)
    assert {"MatMul", "Relu"} & {node["op"] for node in nodes} or "FusedGemm" in {node["op"] for node in nodes}


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program as a module that takes `tmp_path` for /sys."""
    spec = importlib.util.spec_from_file_location("bench_under_test", BENCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SYS", tmp_path)
    return module


def _system(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")


def test_conditions_are_read_from_the_system(program: Any, tmp_path: Path) -> None:
    found = program.conditions()
    assert (found["frequencies_khz"], found["temperatures_c"], found["plugged"]) == ([], {}, None)
    for core, khz in (("cpu0", "1800000"), ("cpu1", "900000")):
        _system(tmp_path / f"devices/system/cpu/{core}", cpufreq__scaling_cur_freq=khz, cpu_capacity="446")
    _system(tmp_path / "devices/system/cpu/cpu1/thermal_throttle", core_throttle_count="3")
    _system(tmp_path / "class/thermal/thermal_zone0", type="cpu-thermal", temp="61300")
    _system(tmp_path / "class/power_supply/BAT0", type="Battery", capacity="17")
    _system(tmp_path / "class/power_supply/usb", type="USB", online="1")
    found = program.conditions()
    assert found["frequencies_khz"] == [1_800_000, 900_000]
    assert found["temperatures_c"] == {"cpu-thermal thermal_zone0": 61.3}
    assert (found["battery_percent"], found["plugged"], found["throttle_events"]) == (17, True, 3)


def test_power_is_what_counters_gained_and_a_counter_that_wrapped_is_left_out(program: Any, tmp_path: Path) -> None:
    assert program.rails() == {}
    rapl, odpm = tmp_path / "class/powercap/intel-rapl:0", tmp_path / "bus/iio/devices/iio:device0"
    _system(rapl, name="package-0", energy_uj="5000000")
    _system(odpm, name="odpm", energy_value="t=1\nCH0(T=1)[VDD_CPU], 9000000\nCH1(T=1)[VDD_GPU], 1000000")

    def work() -> None:
        time.sleep(0.05)
        _system(rapl, energy_uj="6000000")
        _system(odpm, energy_value="t=2\nCH0(T=1)[VDD_CPU], 10000000\nCH1(T=1)[VDD_GPU], 3")

    found = program.watts(work)
    assert sorted(found) == ["odpm CH0(T=1)[VDD_CPU]", "package-0 intel-rapl:0/energy_uj"]
    assert all(power == pytest.approx(1 / seconds) for power, seconds in found.values())


def test_energy_is_not_measured_where_nothing_counts_it(program: Any, model: Path) -> None:
    assert program.energy_use(job("energy", model), None)["energy"]["reason"].startswith("not measured")


@pytest.mark.parametrize("mode", ["time", "memory"])
def test_a_warm_up_ends_when_its_time_is_up(mode: str, model: Path) -> None:
    endless = {"iterations": 10**9, "seconds": 10**6, "cap_seconds": 0.05}
    plans = {"warmup": endless} if mode == "time" else {"timed": endless}
    code, answer, _ = run({**job(mode, model), **plans})
    assert code == 0, answer
    done = answer["warmup"] if mode == "time" else answer["memory"]
    assert 0 < done["iterations"] < 10**6


def test_time_returns_raw_iterations_apart_from_load_first_and_warm_up(model: Path) -> None:
    code, answer, _ = run(job("time", model))
    assert code == 0
    assert len(answer["iterations_ns"]) == 20
    assert min(answer["iterations_ns"]) > 0
    assert answer["warmup"]["iterations"] == 2
    assert answer["load_ms"] > 0
    assert answer["first_ms"] > 0
    assert len(answer["sentinel"]["before_ns"]) == len(answer["sentinel"]["after_ns"]) == 12
    assert answer["threads"] == {"requested": 1, "actual": 1}
    assert answer["accelerator"] == {"requested": "CPUExecutionProvider", "actual": "CPUExecutionProvider"}


def test_reference_work_stands_between_iterations_and_outside_their_time(model: Path) -> None:
    timed = {"iterations": 40, "seconds": 0.05, "probe_seconds": 0.002}
    code, answer, _ = run({**job("time", model), "timed": timed})
    assert code == 0
    places = [place for place, _ in answer["probes"]]
    assert places == sorted(set(places))
    assert (places[0], places[-1]) == (0, len(answer["iterations_ns"]))
    assert min(spent for _, spent in answer["probes"]) > 0
    assert answer["timed"]["seconds"] >= 0.05


def test_no_reference_work_is_done_where_none_is_asked_for(model: Path) -> None:
    assert run(job("time", model))[1]["probes"] == []


def _noted(name: str, known: Callable[..., Any], *, order: list[str]) -> Callable[..., Any]:
    """The same function, which says that it was called."""

    def call(*given: Any, **more: Any) -> Any:
        order.append(name)
        return known(*given, **more)

    return call


def test_nothing_that_empties_the_caches_comes_between_warm_up_and_timing(model: Path, monkeypatch) -> None:
    """Collecting garbage there, or clearing memory for the times, made the first twenty iterations up to 3 × slower."""
    spec = importlib.util.spec_from_file_location("bench_in_here", BENCH)
    assert spec
    assert spec.loader
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    order: list[str] = []
    for place, name in [(bench.gc, "collect"), (bench, "room"), (bench, "warm_up"), (bench, "timed_loop")]:
        known = getattr(place, name)
        monkeypatch.setattr(
            place, name, lambda *given, of=known, by=name, **more: (order.append(by), of(*given, **more))[1]
        )
    bench.time_model(job("time", model), types.SimpleNamespace(stage=""))
    assert order[-2:] == ["warm_up", "timed_loop"]
    assert sorted(order[:-2]) == ["collect", "room"]


def test_outputs_are_those_of_the_runtime_and_carry_digests(model: Path, golden: np.ndarray, tmp_path: Path) -> None:
    code, answer, _ = run(job("outputs", model, outputs_to=str(tmp_path / "out")))
    assert code == 0
    written = answer["outputs"][0]["y"]
    assert written["digest"].startswith("sha256:")
    np.testing.assert_array_equal(np.load(tmp_path / "out" / written["file"]), golden)


def test_right_goldens_pass_and_say_how_far_off_they_were(model: Path, golden: np.ndarray, tmp_path: Path) -> None:
    expected = {"outputs": {"y": saved(tmp_path, "y.npy", golden)}, "tolerance": {"y": 1e-5}}
    code, answer, _ = run(job("time", model, goldens=[expected]))
    assert code == 0
    assert answer["goldens"]["checked"] == 1
    assert answer["goldens"]["max_abs"] <= 1e-5


@pytest.mark.parametrize("mode", ["time", "memory"])
def test_wrong_goldens_end_the_job_without_a_number(model: Path, golden: np.ndarray, tmp_path: Path, mode: str) -> None:
    wrong = {"outputs": {"y": saved(tmp_path, "y.npy", golden + 1)}, "tolerance": {"y": 0.5}}
    code, answer, _ = run(job(mode, model, goldens=[wrong]))
    assert code != 0
    assert answer["error"]["kind"] == "wrong_outputs"
    assert "allowed 0.5" in answer["error"]["message"]
    assert set(answer) == {"protocol", "error"}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"sha256": "sha256:" + "0" * 64}, "digest"),
        ({"runtime": "tensorrt"}, "job"),
        ({"mode": "dance"}, "job"),
        ({"inputs": []}, "job"),
        ({"inputs": [{"z": "x.npy"}]}, "job"),
        ({"model": "missing.onnx"}, "job"),
        ({"options": {"warp_drive": 1}}, "job"),
        ({"options": {"graph_optimization_level": "some"}}, "load"),
    ],
)
def test_a_job_that_cannot_be_done_is_refused_with_its_kind(model: Path, change: dict[str, Any], kind: str) -> None:
    if change.get("inputs"):
        change = {"inputs": [{"z": saved(model.parent, "x.npy", sample()["x"])}]}
    code, answer, _ = run({**job("time", model), **change})
    assert code != 0
    assert answer["error"]["kind"] == kind, answer


def test_a_file_that_is_no_model_is_an_error_of_loading(model: Path) -> None:
    model.write_bytes(b"not a model")
    code, answer, stderr = run(job("time", model))
    assert (code, answer["error"]["kind"]) == (1, "load")
    assert "Traceback" in stderr


def test_text_that_is_not_json_is_an_error_of_the_job() -> None:
    code, answer, _ = run(None, raw="mode=time")
    assert (code, answer["error"]["kind"]) == (1, "job")


def test_the_options_that_the_manifest_holds_are_understood(model: Path) -> None:
    entries = {"session.qdqisint8allowed": "1"}
    options = {"intra_op_num_threads": 2, "graph_optimization_level": "basic", "enable_cpu_mem_arena": False}
    code, answer, _ = run(job("time", model, options={**options, "config_entries": entries}))
    assert code == 0, answer
    assert answer["threads"]["actual"] == 1


def test_describe_needs_neither_numpy_nor_a_runtime() -> None:
    code = f"import sys, runpy; sys.argv = ['bench']; runpy.run_path({str(BENCH)!r}, run_name='__main__')"
    hidden = "import sys; sys.modules['numpy'] = None; sys.modules['onnxruntime'] = None; "
    done = subprocess.run(
        [sys.executable, "-P", "-c", hidden + code],
        input='{"mode": "describe"}',
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert '"arch": ' in done.stdout
    assert '"cores": ' in done.stdout


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads VmHWM, which Linux has")
def test_memory_does_not_inherit_the_peak_of_a_fat_parent(model: Path) -> None:
    ballast = np.ones(300 * 1024 * 1024, np.uint8)
    code, answer, _ = run(job("memory", model))
    assert ballast[-1] == 1
    assert code == 0
    memory = answer["memory"]
    assert memory["method"] == "VmHWM"
    assert memory["before_load_bytes"] <= memory["after_load_bytes"] <= memory["peak_bytes"]
    assert memory["peak_bytes"] < 250 * 1024 * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads VmHWM, which Linux has")
def test_memory_grows_by_what_the_model_holds(tmp_path: Path) -> None:
    need("ort")
    big = dense_model(tmp_path / "big.onnx", 2, width=2048)
    job_big = job("memory", big, inputs=[{"x": saved(tmp_path, "wide.npy", sample(width=2048)["x"])}])
    memory = run(job_big)[1]["memory"]
    assert memory["peak_bytes"] - memory["before_load_bytes"] > 2 * 2048 * 2048 * 4


def test_what_a_runtime_prints_on_stdout_goes_to_stderr(model: Path, tmp_path: Path) -> None:
    package = tmp_path / "noisy" / "tflite_runtime"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    noise = "import os\nprint('from python')\nos.write(1, b'from below\\n')\nraise ImportError('broken')\n"
    (package / "interpreter.py").write_text(noise)
    code, answer, stderr = run(job("time", model, runtime="tflite_runtime"), path=tmp_path / "noisy")
    assert (code, answer["error"]["kind"]) == (1, "runtime_missing")
    assert "from python" in stderr
    assert "from below" in stderr


def test_litert_models_run_by_tensor_and_by_signature_names(tflite: Path, tmp_path: Path) -> None:
    value = np.linspace(-1, 1, 8, dtype=np.float32)[None]
    inputs = [{"args_0": saved(tmp_path, "x8.npy", value)}]
    timed_plan = {"iterations": 10, "seconds": 0}
    base = {"runtime": "ai_edge_litert", "model": str(tflite), "inputs": inputs, "timed": timed_plan}
    code, answer, _ = run({**base, "mode": "outputs", "outputs_to": str(tmp_path / "out")})
    assert code == 0, answer
    entry = next(iter(answer["outputs"][0].values()))
    assert np.load(tmp_path / "out" / entry["file"]).shape == (1, 8)
    code, timed, _ = run({**base, "mode": "time"})
    assert code == 0, timed
    assert len(timed["iterations_ns"]) == 10
    assert run({**base, "mode": "memory"})[1]["memory"]["peak_bytes"] > 0


def test_tflite_runtime_is_accepted_where_it_is_installed() -> None:
    need("tflite-runtime")
    assert run({"mode": "describe", "runtime": "tflite_runtime"})[1]["runtime_version"]
