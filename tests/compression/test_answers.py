"""What outputs are, and so how they are compared with a teacher's; and whether labels are learnt beside it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from edgeexport.compression.distill import distill
from edgeexport.errors import DataError
from edgeexport.records.recipe import Distill, Training
from edgeexport.training import Batch, TrainingData, distillation
from tests.compression.test_distill import TRAINING, classifier, outputs, rows


@pytest.mark.parametrize("share", [0.9, 1.0])
def test_labels_that_are_no_classes_are_refused_by_what_learns_them(share):
    step = Distill(method="dkd", soft_share=share, training=TRAINING)
    with pytest.raises(DataError, match="has class 7, the output has 3 classes"):
        distill(classifier(1), classifier(0), data=rows(np.full(256, 7)), step=step)


@pytest.mark.parametrize(
    ("answers", "step"),
    [
        ("classes", Distill(soft_share=1.0)),
        ("embeddings", Distill()),
        ("values", Distill()),
        (None, Distill(method="cosine")),
    ],
)
def test_labels_that_nothing_is_learnt_from_change_nothing(answers, step):
    few = msgspec.structs.replace(step, training=Training(steps=3, batch_size=64, keep="best"))
    taught = []
    for labels in (None, np.full(256, 7)):
        student = classifier(1)
        data = TrainingData(rows().inputs, labels, answers=answers)
        taught.append((distill(student, classifier(0), data=data, step=few), outputs(student)))
    assert taught[0][0] == taught[1][0]
    assert torch.equal(taught[0][1], taught[1][1])


@pytest.mark.parametrize(
    ("answers", "loss", "like"),
    [
        ("embeddings", "cross_entropy", distillation.cosine),
        ("values", "cross_entropy", distillation.squared),
        (None, "cross_entropy", distillation.logits(4.0)),
        (None, "mse", distillation.squared),
        (None, "mine:loss", distillation.squared),
        ("classes", "mine:loss", distillation.logits(4.0)),
    ],
)
def test_outputs_are_compared_as_what_they_are(answers, loss, like):
    student, teacher = classifier(1), classifier(0)
    lone = TrainingData(rows().arrays[0][:8], answers=answers)
    record = distill(student, teacher, data=lone, step=Distill(training=Training(steps=1, loss=loss, batch_size=8)))
    first = torch.from_numpy(lone.arrays[0])
    with torch.no_grad():
        wanted = like(classifier(1)(first), teacher(first), batch=Batch((first,), None))
    assert record.final_loss == pytest.approx(float(wanted), rel=1e-4)


def test_embeddings_in_a_shape_of_their_own_are_compared_by_value():
    maps = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    given = distillation.directions(*maps, batch=Batch((), None))
    assert torch.equal(given, distillation.squared(*maps, batch=Batch((), None)))
