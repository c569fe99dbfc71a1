"""onnxruntime: `.onnx` files as they are, and `.ort` files with the optimisations baked in.

The rule: a file that does not load is `CorruptFile`, one that this version cannot run is `ModelError`, and feeds that
do not fit are `DataError` with both values; no error of onnxruntime itself reaches the caller.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import operator
import platform
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport import graph
from edgeexport.errors import CorruptFile, DataError, MachineError, MissingExtra, ModelError, NoSpace
from edgeexport.graph.files import parse
from edgeexport.progress import Progress, silent
from edgeexport.records.artifact import Signature, TensorSpec
from edgeexport.records.target import Target
from edgeexport.runtimes.ort_format import canonical
from edgeexport.runtimes.ort_kernels import for_integer_kernels
from edgeexport.runtimes.ort_saturation import DYNAMIC_LINEAR, predict_saturation
from edgeexport.runtimes.protocol import NO_OPTIONS, Conversion, Converted, Feeds, Outputs

if TYPE_CHECKING:
    from onnx import ModelProto

# First release that runs an opset or IR version (onnxruntime.ai/docs/reference/compatibility, release notes).
OPSET_FLOOR = {
    12: "1.3", 13: "1.6", 14: "1.8", 15: "1.9", 16: "1.11", 17: "1.12", 18: "1.14", 19: "1.15", 20: "1.17", 21: "1.18",
    22: "1.21", 23: "1.23",
}  # fmt: skip
IR_FLOOR = {7: "1.3", 8: "1.9", 9: "1.15", 10: "1.18", 11: "1.23", 12: "1.23"}
# ORT format version 6; onnxruntime 1.13 made versions before 5 unreadable and 6 added float8 scalars.
ORT_FORMAT_FLOOR = "1.16"
# Between integers onnxruntime gives a Conv or Gemm that was left in float an int8 weight again, one scale for all
# channels. Every session here is opened without that, and a file that needs it says so in its options.
FLOAT_STAYS = {"optimization.disable_specified_optimizers": "WeightBiasQuantization"}
# Numbers are the model's, not this machine's: x86 without VNNI would cap 16-bit sums of two products. Elsewhere
# onnxruntime ignores it. A target whose CPU caps them says so in its file's options.
EXACT_SUMS = "session.x64quantprecision"
UNFUSED = {"graph_optimization_level": "disable"}
LEVELS = ("disable", "basic", "extended", "layout", "all")
_TYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(bool)": "bool",
    "tensor(int8)": "int8", "tensor(uint8)": "uint8", "tensor(int16)": "int16", "tensor(uint16)": "uint16",
    "tensor(int32)": "int32", "tensor(uint32)": "uint32", "tensor(int64)": "int64", "tensor(uint64)": "uint64",
}  # fmt: skip


def open_session(model: Path | bytes, *, threads: int = 1, options: Mapping[str, Any] = NO_OPTIONS) -> OrtSession:
    """Open a file, or the bytes of a model, on the CPU.

    threads: intra-op threads, 0 for one per core. options: what `Converted.session_options` holds; an explicit
    `intra_op_num_threads` there is overruled by `threads`. Sums of 8-bit products are exact unless they say otherwise.
    Raises CorruptFile, ModelError, MissingExtra, and DataError for an unknown option.
    """
    ort = _onnxruntime("running an ONNX model")
    origin = str(model) if isinstance(model, Path) else "the model in memory"
    if isinstance(model, Path) and not model.is_file():
        raise CorruptFile(f"{origin}: no such file")
    source = str(model) if isinstance(model, Path) else model
    inner = _started_exact(ort, source, options=options, threads=threads, origin=origin)
    return OrtSession(inner=inner, signature=_signature(inner), origin=origin)


def _started_exact(ort: Any, source: str | bytes, *, options: Mapping[str, Any], threads: int, origin: str) -> Any:
    """Start a session with exact sums; unfused, so in float, where onnxruntime has no exact kernels for the file."""

    def start(options: Mapping[str, Any], *, silent: bool = False) -> Any:
        config = session_options(ort, options)
        config.intra_op_num_threads = threads
        if silent:
            config.log_severity_level = 4
        return started(ort, source, config=config, origin=origin)

    entries = options.get("config_entries", {})
    if EXACT_SUMS in entries:
        return start(options)
    # What it lacks kernels for (layers that share a weight, say) it reports as it reports a damaged file.
    with contextlib.suppress(CorruptFile, ModelError):
        return start({**options, "config_entries": {**entries, EXACT_SUMS: "1"}}, silent=True)
    return start({**options, **UNFUSED})


@dataclass(frozen=True)
class OrtSession:
    """One opened model. `run` checks names, types and shapes before onnxruntime sees them."""

    inner: Any
    signature: Signature
    origin: str

    def run(self, feeds: Feeds) -> Outputs:
        """Run once. Raises DataError for wrong feeds and ModelError when a kernel fails."""
        self._check(feeds)
        errors = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
        names = [spec.name for spec in self.signature.outputs]
        try:
            values = self.inner.run(names, dict(feeds))
        except (errors.RuntimeException, errors.Fail, errors.InvalidArgument, errors.EPFail) as error:
            raise ModelError(f"{self.origin}: onnxruntime failed while running: {_brief(error)}") from error
        return dict(zip(names, values, strict=True))

    def _check(self, feeds: Feeds) -> None:
        expected = {spec.name: spec for spec in self.signature.inputs}
        if feeds.keys() != expected.keys():
            raise DataError(f"feeds are {sorted(feeds)}, {self.origin} has the inputs {sorted(expected)}")
        for name, spec in expected.items():
            value = feeds[name]
            if value.dtype.name != spec.dtype:
                raise DataError(f"input {name!r} has dtype {value.dtype}, the model expects {spec.dtype}")
            if not _fits(value.shape, spec.shape):
                raise DataError(f"input {name!r} has shape {value.shape}, the model expects {spec.shape}")


@dataclass(frozen=True)
class OnnxRuntime:
    """The runtime `ort`: formats `onnx` and `ort`."""

    name: str = "ort"
    formats: tuple[str, ...] = ("onnx", "ort")
    extra: str = "export"
    packages: tuple[str, ...] = ("onnxruntime", "onnx")

    def convert(self, job: Conversion, out: Path, *, progress: Progress = silent) -> Converted:
        """Write `job.quantized`, or else the spine, as the target's format. The bytes repeat on equal versions.

        An `.onnx` is a copy, with IR and opset lowered when the target's floor asks, and int8 fitted to the integer
        kernels (`for_integer_kernels`, the same bits). An `.ort` has every optimisation baked in, since onnxruntime
        does not optimise that format at load; the channel-blocked (NCHWc) layout that makes fp32 convolutions fast on
        x86-64 only when this machine blocks like the target (see `bakes_nchwc`).
        """
        source = job.quantized or job.spine
        options = target_options(job)
        progress(f"{self.name}: {source.name} to .{job.target.format}", None)
        model, edits = _for_floor(graph.load(source), job.target)
        if job.quantized is not None:
            model, more = for_integer_kernels(model, arch=job.target.arch)
            edits += more
        notes = edits + _exact_sums(job)[1]
        floor = model_floor(model)
        if job.target.format == "ort":
            notes += _bake(model, out, job=job, options=options)
            floor = max(floor, ORT_FORMAT_FLOOR, key=_version_key)
        elif edits:
            graph.save(model, out)
        else:
            shutil.copyfile(source, out)
        opened = open_session(out, threads=job.target.threads, options=options)
        signature = _with_layouts(opened.signature, graph.signature(model))
        return Converted(signature=signature, notes=notes, session_options=options, floor=floor)

    def open(self, path: Path, *, threads: int = 1, options: Mapping[str, Any] = NO_OPTIONS) -> OrtSession:
        """Open a file on the CPU. Raises CorruptFile or ModelError."""
        return open_session(path, threads=threads, options=options)

    def version(self) -> str:
        """Return onnxruntime's version without importing it. Raises MissingExtra."""
        try:
            return importlib.metadata.version("onnxruntime")
        except importlib.metadata.PackageNotFoundError as error:
            raise MissingExtra("onnxruntime", extra=self.extra, purpose="the runtime `ort`") from error


