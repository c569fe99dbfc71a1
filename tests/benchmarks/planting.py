"""A device like `local` whose sessions waste a known time in each inference, or hold a known amount of memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeexport.devices.local import Local, clean_environment
from edgeexport.devices.protocol import read_answer
from edgeexport.records.base import file_digest
from edgeexport.validation.measure import PLANS, Plan, Subject
from tests.benchmarks.load import FAVOUR
from tests.device_bench.tiny import BENCH, dense_model, sample

# Short launches for hundreds of comparisons: half of a launch's time is the start of Python and its libraries.
SHORT = Plan(6, 10, 0.01, 64, 0.1, cap_seconds=30, most=60, memory_launches=0)

LAYERS, WIDTH, ROWS = 8, 96, 64

PLANTED = """

LATE = 2_000  # nanoseconds by which a loop may have ended late, taken from the next one


class Planted(OrtSession):
    def __init__(self, path, threads, *, options, module):
        self.waste, held = float(options.pop("planted_share", 0)), int(options.pop("planted_bytes", 0))
        super().__init__(path, threads, options=options, module=module)
        self.held, self.late, self.took, self.wasted = bytearray(b"x") * held, 0, 0, 0

    def call(self):
        start = time.perf_counter_ns()
        super().call()
        if self.waste:
            took = time.perf_counter_ns() - start
            stop = start + int(took * (1 + self.waste)) - self.late
            while time.perf_counter_ns() < stop:
                pass
            end = time.perf_counter_ns()
            self.late = min(max(end - stop, 0), LATE)
            self.took, self.wasted = self.took + took, self.wasted + end - start - took

    @property
    def facts(self):
        return dict(self.known, planted=self.wasted / self.took) if self.took else self.known

    @facts.setter
    def facts(self, known):
        self.known = known


RUNTIMES["onnxruntime"] = ("onnxruntime", Planted)
"""
ALONE = "main(sys.argv[1:])\n"
# One launch for each line on stdin: paths of the job and of what it says on stdout and stderr. Its exit code goes back.
TEMPLATE = """
import numpy
import onnxruntime

for line in sys.stdin:
    job, *said = json.loads(line)
    child = os.fork()
    if not child:
        for stream, path in enumerate(said, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
        try:
            main([job])
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Planting(Local):
    """This machine, with the planted program.

    planted: share asked for -> of each launch, the time wasted in inferences as a share of what they took themselves.
    """

    ending = ALONE

    def __init__(self, folder: Path, *, favour: bool = True) -> None:
        """`favour`: let launches go before what other programs do."""
        super().__init__()
        self.planted: dict[float, list[float]] = {}
        self._planted = folder / "bench.py"
        text = BENCH.read_text(encoding="utf-8").partition('if __name__ == "__main__":')[0]
        before, _, rest = text.partition("\nimport array\n")
        text = f"{before}\nimport array\n{FAVOUR if favour else ''}{rest}{PLANTED}{self.ending}"
        self._planted.write_text(text, encoding="utf-8")

    def _start(self, program: Path, job: Mapping[str, Any], *, timeout: float) -> dict[str, Any]:
        answer = super()._start(self._planted if job.get("mode") != "describe" else program, job, timeout=timeout)
        return self._noted(answer, job)

    def _noted(self, answer: dict[str, Any], job: Mapping[str, Any]) -> dict[str, Any]:
        """Keep what was wasted; the answer then is one that any session gives."""
        if "planted" in answer:
            asked = float(job["options"]["planted_share"])
            self.planted.setdefault(asked, []).append(float(answer.pop("planted")))
        return answer


class Forking(Planting):
    """The same, with launches that are forked from a process which has imported numpy and onnxruntime already.

    A launch is a process of its own that opens the model anew, but takes a third of the time: hundreds of comparisons
    fit into minutes. What it does not show is how launches differ by where their libraries were loaded.
    """

    ending = TEMPLATE

    def __init__(self, folder: Path, *, favour: bool = True) -> None:
        super().__init__(folder, favour=favour)
        self._folder, self._mine, self._started = folder, threading.local(), list[subprocess.Popen[str]]()

    def close(self) -> None:
        """End the processes that are forked from."""
        for process in self._started:
            process.kill()
            process.wait()

    def _start(self, program: Path, job: Mapping[str, Any], *, timeout: float) -> dict[str, Any]:
        if job.get("mode") == "describe":
            return super()._start(program, job, timeout=timeout)
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            paths = [Path(name) / each for each in ("job", "out", "err")]
            paths[0].write_text(json.dumps(job), encoding="utf-8")
            code = self._forked([str(path) for path in paths])
            out, err = (path.read_text(encoding="utf-8") for path in paths[1:])
        return self._noted(read_answer(out, err, exit_code=code, mode=str(job["mode"]), device=self.name), job)

    def _forked(self, paths: list[str]) -> int:
        """Have one launch made by this thread's own process; return its exit code."""
        if not hasattr(self._mine, "process"):
            command = [sys.executable, "-P", "-s", str(self._planted)]
            self._mine.process = subprocess.Popen(
                command,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=clean_environment(1),
                start_new_session=True,
            )
            self._started.append(self._mine.process)
        process = self._mine.process
        process.stdin.write(json.dumps(paths) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())


@dataclass(frozen=True)
class Model:
    """A small model (about a fifth of a millisecond) in a folder.

    Its weights and activations fit a core's own cache: a shared one tells what other machines' programs do in it.
    """

    path: Path

    @classmethod
    def write(cls, folder: Path) -> Model:
        return cls(dense_model(folder / "m.onnx", LAYERS, width=WIDTH))

    def subject(self, label: str, **planted: float) -> Subject:
        """The model as a subject, with `planted_share` (of what the inference took just now) or `planted_bytes`."""
        feeds = sample(ROWS, width=WIDTH)
        return Subject(label, self.path, file_digest(self.path), "ort", feeds, options=planted)


def short_launches(**changes: Any) -> None:
    """Let mode `brief` mean SHORT in this process."""
    import dataclasses

    PLANS["brief"] = dataclasses.replace(SHORT, **changes)
