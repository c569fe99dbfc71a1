"""Olive: a workflow with the pass OnnxStaticQuantization, uint8 activations, per channel. What a user of it writes."""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from olive.data.registry import Registry
from olive.workflows import run

model, data, out = sys.argv[1:]


@Registry.register_dataset("pictures")
def pictures(**_):
    stored = np.load(data)
    return [({"image": picture}, 0) for picture in stored["image"]]


config = {
    "input_model": {"type": "ONNXModel", "model_path": model},
    "systems": {"host": {"type": "LocalSystem", "accelerators": [{"device": "cpu"}]}},
    "data_configs": [{"name": "calibration", "type": "DataContainer", "load_dataset_config": {"type": "pictures"}}],
    "passes": {
        "quantize": {
            "type": "OnnxStaticQuantization",
            "data_config": "calibration",
            "activation_type": "uint8",
            "precision": "int8",
            "per_channel": True,
            "quant_preprocess": True,
        }
    },
    "target": "host",
    "evaluate_input_model": False,
}
with tempfile.TemporaryDirectory() as folder:
    run({**config, "cache_dir": f"{folder}/cache", "output_dir": f"{folder}/out"})
    shutil.copyfile(next(Path(folder, "out").rglob("*.onnx")), out)
