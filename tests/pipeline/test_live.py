"""A live network is known by what it does in training too, whether its classes have a source or not."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn

from edgeexport.pipeline import live
from edgeexport.pipeline.class_text import class_text
from edgeexport.pipeline.live import detach
from edgeexport.records.recipe import DataSpec, Distill, ModelSpec, Recipe, Training

NET = """
import functools
import torch
from torch import nn

SHARE = 0.1
TABLE = {"a": (0.1,)}
NOISE = torch.tensor(0.1)


def helper(x):
    return x * 0.2


class Round(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x * 0.3

    @staticmethod
    def backward(context, gradient):
        return gradient


def made(by):
    class Base(nn.Module):
        scale = 0.4

        @property
        def shift(self):
            return 0.5

        @functools.cached_property
        def slope(self):
            return 0.55

        @staticmethod
        def inner(x, by=0.6):
            return [x * 0.7 for _ in range(1)][0] * by

        def noisy(self, x):
            return self.scale * helper(Round.apply(x)) + self.shift * self.slope + SHARE * TABLE["a"][0] * NOISE

    class Net(Base):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x):
            x = self.linear(x)
            if self.training:
                x = self.noisy(x) * by + 0.12 * self.act(self.inner(x)) * self.rate + self._list[0] + self.tensor
            return x

    return Net


def net():
    torch.manual_seed(0)
    network = made(0.13)()
    network.rate, network._list, network.tensor = 0.8, [0.9], torch.tensor(0.95)
    network.act = lambda x: x + 0.11
    return network
"""
CHANGES = {
    "a constant in forward": ("0.12", "0.5"),
    "a base class": ("self.shift * self.slope", "self.shift / self.slope"),
    "what a base class calls": ("self.scale * helper", "0 * helper"),
    "a helper of its module": ("x * 0.2", "x * 0.5"),
    "a class of its module": ("x * 0.3", "x * 0.5"),
    "a number of its module": ("SHARE = 0.1", "SHARE = 0.5"),
    "a table of its module": ('{"a": (0.1,)}', '{"a": (0.5,)}'),
    "a tensor of its module": ("NOISE = torch.tensor(0.1)", "NOISE = torch.tensor(0.5)"),
    "a class attribute": ("scale = 0.4", "scale = 0.5"),
    "a property": ("return 0.5\n", "return 0.6\n"),
    "a cached property": ("return 0.55", "return 0.6"),
    "a default": ("by=0.6", "by=0.5"),
    "an inner function": ("x * 0.7", "x * 0.5"),
    "an attribute": ("= 0.8,", "= 0.5,"),
    "a list": ("[0.9]", "[0.5]"),
    "a tensor that is no buffer": ("torch.tensor(0.95)", "torch.tensor(0.5)"),
    "a function that it was given": ("x + 0.11", "x + 0.5"),
    "what its class captured": ("made(0.13)", "made(0.5)"),
}
SHAPES = {"x": (1, 4)}


def _loaded(path, monkeypatch):
    """Import a file as the module m."""
    spec = importlib.util.spec_from_file_location("m", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "m", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["file", "notebook"])
def identity(request, tmp_path, monkeypatch):
    """Text -> what the network of its `net` is known by, and what without its classes; with a source or without one."""
    numbers = itertools.count()

    def known(text):
        if request.param == "notebook":
            space = {"__name__": "__main__"}
            exec(compile(text, "<cell>", "exec"), space)
            network = space["net"]()
        else:
            path = tmp_path / f"{next(numbers)}.py"
            path.write_text(text, encoding="utf-8")
            network = _loaded(path, monkeypatch).net()
        whole = live._identity(network, SHAPES)
        with monkeypatch.context() as patch:
            patch.setattr(live, "class_text", lambda _: "")
            return whole, live._identity(network, SHAPES)

    return known


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_network_does_in_training_alone_makes_it_another(identity, change):
    text = NET.replace(*CHANGES[change])
    assert text != NET
    (one, graph), same, (other, its_graph) = identity(NET), identity(NET), identity(text)
    assert (one, graph) == same
    assert graph == its_graph  # the exported graph shows nothing of it
    assert one != other


ODD = """

class Odd(nn.Module):
    seen = set("abcdefgh")
    thing = object()
    itself = [print]
    itself.append(itself)
"""


def test_the_text_of_a_class_is_the_same_in_another_process(tmp_path, monkeypatch):
    (tmp_path / "m.py").write_text(NET + ODD, encoding="utf-8")
    code = "import m, edgeexport.pipeline.class_text as c; print(c.class_text(m.net()), c.class_text(m.Odd()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    module = _loaded(tmp_path / "m.py", monkeypatch)
    assert done.stdout == f"{class_text(module.net())} {class_text(module.Odd())}\n"


def _holding(*functions):
    module = nn.Identity()
    module.first, module.second, module.third = functions
    return module


def _importing(text):
    """Return a network whose class calls a function of another module."""
    there, here = {"__name__": "there"}, {"__name__": "here", "nn": nn}
    exec(f"def noise(x):\n    return {text}", there)
    here["noise"] = there["noise"]
    exec("class Net(nn.Module):\n    def forward(self, x):\n        return noise(x) if self.training else x", here)
    return here["Net"]()


def test_a_function_of_another_module_that_a_class_names_is_seen():
    assert class_text(_importing("x * 0.1")) == class_text(_importing("x * 0.1")) != class_text(_importing("x * 0.5"))


def test_which_of_two_things_is_held_again_is_told():
    def one(x):
        return x

    def two(x):
        return -x

    assert class_text(_holding(one, two, one)) == class_text(_holding(one, two, one))
    assert class_text(_holding(one, two, one)) != class_text(_holding(one, two, two))


def test_torch_itself_is_named_and_not_followed():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    module.act = nn.functional.relu
    assert "torch.nn.functional.relu" in class_text(module)
    assert "torch.nn.functional.relu" not in class_text(nn.Linear(2, 2))
    assert len(class_text(module)) < 1000


def _lesson(*, seed, **networks):
    model = ModelSpec(factory=nn.Linear(4, 2), inputs=SHAPES)
    step = Distill(training=Training(seed=seed), **networks)
    named, found = detach(Recipe(model, DataSpec(train=[], evaluate=[]), step=(step,)))
    (role,) = networks
    return found[getattr(named.step[0], role).factory]


def _seeded(seed):
    torch.manual_seed(seed)
    return nn.Linear(4, 2)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_student_that_a_callable_builds_starts_from_its_trainings_seed_and_a_teacher_from_seed_0(seed):
    torch.manual_seed(9)
    factory = ModelSpec(factory=lambda: nn.Linear(4, 2))
    student, teacher = _lesson(seed=seed, student=factory), _lesson(seed=seed, teacher=factory)
    assert torch.equal(student.weight, _seeded(seed).weight)
    assert torch.equal(teacher.weight, _seeded(0).weight)
    assert not torch.equal(student.weight, teacher.weight)


def test_a_module_of_the_users_that_is_called_live_is_no_live_network():
    assert not live.is_live(ModelSpec(factory="live:net"))
    assert live.is_live(detach(Recipe(ModelSpec(factory=nn.Linear(4, 2), inputs=SHAPES)))[0].model)
