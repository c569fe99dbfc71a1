"""onnxruntime's quantize_static, Olive, NNCF and edgeexport on the same networks, in one run.

Each tool runs the script that its user would write (`*_static.py`, `ours.py`) in an environment of its own, on the
same fp32 file and the same pictures. EDGEEXPORT_PEERS and EDGEEXPORT_PEERS_MODELS restrict the run (comma-separated).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgeexport.runtimes.ort import EXACT_SUMS, open_session
from tests.benchmarks.bar import Bar
from tests.benchmarks.peers.environments import PEERS, python_of
from tests.benchmarks.peers.networks import NETWORKS, Network
from tests.needs import ROOT

HERE = Path(__file__).parent
SCRIPT_SECONDS = 600
# Without the exact sums that edgeexport asks for when it compares numbers.
AS_ITS_USER_RUNS_IT = {"config_entries": {EXACT_SUMS: "0"}}
RACE_SECONDS = {"resnet20": 15, "resnet56": 25, "lite0": 40}


def run() -> tuple[dict[str, Any], dict[str, Bar]]:
    """Compare all tools on all networks; the table goes to stderr."""
    names = chosen("EDGEEXPORT_PEERS_MODELS", list(NETWORKS))
    figures = {name: compared(name) for name in names}
    sys.stderr.write(table(figures))
    ran = [min(sum("reason" not in row for row in rows.values()) for rows in figures.values()) - 1]
    return figures, {"tools": Bar(ran[0], len(chosen("EDGEEXPORT_PEERS", list(PEERS))), "every tool ran", "min")}


def compared(name: str) -> dict[str, dict[str, Any]]:
    """Return the figures of one network: a row for fp32, then one for each tool; a tool that failed has a reason."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        network = NETWORKS[name](folder)
        rows = {"fp32": {"file": network.fp32}}
        rows |= {tool: _quantized(tool, network) for tool in chosen("EDGEEXPORT_PEERS", list(PEERS))}
        _judge(rows, network)
        _race(rows, network, seconds=RACE_SECONDS[name])
        for row in rows.values():
            if "reason" not in row:
                row["memory_mb"] = _child(Path(sys.executable), "memory.py", row["file"])["peak_mb"]
                row["bytes"] = row.pop("file").stat().st_size
                row["size_ratio"] = rows["fp32"]["bytes"] / row["bytes"]
    return rows


def table(figures: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return the figures as Markdown: a row for each tool; calibration, and what its user writes, of the last network.

    A cell is top-1 / agreement with fp32 / how many times smaller and faster than fp32 / peak memory in MB.
    """
    tools = list(dict.fromkeys(tool for rows in figures.values() for tool in rows))
    lines = [f"| tool | {' | '.join(figures)} | calibrated in | lines |", "|" + "---|" * (len(figures) + 3)]
    for tool in tools:
        title = PEERS[tool].title if tool in PEERS else tool
        rows = [found[tool] for found in figures.values()]
        lines.append(f"| {' | '.join([title, *map(_cell, rows), *_cost(rows[-1])])} |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any]) -> str:
    if "reason" in row:
        return str(row["reason"]).replace("|", "/")
    shares = [f"{100 * row[name]:.1f}" for name in ("top1", "agreement")]
    return " / ".join([*shares, f"{row['size_ratio']:.2f}× / {row['speedup']:.2f}×", f"{row['memory_mb']:.0f}"])


def _cost(row: dict[str, Any]) -> tuple[str, str]:
    spent = f"{row['seconds']:.0f} s, {row['peak_mb']:.0f} MB" if "seconds" in row else "–"
    return spent, str(row.get("lines", "–"))


def _quantized(tool: str, network: Network) -> dict[str, Any]:
    """Run a tool's script; return its file, seconds and peak memory, or the reason why there is none."""
    python, reason = python_of(tool)
    if python is None:
        return {"reason": reason}
    out = network.fp32.with_name(f"{tool}.onnx")
    sys.stderr.write(f"{network.fp32.stem}: {PEERS[tool].title}\n")
    cost = _child(python, PEERS[tool].script, network.fp32, network.calibration, out)
    if "reason" in cost or not out.is_file():
        return {"reason": cost.get("reason", "it wrote no file")}
    return {"file": out, "lines": PEERS[tool].lines, **cost}


def _child(python: Path, script: str, *arguments: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [str(python), str(HERE / "child.py"), str(result), str(HERE / script), *map(str, arguments)]
        quiet = {"OLIVE_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT) if python == Path(sys.executable) else ""}
        try:
            done = subprocess.run(
                command, cwd=folder, env={**os.environ, **quiet}, capture_output=True, text=True, check=False,
                timeout=SCRIPT_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"reason": f"not done within {SCRIPT_SECONDS} s"}
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1][:300]
            return {"reason": f"exit {done.returncode}: {last}"}
        cost: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return cost


def _judge(rows: dict[str, dict[str, Any]], network: Network) -> None:
    """Add top-1, and agreement with fp32, to every row that has a file."""
    answers: dict[str, Any] = {}
    for tool, row in rows.items():
        if "reason" in row:
            continue
        session = open_session(row["file"], threads=0, options=AS_ITS_USER_RUNS_IT)
        (image,), (logits,) = session.signature.inputs, session.signature.outputs
        parts = np.array_split(network.pictures, max(1, len(network.pictures) // 50))
        answers[tool] = np.concatenate([session.run({image.name: part})[logits.name].argmax(1) for part in parts])
        row["top1"] = float(np.mean(answers[tool] == network.labels))
        row["agreement"] = float(np.mean(answers[tool] == answers["fp32"]))


def _race(rows: dict[str, dict[str, Any]], network: Network, *, seconds: float) -> None:
    """Add microseconds, and the speed-up over fp32 (median of the rounds' ratios, with quartiles)."""
    running = {tool: row for tool, row in rows.items() if "reason" not in row}
    command = [sys.executable, str(HERE / "race.py"), str(seconds), str(network.calibration)]
    done = subprocess.run(
        [*command, *(str(row["file"]) for row in running.values())], capture_output=True, text=True, check=True
    )
    times = np.array(json.loads(done.stdout))
    for index, row in enumerate(running.values()):
        ratios = times[:, 0] / times[:, index]
        row["microseconds"] = float(np.median(times[:, index]))
        row["speedup"] = float(np.median(ratios))
        row["speedup_quartiles"] = [float(value) for value in np.quantile(ratios, (0.25, 0.75))]
        against = {tool: times[:, place] / times[:, index] for place, tool in enumerate(running)}
        row["faster_than"] = {tool: float(np.median(ratio)) for tool, ratio in against.items() if tool != "fp32"}


def chosen(variable: str, known: list[str]) -> list[str]:
    """Return those of the known names that an environment variable asks for, all of them where it is not set."""
    asked = [name for name in os.environ.get(variable, "").split(",") if name]
    if unknown := set(asked) - set(known):
        sys.exit(f"{variable}: unknown {sorted(unknown)}; known: {known}")
    return [name for name in known if name in asked or not asked]
