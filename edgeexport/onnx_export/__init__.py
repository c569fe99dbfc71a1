"""torch → ONNX: two export routes, each checked against the network, and the clean-ups that make the spine."""

from edgeexport.onnx_export.clean import clean as clean
from edgeexport.onnx_export.export import export_module as export_module
