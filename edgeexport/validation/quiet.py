"""Quiet moments: which iterations were timed while nothing disturbed the processor, by reference work between them.

The rule: the reference work decides, never the times of the model, so that no subject is favoured. An iteration counts
in medians and ratios when the reference work before and after it took the same time as in most other moments; tails,
means and the raw data hold all iterations. What happens within a long iteration, on other cores that the model uses, or
in a shared cache is not seen. (Noise of a shared machine only ever adds time: Chen and Revels, "Robust
benchmarking in noisy environments", 2016, take the minimum; this median keeps what the model itself varies by.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgeexport.validation.launches import Launch

# Another guest on the same physical core adds 35 to 60 % to the reference work, a change of the clock a few percent.
WIDTH, NEAR = 1.15, 1.05
# The fastest state counts if it is at least half as common as the most common one.
COMMON = 0.5
LEAST_ITERATIONS, LEAST_SHARE, LEAST_MOMENTS = 16, 0.25, 4
RARE = 0.05


@dataclass(frozen=True)
class State:
    """What the reference work takes, in nanoseconds, while the core is in the state that counts.

    fastest: whether no state that was seen at least now and then is faster.
    """

    low: float = 0.0
    high: float = math.inf
    fastest: bool = True


ANY = State(fastest=False)


def states_of(launches: Sequence[Launch]) -> tuple[State, State]:
    """Return the states that may count, from launches on the same cores: the fastest common one, else the most common.

    A core that is shared nearly all the time is measured as it is, which is the same for all subjects.
    """
    import numpy as np

    taken = np.sort([spent for launch in launches for _, spent in launch.probes])
    if not len(taken):
        return State(), State()
    counts = np.searchsorted(taken, taken * WIDTH, side="right") - np.arange(len(taken))
    first = int(np.argmax(counts >= COMMON * counts.max()))
    # A few lucky moments may lie below: of the windows that begin within 5 %, the fullest.
    near = int(np.searchsorted(taken, taken[first] * NEAR, side="right"))
    places = first + int(np.argmax(counts[first:near])), int(np.argmax(counts))
    fast, common = (
        State(float(taken[place]), float(taken[place] * WIDTH), fastest=bool(place <= RARE * len(taken)))
        for place in places
    )
    return fast, common


def undisturbed_ms(launch: Launch, state: State) -> NDArray[Any]:
    """Return the milliseconds of the iterations between two pieces of reference work of the state that counts.

    All iterations where there was no reference work (a browser, an older device program).
    """
    import numpy as np

    if not launch.probes:
        return launch.times_ms
    both = np.repeat(_calm(launch, state), np.diff([place for place, _ in launch.probes]))
    calm_ms: NDArray[Any] = launch.times_ms[: len(both)][both]
    return calm_ms


def disturbed(launch: Launch, state: State) -> bool:
    """Whether too little of a launch is undisturbed to say anything.

    That is below 16 iterations and a quarter of them, or below four moments (of a fast model, one has hundreds).
    """
    if not launch.probes:
        return False
    total, moments = len(launch.times_ms), _calm(launch, state)
    few = len(undisturbed_ms(launch, state)) < max(1, min(LEAST_ITERATIONS, int(LEAST_SHARE * total)))
    return few or int(moments.sum()) < min(LEAST_MOMENTS, len(moments))


def _calm(launch: Launch, state: State) -> NDArray[Any]:
    """Of each moment between two pieces of reference work: whether both took what the state that counts allows."""
    import numpy as np

    spent = np.array([spent for _, spent in launch.probes])
    calm = (state.low <= spent) & (spent <= state.high)
    both: NDArray[Any] = calm[:-1] & calm[1:]
    return both
