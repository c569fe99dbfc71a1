"""Optimizers of the user's, gradients that are clipped, and the precision a step is computed in."""

from __future__ import annotations

import pytest
import torch

from edgeexport.errors import RequestError
from edgeexport.records.recipe import Training
from edgeexport.training import resolve_loss, train
from edgeexport.training.optimizers import LEAST_SIZE, make_optimizer
from tests.training.nets import network, pictures

CROSS_ENTROPY = resolve_loss("cross_entropy")
MINE = """
import torch

NORMS = []
RATES = []


def rmsprop(groups, learning_rate):
    return torch.optim.RMSprop(groups, lr=learning_rate)


class Watching(torch.optim.SGD):
    def step(self):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        NORMS.append(float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))))
        RATES.append([group["lr"] for group in self.param_groups])
        super().step()


def watching(groups, learning_rate):
    groups[1]["lr"] = learning_rate / 10
    return Watching(groups, lr=learning_rate)


def raises(groups, learning_rate):
    return groups["all"]


def nothing(groups, learning_rate):
    return None


def half(groups, learning_rate):
    return torch.optim.SGD(groups[:1], lr=learning_rate)


class Closing(torch.optim.SGD):
    def step(self):
        raise ValueError("closed")


def closing(groups, learning_rate):
    return Closing(groups, lr=learning_rate)
"""


def trained(folder, name, **more):
    (folder / "mine.py").write_text(MINE)
    settings = Training(optimizer=f"mine:{name}", batch_size=20, epochs=6, learning_rate=0.01, **more)
    module = network()
    return module, train(module, pictures(folder=str(folder)), loss=CROSS_ENTROPY, settings=settings)


def test_an_optimizer_of_the_user_learns(tmp_path):
    _, record = trained(tmp_path, "rmsprop")
    assert record.optimizer == "mine:rmsprop"
    assert record.final_loss < 0.5


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("raises", r"mine\.py:\d+: TypeError"),
        ("nothing", "returned NoneType, expected a torch optimizer"),
        ("half", "2 of the 6 parameters"),
        ("closing", r"mine\.py:\d+: ValueError: closed"),
    ],
)
def test_what_is_wrong_with_it_is_told_as_the_users(name, what, tmp_path):
    with pytest.raises(RequestError, match=what):
        trained(tmp_path, name)


def watched(folder, name):
    from edgeexport.data import resolve_reference

    return resolve_reference(f"mine:{name}", folder)


def test_rates_of_groups_keep_their_ratio(tmp_path):
    trained(tmp_path, "watching")
    rates = watched(tmp_path, "RATES")
    assert len({one for one, _ in rates}) > 5
    assert all(other == pytest.approx(one / 10) for one, other in rates)


@pytest.mark.parametrize("limit", [None, 0.01])
def test_gradients_are_clipped_to_their_norm(limit, tmp_path):
    trained(tmp_path, "watching", clip_norm=limit)
    norms = watched(tmp_path, "NORMS")
    assert (max(norms) <= 0.0101) == (limit is not None)


def test_bfloat16_learns_and_is_in_the_record():
    module = network()
    settings = Training(epochs=8, batch_size=20, learning_rate=0.03, precision="bfloat16")
    seen = []
    module[6].register_forward_hook(lambda *flow: seen.append(flow[2].dtype))
    record = train(module, pictures(), loss=CROSS_ENTROPY, settings=settings)
    assert record.precision == "bfloat16"
    assert set(seen) == {torch.float32, torch.bfloat16}  # the look at the layout is outside
    assert record.final_loss < 0.5
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())


@pytest.mark.parametrize(("able", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_what_the_cpu_computes_in(able, chosen, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: able)
    record = train(network(), pictures(), loss=CROSS_ENTROPY, settings=Training(steps=1))
    assert record.precision == chosen


def test_relative_rates_move_every_tensor_by_the_same_share():
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    with torch.no_grad():
        module[0].weight.fill_(100.0)
        module[1].weight.fill_(0.001)
        module[1].bias.zero_()
    optimizer = make_optimizer([module], Training(optimizer="adamw-relative", learning_rate=0.01, weight_decay=0.1))
    before = [tensor.detach().clone() for tensor in module.parameters()]
    for tensor in module.parameters():
        tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    after = list(module.parameters())
    moved = [float((old - new).detach().abs().mean()) for old, new in zip(before, after, strict=True)]
    decayed = [0.1 if old.ndim > 1 else 0.0 for old in before]
    wanted = [
        0.01 * (max(float(old.square().mean().sqrt()), LEAST_SIZE) + share * float(old.mean()))
        for old, share in zip(before, decayed, strict=True)
    ]
    assert moved == pytest.approx(wanted, rel=1e-3)
