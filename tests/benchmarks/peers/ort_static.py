"""ORT: onnxruntime's own quantize_static, per channel, min-max, with its preprocessing. What a user of it writes."""

import sys

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

model, data, out = sys.argv[1:]


class Pictures(CalibrationDataReader):
    def __init__(self, path):
        self.feeds = iter([{"image": picture[None]} for picture in np.load(path)["image"]])

    def get_next(self):
        return next(self.feeds, None)


prepared = out.replace(".onnx", "-prepared.onnx")
quant_pre_process(model, prepared)
quantize_static(
    prepared,
    out,
    Pictures(data),
    quant_format=QuantFormat.QDQ,
    per_channel=True,
    activation_type=QuantType.QUInt8,
    weight_type=QuantType.QInt8,
)