def model_floor(model: ModelProto) -> str:
    """Return the oldest onnxruntime that loads this model's opset and IR version; the installed one if unknown."""
    newest = importlib.metadata.version("onnxruntime")
    known_opset = OPSET_FLOOR.get(max(graph.standard_opset(model), min(OPSET_FLOOR)), newest)
    known_ir = IR_FLOOR.get(max(model.ir_version, min(IR_FLOOR)), newest)
    return max(known_opset, known_ir, key=_version_key)


def bakes_nchwc(target: Target) -> bool:
    """Say whether blocked convolution weights made here are right on `target`.

    onnxruntime blocks channels by 16 with AVX-512 and by 8 with AVX2 (MlasNchwcGetBlockSize), fixed at conversion.
    """
    here = platform.machine().lower() in ("x86_64", "amd64") and target.arch == "x86_64"
    return here and ("avx512f" in target.features) == _host_has_avx512()


def _host_has_avx512() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and "avx512f" in cpuinfo.read_text(encoding="utf-8", errors="replace")


def _for_floor(model: ModelProto, target: Target) -> tuple[ModelProto, tuple[str, ...]]:
    """Lower the IR version, then the opset, until `target.floor` loads the model. Raises ModelError."""
    has = model_floor(model)
    if not target.floor or _version_key(has) <= _version_key(target.floor):
        return model, ()
    ir_version = _newest(IR_FLOOR, target.floor)
    opset = min(_newest(OPSET_FLOOR, target.floor), graph.standard_opset(model))
    lowered = graph.lower_ir(model, ir_version=ir_version, opset=opset)
    notes = (f"IR version {lowered.ir_version} and opset {opset} for onnxruntime {target.floor} (it needed {has})",)
    return lowered, notes


