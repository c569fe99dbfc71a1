"""NNCF: nncf.quantize on the ONNX model, mixed preset. What a user of it writes."""

import sys

import nncf
import numpy as np
import onnx

path, data, out = sys.argv[1:]
stored = np.load(data)
pictures = nncf.Dataset(stored["image"], lambda picture: {"image": picture[None]})
model = nncf.quantize(
    onnx.load(path),
    pictures,
    preset=nncf.QuantizationPreset.MIXED,
    subset_size=len(stored["image"]),
)
onnx.save(model, out)
