"""ONNX → int8 ONNX: calibrate → Ranges → plan_quantization → QuantizationPlan → quantize.

The rule: every number is decided in the plan; `quantize` only applies it, and proves that the file holds it.
"""

from edgeexport.quantization.blockwise import quantize_blockwise as quantize_blockwise
from edgeexport.quantization.calibrate import calibrate as calibrate
from edgeexport.quantization.encoder import SPLIT as SPLIT
from edgeexport.quantization.encoder import LinearForm as LinearForm
from edgeexport.quantization.encoder import choose_encoder_form as choose_encoder_form
from edgeexport.quantization.encoder import encoder_spines as encoder_spines
from edgeexport.quantization.encoder import quantize_encoder as quantize_encoder
from edgeexport.quantization.encoder import time_encoder_forms as time_encoder_forms
from edgeexport.quantization.equalize import equalize as equalize
from edgeexport.quantization.front import front_floats as front_floats
from edgeexport.quantization.half import to_half as to_half
from edgeexport.quantization.heads import head_floats as head_floats
from edgeexport.quantization.integer import keep_encoder_float as keep_encoder_float
from edgeexport.quantization.integer import quantize_dynamic as quantize_dynamic
from edgeexport.quantization.integer import quantize_static_encoder as quantize_static_encoder
from edgeexport.quantization.outliers import split_outliers as split_outliers
from edgeexport.quantization.plan import check_nodes as check_nodes
from edgeexport.quantization.plan import node_names as node_names
from edgeexport.quantization.plan import plan_quantization as plan_quantization
from edgeexport.quantization.qat import Lesson as Lesson
from edgeexport.quantization.qat import train_quantized as train_quantized
from edgeexport.quantization.qdq import quantize as quantize
from edgeexport.quantization.relearn import correct_biases as correct_biases
from edgeexport.quantization.relearn import learn_rounding as learn_rounding
from edgeexport.quantization.repairs import repair as repair
from edgeexport.quantization.sensitivity import choose_float as choose_float
from edgeexport.quantization.sensitivity import measured_wins as measured_wins
from edgeexport.quantization.sensitivity import sensitivity as sensitivity
from edgeexport.quantization.smooth import smooth as smooth