def _newest(table: Mapping[int, str], floor: str) -> int:
    fitting = [number for number, release in table.items() if _version_key(release) <= _version_key(floor)]
    if not fitting:
        raise ModelError(f"the target's floor, onnxruntime {floor}, is older than any version known here")
    return max(fitting)


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def _exact_sums(job: Conversion) -> tuple[bool, tuple[str, ...]]:
    """Whether the target must ask for exact sums, with the reason: an x86 CPU without VNNI whose sums may saturate.

    Fitted pairs never do. Others keep their accuracy with `session.x64quantprecision`, which costs speed there, and
    which onnxruntime heeds while it optimises: not in an .ort file, where fitted pairs are the way out, as they are
    for dynamically quantized linear layers, of which it is not known here that the option acts on them.
    """
    target = job.target
    vnni = any(name.endswith("vnni") for name in target.features)
    if target.arch != "x86_64" or vnni or job.quantized is None:
        return False, ()
    found = predict_saturation(graph.load(job.quantized))
    if not found.possible:
        return False, ()
    hit = {layer.op for layer in found.layers if layer.possible}
    exact = target.format != "ort" and hit != {DYNAMIC_LINEAR}
    remedies = (
        ["opened with session.x64quantprecision"] if exact else ["a number format with `fit_pairs` would prevent it"]
    )
    if exact and DYNAMIC_LINEAR in hit:
        remedies.append(f"in {DYNAMIC_LINEAR}, a number format with `fit_pairs` would prevent it")
    return exact, ("; ".join([found.sentence(), *remedies]),)


def _float_between(model: ModelProto) -> bool:
    """Whether a Conv or Gemm with a float weight reads dequantized integers: onnxruntime would round that weight."""
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type == 1}
    real = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in model.graph.node if node.op_type in {"Conv", "ConvTranspose", "Gemm"}]
    return any(node.input[0] in real and node.input[1] in stored for node in layers)


def target_options(job: Conversion) -> dict[str, Any]:
    """Return how the target opens its file: threads, optimisation level, arena, and configuration entries."""
    target = job.target
    entries: dict[str, str] = {}
    if job.quantized is not None and target.arch == "aarch64":
        entries["session.qdqisint8allowed"] = "1"
    exact, could_saturate = _exact_sums(job)
    if could_saturate:
        entries[EXACT_SUMS] = "1" if exact else "0"
    if job.quantized is not None and _float_between(graph.load(job.quantized)):
        entries |= FLOAT_STAYS
    return {
        "intra_op_num_threads": target.threads,
        "graph_optimization_level": "all",
        "enable_cpu_mem_arena": True,
        "config_entries": entries,
    }


