"""A part of a benchmark's trials: for machines that cannot be kept quiet for all of them at once.

The rule: a trial has its seed whichever part it is in, so that the parts add up to the whole.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

CHOSEN = [1, 1]


def choose(text: str) -> None:
    """Let `2/5` be the second of five parts; ends the program for what is none."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        sys.exit(f"{text!r} is no part: write 2/5 for the second of five")
    CHOSEN[:] = [int(number), int(count)]


def part_of(trials: Sequence[int]) -> Sequence[int]:
    """Return the trials of the chosen part: every one unless it was said otherwise."""
    number, count = CHOSEN
    return trials[number - 1 :: count]
