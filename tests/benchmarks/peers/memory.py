"""Load one model and run it 50 times on one thread: `memory.py MODEL`. Run by `child.py`, which sees the peak."""

import sys

import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 3
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
(image,) = session.get_inputs()
feeds = {image.name: np.zeros([size if isinstance(size, int) else 1 for size in image.shape], np.float32)}
for _ in range(50):
    session.run(None, feeds)
