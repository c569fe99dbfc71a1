"""ONNX → int8 ONNX: calibrate → Ranges → plan_quantization → QuantizationPlan → quantize.

The rule: every number is decided in the plan; `quantize` only applies it, and proves that the file holds it.
"""

from edgeexport.quantization.calibrate import calibrate as calibrate
from edgeexport.quantization.plan import plan_quantization as plan_quantization
from edgeexport.quantization.qdq import quantize as quantize
