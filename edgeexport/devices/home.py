"""Where this user's installations of devices lie.

The rule: one folder, outside every clone and workspace; each device has a folder of its own in it.
"""

from __future__ import annotations

import os
from pathlib import Path

HOME_VARIABLE = "EDGEEXPORT_DEVICES"


def home() -> Path:
    """Return the folder of all that is installed to reach devices: $EDGEEXPORT_DEVICES, else in the user's cache."""
    given = os.environ.get(HOME_VARIABLE)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given).absolute() if given else Path(cache).absolute() / "edgeexport" / "devices"
