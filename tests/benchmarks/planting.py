"""A device like `local` whose sessions waste a known time in each inference, or hold a known amount of memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeexport.devices.local import Local
from edgeexport.records.base import file_digest
from edgeexport.validation.measure import PLANS, Plan, Subject
from tests.device_bench.tiny import BENCH, dense_model, sample

# Short launches for hundreds of comparisons: half of a launch's time is the start of Python and its libraries.
SHORT = Plan(6, 10, 0.01, 64, 0.05, cap_seconds=30, most=12, memory_launches=0)

PLANTED = """

class Planted(OrtSession):
    def __init__(self, path, threads, *, options, module):
        self.waste, held = int(options.pop("planted_ns", 0)), int(options.pop("planted_bytes", 0))
        super().__init__(path, threads, options=options, module=module)
        self.held = bytearray(b"x") * held

    def call(self):
        super().call()
        if self.waste:
            stop = time.perf_counter_ns() + self.waste
            while time.perf_counter_ns() < stop:
                pass


RUNTIMES["onnxruntime"] = ("onnxruntime", Planted)
main(sys.argv[1:])
"""


class Planting(Local):
    """This machine, with the planted program."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._planted = folder / "bench.py"
        text = BENCH.read_text(encoding="utf-8").partition('if __name__ == "__main__":')[0]
        self._planted.write_text(text + PLANTED, encoding="utf-8")

    def _start(self, program: Path, job: Mapping[str, Any], *, timeout: float) -> dict[str, Any]:
        return super()._start(self._planted if job.get("mode") != "describe" else program, job, timeout=timeout)


@dataclass(frozen=True)
class Model:
    """A small model (about a fifth of a millisecond) in a folder."""

    path: Path

    @classmethod
    def write(cls, folder: Path) -> Model:
        return cls(dense_model(folder / "m.onnx", 8, width=256))

    def subject(self, label: str, **planted: int) -> Subject:
        """The model as a subject, with `planted_ns` or `planted_bytes`."""
        feeds = sample(8, width=256)
        return Subject(label, self.path, file_digest(self.path), "ort", feeds, options=planted)


def short_launches(**changes: Any) -> None:
    """Let mode `brief` mean SHORT in this process."""
    import dataclasses

    PLANS["brief"] = dataclasses.replace(SHORT, **changes)
