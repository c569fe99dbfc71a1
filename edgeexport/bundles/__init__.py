"""Bundles: files → one file that ships, and the proof that it is what was packed."""

from edgeexport.bundles.pack import Example as Example
from edgeexport.bundles.pack import Parts as Parts
from edgeexport.bundles.pack import golden_tolerance as golden_tolerance
from edgeexport.bundles.pack import pack as pack
from edgeexport.bundles.read import unpack as unpack
from edgeexport.bundles.verify import verify as verify
