"""Answers: what device programs say in modes other than `time`, read field by field.

The rule: what a device says is believed only as far as it has the form that the mode promises; anything else is a
DeviceError, as `launches.read_launch` has it for times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from edgeexport.devices.protocol import read_as
from edgeexport.errors import DeviceError
from edgeexport.validation.launches import Pieces

if TYPE_CHECKING:
    from numpy.typing import NDArray

Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]
Amount = Annotated[float, msgspec.Meta(ge=0)]


class _Cold(msgspec.Struct, frozen=True):
    before_ns: Pieces


class _Sentinel(msgspec.Struct, frozen=True):
    sentinel: _Cold


class PeakMemory(msgspec.Struct, frozen=True):
    """Bytes of one launch's process; rollup: its shares by the names of Linux's smaps_rollup."""

    peak_bytes: Annotated[int, msgspec.Meta(gt=0, le=1 << 60)]
    before_load_bytes: Size
    method: str
    after_load_bytes: Size | None = None
    rollup: dict[str, Size] | None = None


class _Reason(msgspec.Struct, frozen=True):
    reason: str


class ProfiledNode(msgspec.Struct, frozen=True):
    """Microseconds of all calls of one node under the runtime's profiler."""

    name: str
    us: Amount
    calls: Size
    op: str | None = None
    provider: str | None = None


class _Profile(msgspec.Struct, frozen=True):
    nodes: tuple[ProfiledNode, ...]


class RailFigures(msgspec.Struct, frozen=True):
    """One energy counter: watts at rest and at work, joules of an inference net of rest, seconds at work."""

    idle_w: float
    busy_w: float
    j_per_inference: float
    seconds: float


class _Energy(msgspec.Struct, frozen=True):
    rails: dict[str, RailFigures] = {}
    reason: str = ""


def read_sentinel(answer: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the nanoseconds that an answer of mode `sentinel` holds. Raises DeviceError."""
    return read_as(answer, _Sentinel, what="the time of a fixed workload").sentinel.before_ns


def read_memory(answer: Mapping[str, Any]) -> PeakMemory | str:
    """Return what an answer of mode `memory` holds, or the reason why it holds none. Raises DeviceError."""
    told = answer.get("memory")
    if isinstance(told, Mapping) and "reason" in told:
        return read_as(told, _Reason, what="a reason").reason
    return read_as(told, PeakMemory, what="of memory")


def read_nodes(answer: Mapping[str, Any]) -> tuple[ProfiledNode, ...] | str:
    """Return what an answer of mode `profile` holds, or the reason why it holds none. Raises DeviceError."""
    told = answer.get("profile")
    if isinstance(told, Mapping) and "nodes" not in told:
        return read_as(told, _Reason, what="a reason").reason
    nodes = read_as(told, _Profile, what="a profile").nodes
    _demand_finite([node.us for node in nodes], what="a profile")
    return nodes


def read_energy(answer: Mapping[str, Any]) -> tuple[dict[str, RailFigures], str]:
    """Return the counters of an answer of mode `energy`, and the reason why there are none. Raises DeviceError."""
    told = read_as(answer.get("energy"), _Energy, what="of energy")
    for rail in told.rails.values():
        _demand_finite(msgspec.structs.astuple(rail), what="of energy")
    return told.rails, told.reason


def read_array(path: Path) -> NDArray[Any]:
    """Return the array of a .npy file that a device wrote. Raises DeviceError for any other file."""
    import numpy as np

    try:
        with path.open("rb") as stream:
            found: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise DeviceError(f"{path.name} from the device is no array: {error}") from error
    return found


def _demand_finite(values: tuple[float, ...] | list[float], *, what: str) -> None:
    if not all(map(math.isfinite, values)):
        raise DeviceError(f"the answer is not {what}: a figure is not finite")