def _bake(model: ModelProto, out: Path, *, job: Conversion, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Let onnxruntime optimise the model and save it in ORT format; all files stay in the folder of `out`."""
    nchwc = bakes_nchwc(job.target)
    origin = str(job.quantized or job.spine)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".ort-") as folder:
        optimised, made = Path(folder) / "model.onnx", Path(folder) / "model.ort"
        disabled = [] if nchwc else ["NchwcTransformer"]
        data = model.SerializeToString(deterministic=True)
        _saved(data, optimised, options=options, disabled=disabled, origin=origin)
        plain = {**options, "graph_optimization_level": "disable"}
        _saved(_in_fixed_order(optimised), made, options=plain, disabled=[], origin=origin)
        made.write_bytes(canonical(made.read_bytes()))
        made.replace(out)
    if job.target.arch != "x86_64":
        return ()
    if nchwc:
        return ("convolution weights are blocked for this target's vector width: the file is right on such CPUs only",)
    return ("float convolutions are slower than in an .onnx file: blocked weights cannot be made for it here",)


def _saved(model: bytes, made: Path, *, options: Mapping[str, Any], disabled: list[str], origin: str) -> None:
    """Optimise a model as `options` say and save it in the format that the name of `made` tells."""
    ort = _onnxruntime("converting to the ORT format")
    config = session_options(ort, options)
    config.intra_op_num_threads = 1
    config.optimized_model_filepath = str(made)
    config.add_session_config_entry("session.save_model_format", made.suffix[1:].upper())
    if "session.qdqisint8allowed" not in options["config_entries"]:
        config.add_session_config_entry("session.qdqisint8allowed", "0")
    started(ort, model, config=config, origin=origin, disabled=disabled)


def _in_fixed_order(path: Path) -> bytes:
    """Read a model that onnxruntime optimised, without what follows the order of its hash maps."""
    model = parse(path.read_bytes(), origin=str(path))
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    groups = {"name": (model.graph.initializer, model.graph.value_info), "domain": (model.opset_import,)}
    for key, group in ((key, group) for key, several in groups.items() for group in several):
        entries = sorted(group, key=operator.attrgetter(key))
        copies = [type(entry).FromString(entry.SerializeToString()) for entry in entries]
        del group[:]
        group.extend(copies)
    return bytes(model.SerializeToString(deterministic=True))


def _onnxruntime(purpose: str) -> Any:
    try:
        return importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        raise MissingExtra("onnxruntime", extra="ort", purpose=purpose) from error


def session_options(ort: Any, options: Mapping[str, Any]) -> Any:
    """Return onnxruntime's SessionOptions for ours. Raises DataError for a name or level that is not known."""
    known = {"intra_op_num_threads", "graph_optimization_level", "enable_cpu_mem_arena", "config_entries"}
    if unknown := options.keys() - known:
        raise DataError(f"unknown session options {sorted(unknown)}", next_step="known: " + ", ".join(sorted(known)))
    level = options.get("graph_optimization_level", "all")
    if level not in LEVELS:
        raise DataError(f"unknown graph_optimization_level {level!r}", next_step="known: " + ", ".join(LEVELS))
    config = ort.SessionOptions()
    names = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_LAYOUT", "ORT_ENABLE_ALL")
    config.graph_optimization_level = getattr(ort.GraphOptimizationLevel, names[LEVELS.index(level)])
    config.enable_cpu_mem_arena = bool(options.get("enable_cpu_mem_arena", True))
    config.log_severity_level = 3
    for key, value in {**FLOAT_STAYS, **options.get("config_entries", {})}.items():
        config.add_session_config_entry(key, str(value))
    return config


def started(ort: Any, source: str | bytes, *, config: Any, origin: str, disabled: list[str] | None = None) -> Any:
    """Return an InferenceSession, with its errors turned into ours."""
    errors = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    try:
        return ort.InferenceSession(
            source, config, providers=["CPUExecutionProvider"], disabled_optimizers=disabled or None
        )
    except (errors.InvalidProtobuf, errors.NoModel, errors.NoSuchFile, errors.InvalidArgument) as error:
        raise CorruptFile(f"{origin}: not a model that onnxruntime can read: {_brief(error)}") from error
    except (errors.InvalidGraph, errors.NotImplemented, errors.EPFail) as error:
        raise ModelError(f"{origin}: onnxruntime {ort.__version__} cannot run it: {_brief(error)}") from error
    except (errors.Fail, errors.RuntimeException) as error:
        raise _load_error(ort, error, origin=origin) from error


def _load_error(ort: Any, error: Exception, *, origin: str) -> Exception:
    """onnxruntime says Fail for damaged files, for files that are too new, and for a full disk alike."""
    text = str(error)
    if "No space left" in text:
        return NoSpace(f"{origin}: {_brief(error)}")
    if "Unsupported model IR version" in text or "opset" in text or "is not supported" in text:
        return ModelError(f"{origin}: onnxruntime {ort.__version__} cannot run it: {_brief(error)}")
    if "bad_alloc" in text or "Failed to allocate memory" in text:
        return MachineError(f"{origin}: not enough memory to load it: {_brief(error)}")
    return CorruptFile(f"{origin}: not a model that onnxruntime can read: {_brief(error)}")


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _signature(session: Any) -> Signature:
    return Signature(
        inputs=tuple(_spec(value, pictures=True) for value in session.get_inputs()),
        outputs=tuple(_spec(value, pictures=False) for value in session.get_outputs()),
    )


def _spec(value: Any, *, pictures: bool) -> TensorSpec:
    if value.type not in _TYPES:
        raise ModelError(f"{value.name!r} is a {value.type}, which has no numpy array")
    shape = tuple(f"{value.name}_{axis}" if size is None else size for axis, size in enumerate(value.shape))
    picture = pictures and len(shape) == 4 and value.type in ("tensor(float)", "tensor(float16)", "tensor(double)")
    return TensorSpec(value.name, _TYPES[value.type], shape, layout="NCHW" if picture else "as-is")


def _with_layouts(own: Signature, model: Signature) -> Signature:
    """The file's own signature, unless the model that it was made from says more (names of free axes)."""
    same = [spec.name for spec in own.inputs + own.outputs] == [spec.name for spec in model.inputs + model.outputs]
    return model if same else own


def _fits(shape: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    pairs = zip(shape, wanted, strict=False)
    return len(shape) == len(wanted) and all(isinstance(size, str) or size == got for got, size in pairs)


RUNTIME = OnnxRuntime()
