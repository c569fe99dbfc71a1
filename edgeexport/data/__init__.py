"""Samples: where they come from, how they become inputs, what each is for, and what is wrong with them."""

from __future__ import annotations

from edgeexport.data.arrays import check_finite, joint_digest, sample_digest
from edgeexport.data.check import check_samples
from edgeexport.data.disjoint import check_labels, open_split, splits
from edgeexport.data.identity import code_identity, data_identity, existing
from edgeexport.data.prepared import Prepared, arrays
from edgeexport.data.preprocess import prepare, resolve_preprocess
from edgeexport.data.sources import Samples, class_names, open_samples, read_raw
from edgeexport.data.usercode import UserCode, is_reference, resolve_reference, source_files

__all__ = [
    "Prepared",
    "Samples",
    "UserCode",
    "arrays",
    "check_finite",
    "check_labels",
    "check_samples",
    "class_names",
    "code_identity",
    "data_identity",
    "existing",
    "is_reference",
    "joint_digest",
    "open_samples",
    "open_split",
    "prepare",
    "read_raw",
    "resolve_preprocess",
    "resolve_reference",
    "sample_digest",
    "source_files",
    "splits",
]
