"""The README.txt that travels in a bundle: what is in it, and the few lines that run it without edgeexport.

The rule: the lines are run by a test.
"""

from __future__ import annotations

from edgeexport.records.artifact import TensorSpec
from edgeexport.records.manifest import Manifest

_ORT = """\
import json
import numpy
import onnxruntime

manifest = json.load(open("manifest.json"))
wanted = manifest["session_options"]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = manifest["target"]["threads"]
options.enable_cpu_mem_arena = wanted.get("enable_cpu_mem_arena", True)
level = wanted.get("graph_optimization_level", "all").upper()
level = "ORT_DISABLE_ALL" if level == "DISABLE" else "ORT_ENABLE_" + level
options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
for key, value in wanted.get("config_entries", {}).items():
    options.add_session_config_entry(key, value)
session = onnxruntime.InferenceSession(manifest["model"], options, providers=["CPUExecutionProvider"])
golden = manifest["goldens"][0]
feeds = {name: numpy.load(path) for name, path in golden["inputs"].items()}
for name, output in zip([item.name for item in session.get_outputs()], session.run(None, feeds)):
    print(name, "largest difference", abs(output - numpy.load(golden["outputs"][name]).astype(float)).max())
"""

_LITERT = """\
import json
import numpy
from ai_edge_litert.interpreter import Interpreter

manifest = json.load(open("manifest.json"))
interpreter = Interpreter(model_path=manifest["model"], num_threads=manifest["target"]["threads"])
interpreter.allocate_tensors()
golden = manifest["goldens"][0]
for detail, spec in zip(interpreter.get_input_details(), manifest["signature"]["inputs"]):
    interpreter.set_tensor(detail["index"], numpy.load(golden["inputs"][spec["name"]]))
interpreter.invoke()
for detail, spec in zip(interpreter.get_output_details(), manifest["signature"]["outputs"]):
    expected = numpy.load(golden["outputs"][spec["name"]]).astype(float)
    print(spec["name"], "largest difference", abs(interpreter.get_tensor(detail["index"]) - expected).max())
"""

# Runtime -> (what to install, the lines that run the model).
_LINES = {"ort": ("pip install onnxruntime numpy", _ORT), "litert": ("pip install ai-edge-litert numpy", _LITERT)}


def instructions(manifest: Manifest) -> str:
    """Return the text of README.txt for a bundle with this manifest."""
    inputs = "\n".join(f"  in   {_tensor(spec)}" for spec in manifest.signature.inputs)
    outputs = "\n".join(f"  out  {_tensor(spec)}" for spec in manifest.signature.outputs)
    return f"""\
{manifest.name}: a model for {manifest.target.title}, packed by edgeexport {manifest.tool_version}.

  {manifest.model}, for {manifest.runtime} {manifest.floor or manifest.runtime_version} or later
{inputs}
{outputs}

manifest.json says what every file is; golden/ holds inputs with the outputs to expect.{_words(manifest)}
Check the whole bundle:  edgeexport verify FILE.bundle
{_run_text(manifest.runtime)}"""


def _words(manifest: Manifest) -> str:
    return _labels(manifest) + _preparation(manifest)


def _labels(manifest: Manifest) -> str:
    return "\nlabels.txt names the classes, the first line is class 0." if manifest.labels else ""


def _preparation(manifest: Manifest) -> str:
    """How raw samples become inputs, in the order that preprocess.json does not show."""
    if manifest.preprocess is None:
        return ""
    layouts = sorted({spec.layout for spec in manifest.signature.inputs if spec.layout != "as-is"})
    last = f"at last the layout of the model file itself: {', '.join(layouts)}" if layouts else "at last the layout"
    return f"""
preprocess.json says how a raw sample is prepared. The order is always: color, resize, center crop, x * scale,
(x - mean) / std on the last axis, {last}."""


def run_lines(runtime: str) -> str:
    """Return the Python lines that run a bundle of this runtime, or nothing if none are known."""
    return _LINES[runtime][1] if runtime in _LINES else ""


def _run_text(runtime: str) -> str:
    if runtime not in _LINES:
        return ""
    install, lines = _LINES[runtime]
    return f"\nRun it without edgeexport ({install}; in the unzipped folder):\n\n{lines}"


def _tensor(spec: TensorSpec) -> str:
    layout = "" if spec.layout == "as-is" else f", {spec.layout}"
    step = "" if spec.scale is None else f", real = (value - {spec.zero_point or 0}) * {spec.scale:.9g}"
    return f"{spec.name}: {spec.dtype} {list(spec.shape)}{layout}{step}"
