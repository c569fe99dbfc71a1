"""Subjects: what is measured, and the files and jobs that a device is given for it.

The rule: a device sees a job and files by name, never a path of ours; inputs and goldens travel as `.npy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport.devices.protocol import BENCH_RUNTIMES
from edgeexport.errors import DataError
from edgeexport.records.measurement import Memory, Mode
from edgeexport.records.target import Target
from edgeexport.validation.launches import Launch
from edgeexport.validation.quiet import State, undisturbed_ms

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Feeds = dict[str, NDArray[Any]]

UNTIMED = frozenset({"goldens", "warmup", "timed"})


@dataclass(frozen=True)
class Plan:
    """What a mode does. Seconds and iterations are least values for each launch; `cap_seconds` is the most.

    launches: rounds that there must be; most: rounds that there may be when noise or a wide interval asks for more.
    cooldown_seconds: the longest wait before a round, until the sentinel is within `cooled` of the first. set_seconds:
    after these, times the number of subjects, no round begins. memory_launches: for memory, apart from the rounds.
    probe_seconds: how often reference work tells whether the processor is disturbed (0: never).
    """

    launches: int
    warmup_iterations: int
    warmup_seconds: float
    timed_iterations: int
    timed_seconds: float
    cap_seconds: float
    most: int
    cooldown_seconds: float = 0.0
    cooled: float = 0.02
    set_seconds: float = float("inf")
    memory_launches: int = 3
    probe_seconds: float = 0.005


# Six launches are the fewest that have a 95 % interval at all. More launches tell more than longer ones, since
# processes differ more than iterations do: `brief` takes half a second each, and that is what `run` does.
PLANS: dict[Mode, Plan] = {
    "smoke": Plan(1, 3, 0.0, 10, 0.0, cap_seconds=10, most=1, set_seconds=30, memory_launches=1, probe_seconds=0),
    "brief": Plan(6, 10, 0.05, 64, 0.2, cap_seconds=60, most=24),
    "quick": Plan(6, 10, 1.0, 64, 2.0, cap_seconds=60, most=18, cooldown_seconds=60, cooled=0.03, set_seconds=300),
    "official": Plan(10, 10, 2.0, 128, 6.0, cap_seconds=60, most=24, cooldown_seconds=300, set_seconds=600),
}


@dataclass(frozen=True)
class Subject:
    """One model file to measure.

    runtime: as targets name it. inputs: one real sample, or several that are taken in turn, in the file's own
    signature; inputs_are: what they are, as the record says it. goldens: outputs expected for the first samples,
    checked before and after timing; tolerance: output name -> largest |difference| (0 where not given). accelerator:
    execution provider asked for; affinity: processors to be confined to. target: what the file was made for, if that
    is known.
    """

    label: str
    path: Path
    digest: str
    runtime: str
    inputs: Feeds | Sequence[Feeds]
    threads: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    goldens: Sequence[Feeds] = ()
    tolerance: Mapping[str, float] = field(default_factory=dict)
    affinity: tuple[int, ...] = ()
    accelerator: str = ""
    inputs_are: str = ""
    target: Target | None = None

    def samples(self) -> list[Feeds]:
        """Return the samples, at least one. Raises DataError."""
        found = [dict(self.inputs)] if isinstance(self.inputs, Mapping) else [dict(sample) for sample in self.inputs]
        if not found:
            raise DataError(f"{self.label}: no sample to measure with", next_step="give at least one real input")
        return found


@dataclass
class Turn:
    """A subject with its files, and what its launches answered. `failure` ends its turns.

    set_aside: which of the launches belong to rounds that do not count. no_memory: why its device tells no memory.
    state: of the core, in which iterations count.
    """

    subject: Subject
    job: dict[str, Any]
    files: dict[str, Path]
    launches: list[Launch] = field(default_factory=list)
    failure: str = ""
    memory: Memory | None = None
    no_memory: str = ""
    set_aside: frozenset[int] = frozenset()
    state: State = field(default_factory=State)

    @property
    def kept(self) -> list[Launch]:
        """The launches that count."""
        return [launch for index, launch in enumerate(self.launches) if index not in self.set_aside]

    @property
    def since(self) -> list[Launch]:
        """All launches since the first that counts: what the machine did in between is told of them too."""
        return self.launches[min(set(range(len(self.launches))) - self.set_aside, default=0) :]

    @property
    def times(self) -> list[NDArray[Any]]:
        """Of each launch that counts, the milliseconds of its undisturbed iterations."""
        return [undisturbed_ms(launch, self.state) for launch in self.kept]

    def beside(self, base: Turn) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        """Return the `times` of this subject and of `base` in the rounds that count for both."""
        shared = set(range(len(self.launches))) - self.set_aside - base.set_aside
        own, other = (
            [undisturbed_ms(turn.launches[each], turn.state) for each in sorted(shared)] for turn in (self, base)
        )
        return own, other

    @property
    def medians(self) -> list[float]:
        """Of each launch that counts, the median of its undisturbed iterations; of all where there is none."""
        import numpy as np

        pairs = zip(self.times, self.kept, strict=True)
        return [float(np.median(times)) if len(times) else launch.median_ms for times, launch in pairs]


def prepared(subject: Subject, folder: Path, *, plan: Plan) -> Turn:
    """Write a subject's samples and goldens as .npy files, and the job that names them."""
    files = {"model": subject.path}
    job: dict[str, Any] = {
        "runtime": BENCH_RUNTIMES.get(subject.runtime, subject.runtime),
        "model": "file:model",
        "sha256": subject.digest,
        "threads": subject.threads,
        "options": dict(subject.options),
        "inputs": [_written(feeds, folder, prefix=f"in{n}", files=files) for n, feeds in enumerate(subject.samples())],
        "goldens": [
            {
                "outputs": _written(outputs, folder, prefix=f"golden{n}", files=files),
                "tolerance": dict(subject.tolerance),
            }
            for n, outputs in enumerate(subject.goldens)
        ],
        "warmup": {
            "iterations": plan.warmup_iterations,
            "seconds": plan.warmup_seconds,
            "cap_seconds": plan.cap_seconds,
        },
        "timed": {
            "iterations": plan.timed_iterations,
            "seconds": plan.timed_seconds,
            "cap_seconds": plan.cap_seconds,
            "probe_seconds": plan.probe_seconds,
        },
    }
    job |= {"affinity": list(subject.affinity)} if subject.affinity else {}
    job |= {"accelerator": subject.accelerator} if subject.accelerator else {}
    return Turn(subject, job, files)


def _written(arrays: Feeds, folder: Path, *, prefix: str, files: dict[str, Path]) -> dict[str, str]:
    """Write arrays as .npy files, enter them into `files`, and return name -> `file:...` for a job."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    placed = {}
    for index, (name, value) in enumerate(arrays.items()):
        key = f"{prefix}.{index}.npy"
        np.save(folder / key, value, allow_pickle=False)
        files[key] = folder / key
        placed[name] = f"file:{key}"
    return placed
