"""Run a bundle's model on a device: its goldens there, and a measurement where the device has times.

What comes back is plain data that says by itself whether it is a valid record.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeexport.bundles import unpack
from edgeexport.devices.protocol import Device
from edgeexport.records.manifest import Manifest
from edgeexport.validation.measure import Subject, measure, run_on_device

TRIES = 3


def run_bundle(device: Device, bundle: Path, *, timed: bool) -> dict[str, Any]:
    """Return facts, the number of goldens and the worst difference in units of its tolerance, and the measurement."""
    with tempfile.TemporaryDirectory() as name:
        manifest = unpack(bundle, Path(name) / "bundle")
        subject = _subject(manifest, Path(name) / "bundle")
        outputs = run_on_device(subject, device=device, folder=Path(name))
        record: dict[str, Any] = {
            "device": msgspec.to_builtins(device.describe(manifest.runtime)),
            "goldens": len(outputs),
            "worst": max(_worst(*pair, subject.tolerance) for pair in zip(outputs, subject.goldens, strict=True)),
        }
        for _ in range(TRIES if timed else 0):
            measured, _ = measure([subject], device=device, mode="smoke")
            record["measurement"] = msgspec.to_builtins(measured[0])
            if measured[0].valid:
                break
    record["valid"] = bool(record["goldens"] and record["worst"] <= 1.0)
    if timed:
        record["valid"] &= record["measurement"]["valid"] and record["measurement"]["latency"] is not None
    return record


def _subject(manifest: Manifest, folder: Path) -> Subject:
    goldens = [
        tuple({name: np.load(folder / path) for name, path in part.items()} for part in (each.inputs, each.outputs))
        for each in manifest.goldens
    ]
    return Subject(
        label=manifest.name,
        path=folder / manifest.model,
        digest=manifest.model_digest,
        runtime=manifest.runtime,
        inputs=[inputs for inputs, _ in goldens],
        options=manifest.session_options,
        goldens=[outputs for _, outputs in goldens],
        tolerance=dict(manifest.goldens[0].tolerance),
    )


def _worst(actual: dict[str, Any], expected: Any, tolerance: Any) -> float:
    """The largest difference of a sample's outputs, in units of what is allowed."""
    return max(
        float(np.abs(actual[name].astype(float) - expected[name].astype(float)).max()) / max(tolerance[name], 1e-12)
        for name in expected
    )
