"""Time model files against each other: `race.py SECONDS FEEDS.npz MODEL...` prints a row of microseconds per round.

One thread, one process. In each round every model runs once unmeasured, then BURST times, of which the fastest counts;
their order is drawn anew.
"""

import json
import sys
import time

import numpy as np
import onnxruntime

BURST = 8


def opened(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def burst(session, feeds):
    session.run(None, feeds)
    times = []
    for _ in range(BURST):
        began = time.perf_counter_ns()
        session.run(None, feeds)
        times.append(time.perf_counter_ns() - began)
    return min(times) / 1000


def main():
    seconds, data, *models = sys.argv[1:]
    feeds = {name: value[:1] for name, value in np.load(data).items()}
    sessions = [opened(model) for model in models]
    for session in sessions:
        burst(session, feeds)
    order, rounds = np.random.default_rng(0), []
    until = time.monotonic() + float(seconds)
    while time.monotonic() < until or len(rounds) < 20:
        row = [0.0] * len(sessions)
        for index in order.permutation(len(sessions)):
            row[index] = burst(sessions[index], feeds)
        rounds.append(row)
    print(json.dumps(rounds))


main()
