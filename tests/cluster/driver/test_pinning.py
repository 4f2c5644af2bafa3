"""Bundles on a Ray that believes in GPUs: each sees its own and only that, and CPU bundles see none."""

import pytest

from robustq.cluster.messages import Started, WorkerSettings
from robustq.cluster.ray_connection import import_ray, local_ray
from robustq.cluster.ray_workers import remote_bundle
from robustq.cluster.slots import Slots
from robustq.jobs.queue.transitions import Claimed

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# A job that fails at once, after its bundle has said where it runs.
NOTHING = Claimed(1, "k", 1, "eval", {"kind": "eval"}, {})


def first_frames(ray, streams) -> list[Started]:
    frames = [ray.get(next(stream)) for stream in streams]
    assert all(isinstance(frame, Started) for frame in frames)
    return frames


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_each_bundle_has_its_gpu(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    settings = WorkerSettings("cpu", 1, str(tmp_path), str(tmp_path))
    with local_ray(Slots(3, 1, 1)) as ray:
        assert ray is import_ray()
        assert ray.cluster_resources()["GPU"] == 3
        # Its servers, and what a raylet starts by itself.
        started = {name for name, processes in ray._private.worker._global_node.all_processes.items() if processes}
        assert started <= {"gcs_server", "raylet", "reaper"} and len(started) >= 2
        streams = [remote_bundle(1, 0).remote([NOTHING], settings) for _ in range(3)]
        frames = first_frames(ray, streams)
        # Three at once on three devices, in processes of their own.
        assert sorted(frame.place.gpu_ids for frame in frames) == ["0", "1", "2"]
        assert len({frame.place.pid for frame in frames}) == 3
        (again,) = first_frames(ray, [remote_bundle(1, 0).remote([NOTHING], settings)])
        assert again.place.pid not in {
            frame.place.pid for frame in frames
        }  # a process a bundle: a GPU is chosen once a process
        hidden = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
        (cpu,) = first_frames(ray, [remote_bundle(0, 1).options(runtime_env=hidden).remote([NOTHING], settings)])
        assert cpu.place.gpu_ids == ""
