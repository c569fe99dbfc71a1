"""The comparison with peers: what cannot be had is a row with its reason, and every line of a script counts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.benchmarks import peers
from tests.benchmarks.peers import environments
from tests.benchmarks.peers.environments import PEERS, Peer, python_of
from tests.needs import need


def test_a_peer_that_cannot_be_installed_is_reported_with_pips_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEEXPORT_PEERS_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setitem(environments.PEERS, "ghost", Peer("Ghost", "ours.py", ("edgeexport-no-such-peer==1",)))
    python, reason = python_of("ghost")
    assert python is None
    assert "edgeexport-no-such-peer" in reason
    assert not (tmp_path / "ghost" / "installed.json").exists()


def test_a_script_that_fails_leaves_its_last_words(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise ValueError('no such calibration')", encoding="utf-8")
    cost = peers._child(Path(sys.executable), str(script))
    assert cost["reason"].endswith("no such calibration")
    script.write_text("print('fine')", encoding="utf-8")
    cost = peers._child(Path(sys.executable), str(script))
    assert cost["seconds"] > 0
    assert cost["peak_mb"] > 1


def test_the_lines_of_a_script_are_those_its_user_writes() -> None:
    assert PEERS["ours"].lines < min(peer.lines for name, peer in PEERS.items() if name != "ours")
    assert all(peer.lines >= 5 for peer in PEERS.values())


def test_the_table_has_a_row_for_every_tool() -> None:
    row = {
        "top1": 0.5, "agreement": 0.75, "size_ratio": 3.5, "speedup": 2.0, "memory_mb": 60.0, "seconds": 4.0,
        "peak_mb": 100.0, "lines": 7,
    }  # fmt: skip
    gone = {"reason": "cannot be installed: gone | away"}
    text = peers.table({name: {"ours": row, "olive": gone} for name in ("net", "other")})
    head, rule, ours, olive = text.splitlines()
    cell = "50.0 / 75.0 / 3.50× / 2.00× / 60"
    assert ours == f"| edgeexport | {cell} | {cell} | 4 s, 100 MB | 7 |"
    assert "cannot be installed: gone / away" in olive
    assert len({line.count("|") for line in (head, rule, ours, olive)}) == 1


def test_our_own_script_writes_what_is_judged(tmp_path: Path) -> None:
    need("ort")
    import numpy as np

    from tests.quantization.nets import pictures, small_resnet

    model, data, out = small_resnet(tmp_path / "net.onnx"), tmp_path / "data.npz", tmp_path / "int8.onnx"
    np.savez(data, image=np.concatenate([each["image"] for each in pictures(4)]))
    cost = peers._child(Path(sys.executable), PEERS["ours"].script, model, data, out)
    assert "reason" not in cost
    assert out.stat().st_size < model.stat().st_size / 2
