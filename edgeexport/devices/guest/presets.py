"""The CPUs that can be emulated, as facts: QEMU's name for each, and the features that its /proc/cpuinfo tells of.

The rule: a preset claims no feature that its CPU model lacks; a program that believed it would die. QEMU's plain `max`
(SVE2 and SME) differs from every phone's CPU and is left out. Its number of a CPU part is a real one (Neoverse V2):
onnxruntime dies of parts that it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass

BASE = ("fp", "asimd", "evtstrm", "aes", "pmull", "sha1", "sha2", "crc32", "cpuid")
V8_2 = (*BASE, "atomics", "fphp", "asimdhp", "asimdrdm", "lrcpc", "dcpop", "asimddp")


@dataclass(frozen=True)
class Preset:
    """One emulated CPU. model: for QEMU's `-cpu`; implementer and part: Arm's numbers for it, empty on x86."""

    name: str
    arch: str
    model: str
    features: tuple[str, ...]
    implementer: str = ""
    part: str = ""

    def cpuinfo(self) -> str:
        """Return the /proc/cpuinfo that such a machine with one core would show."""
        if self.arch == "x86_64":
            return f"processor\t: 0\nmodel name\t: {self.model}\nflags\t\t: {' '.join(self.features)}\n\n"
        return (
            f"processor\t: 0\nBogoMIPS\t: 100.00\nFeatures\t: {' '.join(self.features)}\n"
            f"CPU implementer\t: {self.implementer}\nCPU architecture: 8\nCPU variant\t: 0x0\n"
            f"CPU part\t: {self.part}\nCPU revision\t: 0\n\n"
        )


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("armv8.0", "aarch64", "cortex-a53", BASE, "0x41", "0xd03"),
        Preset("armv8.2", "aarch64", "cortex-a76", V8_2, "0x41", "0xd0b"),
        Preset("armv8.6-i8mm", "aarch64", "max,sve=off", (*V8_2, "i8mm", "bf16"), "0x41", "0xd4f"),
        Preset("x86-avx2", "x86_64", "Haswell", ("sse4_1", "sse4_2", "avx", "f16c", "fma", "avx2")),
    )
}
