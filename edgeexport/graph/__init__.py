"""ONNX itself: load safely, names and shapes, edits, lift. No function changes the model it is given."""

from edgeexport.graph.batch import batch_refusal as batch_refusal
from edgeexport.graph.edits import expose as expose
from edgeexport.graph.edits import float_tensors as float_tensors
from edgeexport.graph.edits import lower_ir as lower_ir
from edgeexport.graph.edits import op_counts as op_counts
from edgeexport.graph.edits import raise_opset as raise_opset
from edgeexport.graph.edits import standard_opset as standard_opset
from edgeexport.graph.files import load as load
from edgeexport.graph.files import save as save
from edgeexport.graph.lifting import lift as lift
from edgeexport.graph.lifting import lift_operators as lift_operators
from edgeexport.graph.shapes import complete_inputs as complete_inputs
from edgeexport.graph.shapes import fix_inputs as fix_inputs
from edgeexport.graph.shapes import free_inputs as free_inputs
from edgeexport.graph.shapes import infer_shapes as infer_shapes
from edgeexport.graph.shapes import signature as signature
from edgeexport.graph.shapes import tensor_types as tensor_types
from edgeexport.graph.weights import check_weights as check_weights
from edgeexport.graph.weights import constants as constants
from edgeexport.graph.weights import flush_subnormals as flush_subnormals
from edgeexport.graph.weights import initializers as initializers
from edgeexport.graph.weights import largest_tensors as largest_tensors
from edgeexport.graph.weights import subnormal_share as subnormal_share
from edgeexport.graph.weights import with_initializers as with_initializers
