"""DeviceFacts: what one machine is, as the program on it found it. Only what stays the same from job to job."""

from __future__ import annotations

from edgeexport.records.base import Record


class DeviceFacts(Record):
    """A machine. features: CPU flags as Linux names them. bench_digest: of the program that answered.

    capacities: how strong each processor is beside the others; empty where the system does not say.
    product: what its maker calls it, where the system knows that (Android does).
    """

    device: str
    arch: str
    cpu: str
    features: tuple[str, ...]
    cores: int
    os: str
    kernel: str
    python: str
    runtime_version: str = ""
    bench_digest: str = ""
    capacities: tuple[int, ...] = ()
    hypervisor: bool = False
    product: str = ""


class Reachability(Record):
    """One device as a user names it (`emulated:armv8.2`), whether it answers now, and what it is or why it does not."""

    device: str
    reachable: bool
    reason: str
