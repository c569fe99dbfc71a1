"""edgeexport: calibrate and convert. What a user of it writes."""

import sys

import numpy as np

import edgeexport
from tests.benchmarks.host import host_target

model, data, out = sys.argv[1:]
samples = [{"image": picture[None]} for picture in np.load(data)["image"]]
ranges = edgeexport.calibrate(model, samples)
edgeexport.convert(model, target=host_target(), out=out, samples=samples, ranges=ranges)
