"""Questions to stored explanations: tables, filters, two models compared, and what checks take the trust from."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import stats
from torch import Tensor, nn

from robustlib.checks.explanation_sanity import explanation_checks, sanity_checks
from robustlib.checks.thresholds import FAIL, PASS, WARN, overall
from robustlib.evaluation import explanation_stability
from robustlib.explanations import EXPLANATIONS
from robustlib.explanations.gradient_maps import integrated_gradients
from robustlib.explanations.types import Explanation
from robustlib.inference.throughput import Work
from robustq import cli
from robustq.jobs.errors import SpecError
from robustq.jobs.results.explanations.compare import compare
from robustq.jobs.results.explanations.rows import explanation_rows
from robustq.jobs.results.explanations.stability import pivot, stability_lines
from robustq.jobs.results.filters import Filters
from robustq.jobs.statistics.explanation_means import steadier
from robustq.jobs.store.connection import Store, open_store
from tests.helpers.fake_explanations import add_explanation, measures_like

EDGES = torch.tensor([[-1.0, -1, -1], [-1, 8, -1], [-1, -1, -1]])[None, None]


@pytest.fixture
def two_models(made_up: Store) -> Store:
    """Two models, two seeds; the second keeps a tenth more of the top pixels of most images, but not under noise."""
    with made_up.begin() as db:
        for seed in (0, 1):
            add_explanation(db, "plain", seed, measures_like(seed, 0.5))
            add_explanation(db, "robust", seed, measures_like(seed, 0.6))
    return made_up
