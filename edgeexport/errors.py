"""The exception tree. Every error a user can meet is one of these, and each class owns its exit code.

    EdgeExportError
    ├── CheckFailed          1   a limit is not met, or a check found a difference
    ├── RequestError         2   the request is wrong
    │   ├── RecipeError          an unknown key, a bad value, an impossible combination
    │   ├── DataError            samples that are missing, empty, overlapping, of the wrong shape, or not finite
    │   │   └── Unlabelled            samples without the labels that are asked for
    │   ├── ModelError           a model that does not do what the recipe says
    │   │   ├── OutOfReach            a goal that no cut of this model reaches
    │   │   ├── StepFailed            a training that diverges, or a network that a step made and nobody can export
    │   │   └── UnsupportedOperator   an ONNX operator this version refuses, by name
    │   └── CorruptFile          a file that is damaged, hostile or not what its name says
    ├── MachineError         3   this machine lacks something
    │   ├── MissingExtra         a package; names the one command that adds it
    │   ├── ConverterFailed      a converter's process that died, hung, or needed more memory than there is
    │   ├── NoSpace              disk space
    │   └── Busy                 another process holds the workspace
    └── DeviceError          4   the device was lost, or the measurement is invalid

The rule: a message says what is wrong, where, and both values; `next_step` says what to do. One place (`cli.main`)
turns them into text and an exit code; library code only raises.
"""

from __future__ import annotations


class EdgeExportError(Exception):
    """Root of the tree. `next_step` is one imperative sentence, or empty when the message already says it."""

    exit_code = 1

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.next_step = next_step


class CheckFailed(EdgeExportError):
    """A limit is not met, or a check found a difference."""

    exit_code = 1


class RequestError(EdgeExportError):
    """The request is wrong: recipe, data, model, or a hostile or corrupt input."""

    exit_code = 2


class RecipeError(RequestError):
    """A recipe or target that does not say what it must, or says what nobody understands."""


class DataError(RequestError):
    """Samples that are missing, empty, overlapping, of the wrong shape or type, or not finite."""


class Unlabelled(DataError):
    """Samples that have no labels where labels are asked for."""


class ModelError(RequestError):
    """A model that does not load, does not match its declared inputs, or holds values that cannot be shipped."""


class OutOfReach(ModelError):
    """A goal that no cut of a model reaches, by the plans; the message holds the most that can be reached."""


class StepFailed(ModelError):
    """A training that diverges, or a network that a step made and that cannot be exported, converted or run.

    Of a distil or prune step it ends that step alone: what stood before it still stands.
    """


class UnsupportedOperator(ModelError):
    """An ONNX operator, or a form of one, that this version refuses by name."""


class CorruptFile(RequestError):
    """A file that is damaged, hostile, or not what its name says."""


class MachineError(EdgeExportError):
    """This machine lacks something."""

    exit_code = 3


class MissingExtra(MachineError):
    """A package is not installed. The message names the package, `next_step` the one command that adds it."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed here",
            next_step=f"pip install 'edgeexport[{extra}]'",
        )
        self.package = package
        self.extra = extra


class ConverterFailed(MachineError):
    """A converter's process died, ran out of its time, or needed more memory than there is."""


class NoSpace(MachineError):
    """The disk is full, or would be."""


class Busy(MachineError):
    """Another process holds the workspace."""


class DeviceError(EdgeExportError):
    """The device was lost, or what it measured is not valid."""

    exit_code = 4
