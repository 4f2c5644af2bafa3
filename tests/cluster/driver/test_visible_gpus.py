"""A real Ray hands out the GPUs that can be used, and no others. No GPU is asked: Ray is told how many there are."""

import os

import pytest

from robustq.cluster.ray_connection import local_ray
from robustq.cluster.slots import Slots

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]


@pytest.mark.parametrize(("gpus", "seen"), [("1", "1"), ("GPU-5e2", "GPU-5e2"), (None, "0")])
def test_a_worker_sees_a_gpu_that_can_be_used(gpus: str | None, seen: str, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with local_ray(Slots(1, 1, 1, gpus=gpus)) as ray:
        look = ray.remote(num_gpus=1, max_retries=0)(os.getenv)
        assert ray.get(look.remote("CUDA_VISIBLE_DEVICES"), timeout=60) == seen
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
