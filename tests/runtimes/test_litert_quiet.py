"""LiteRT logs while it opens a file, and has no switch for it: nothing of that reaches a user's terminal."""

from __future__ import annotations

import os
import sys

import pytest

from edgeexport.runtimes.litert.session import _without_chatter


def test_what_a_library_writes_to_stderr_is_kept_back(capfd: pytest.CaptureFixture[str]) -> None:
    with _without_chatter():
        os.write(2, b"INFO: Created a delegate\n")
    assert capfd.readouterr().err == ""


def test_stderr_is_back_afterwards_even_when_opening_failed(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), _without_chatter():
        raise ValueError("broken")
    os.write(2, b"still here\n")
    sys.stderr.flush()
    assert capfd.readouterr().err == "still here\n"
