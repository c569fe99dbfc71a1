"""Repairs: small named edits that bring more of a model into integer kernels, each kept only if it is measured faster.

The rule: an edit of the spine keeps its numbers, an edit of the plan invents none.
"""

from edgeexport.quantization.repairs.loop import Bench as Bench
from edgeexport.quantization.repairs.loop import Repaired as Repaired
from edgeexport.quantization.repairs.loop import repair as repair
