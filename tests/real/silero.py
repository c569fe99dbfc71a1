"""Silero VAD as its wheel ships it, with `If` inside, wrapped so that every input has its batch first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeexport import graph
from tests.benchmarks.wheels import unpacked

PACKAGE = "silero-vad==6.2.3"
SAMPLES, STATE, LOUD = 576, 128, 0.02


def write_silero(path: Path) -> Path:
    """Write the 16 kHz detector with the inputs input (1, 576) and state (1, 2, 128); its rate becomes a constant."""
    model = graph.load(unpacked(PACKAGE) / "silero_vad" / "data" / "silero_vad_16k_op15.onnx")
    part = model.graph
    for value in list(part.input):
        if value.name in {"state", "sr"}:
            part.input.remove(value)
    part.input.append(helper.make_tensor_value_info("past", TensorProto.FLOAT, ("batch", 2, STATE)))
    part.initializer.append(numpy_helper.from_array(np.array(16000, np.int64), "sr"))
    part.node.insert(0, helper.make_node("Transpose", ["past"], ["state"], "state_first", perm=[1, 0, 2]))
    part.node.append(helper.make_node("Transpose", ["stateN"], ["next"], "batch_first", perm=[1, 0, 2]))
    part.output.pop()
    part.output.append(helper.make_tensor_value_info("next", TensorProto.FLOAT, ("batch", 2, STATE)))
    onnx.save(model, path)
    return path


class Frames:
    """Frames of spoken digits at 16 kHz with an empty past; target: whether the frame is loud."""

    def __init__(self, count: int = 1500) -> None:
        import keywords  # beside this file, where a recipe looks

        rng = np.random.default_rng(0)
        spoken = keywords.train()
        clips = [spoken[int(index)][0] for index in rng.permutation(len(spoken))[:300]]
        doubled = [np.interp(np.arange(2 * len(clip)) / 2, np.arange(len(clip)), clip) for clip in clips]
        audio = np.concatenate(doubled).astype(np.float32)
        starts = rng.integers(0, len(audio) - SAMPLES, count)
        self._frames = [audio[start : start + SAMPLES] for start in starts]

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], int]:
        frame = self._frames[index]
        loud = int(np.sqrt(np.mean(frame[-512:] ** 2)) > LOUD)
        return {"input": frame, "past": np.zeros((2, STATE), np.float32)}, loud


def frames() -> Frames:
    """All frames."""
    return Frames()


def right(outputs: dict[str, np.ndarray], targets: list[int]) -> float:
    """Points of frames in which speech is found where, and only where, it is loud."""
    return float(100 * np.mean((outputs["output"].ravel() > 0.5) == (np.asarray(targets) > 0)))
