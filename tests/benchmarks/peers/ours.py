"""edgeexport: calibrate and convert. What a user of it writes."""

import sys

import numpy as np

import edgeexport

model, data, out = sys.argv[1:]
samples = [{"image": picture[None]} for picture in np.load(data)["image"]]
ranges = edgeexport.calibrate(model, samples)
edgeexport.convert(model, target="linux-x86_64-vnni", out=out, samples=samples, ranges=ranges)
