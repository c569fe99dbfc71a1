"""`python -m edgeexport` is the command line."""

from __future__ import annotations

import sys

from edgeexport.cli import main

sys.exit(main())
