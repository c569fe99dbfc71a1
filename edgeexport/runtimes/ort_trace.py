"""What onnxruntime makes of a model: the graph that it really runs, and the microseconds of each of its kernels.

The rule: the graph comes from onnxruntime itself under the given options, and what is timed is that very graph, with
names of our own and no further optimisation, so that every time belongs to exactly one node.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport.graph.files import parse
from edgeexport.runtimes.ort import session_options, started
from edgeexport.runtimes.protocol import NO_OPTIONS, Feeds

if TYPE_CHECKING:
    from onnx import ModelProto

WARM_UPS = 3
_SUFFIX = "_kernel_time"


def ort_version() -> str:
    """Return the version of the installed onnxruntime."""
    return importlib.metadata.version("onnxruntime")


def optimised(model: ModelProto, *, origin: str, options: Mapping[str, Any] = NO_OPTIONS) -> ModelProto:
    """Return the graph that onnxruntime runs for this model, nodes named "#0", "#1", … after their former names.

    Each name is "#index" and the former one stands behind a blank ("#12 conv1"). options: as `open_session` takes
    them. Raises CorruptFile and ModelError as opening it does.
    """
    ort = importlib.import_module("onnxruntime")
    config = session_options(ort, options)
    config.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory(prefix="edgeexport-") as folder:
        made = Path(folder) / "model.onnx"
        config.optimized_model_filepath = str(made)
        started(ort, model.SerializeToString(), config=config, origin=origin)
        running = parse(made.read_bytes(), origin=origin)
    for index, node in enumerate(running.graph.node):
        node.name = f"#{index} {node.name}"
    return running


def kernel_times(running: ModelProto, feeds: Sequence[Feeds], *, runs: int, options: Mapping[str, Any]) -> list[float]:
    """Return the median microseconds of each node of an `optimised` graph, in its order, one thread.

    Each feed is run in turn until there are `runs` runs after the warm-ups. A node that never ran takes 0.
    """
    ort = importlib.import_module("onnxruntime")
    entries = {**options.get("config_entries", {}), "session.disable_quant_qdq": "1"}
    config = session_options(ort, {"graph_optimization_level": "disable", "config_entries": entries})
    config.intra_op_num_threads = 1
    config.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="edgeexport-") as folder:
        config.profile_file_prefix = str(Path(folder) / "profile")
        session = started(ort, running.SerializeToString(), config=config, origin="the optimised model")
        for count in range(WARM_UPS + runs):
            session.run(None, dict(feeds[count % len(feeds)]))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(_SUFFIX):
            times[event["name"].removesuffix(_SUFFIX)].append(float(event["dur"]))
    per_run = {name: len(found) // (WARM_UPS + runs) or 1 for name, found in times.items()}
    return [_median(times.get(node.name, []), each=per_run.get(node.name, 1)) for node in running.graph.node]


def _median(durations: list[float], *, each: int) -> float:
    """The median over runs of a node's time; `each`: how often it runs in one (a node in a loop's body)."""
    kept = durations[WARM_UPS * each :] or durations
    return statistics.median(kept) * each if kept else 0.0
