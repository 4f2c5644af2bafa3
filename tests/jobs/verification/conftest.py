"""A finished study and its bundle, made once for all tests here."""

import json
from pathlib import Path

import pytest
import torch

from robustq.jobs.store.connection import Store
from robustq.jobs.verification.bundle import write_bundle
from tests.helpers.drain_queue import worked_off

TRAINED = {"arch": "lenet5", "train": {"epochs": 1, "examples": 64, "validation_examples": 20}}
STUDY = {
    "name": "s",
    "models": {"a": TRAINED, "own": {"file": "m.py:build", "weights": "w.safetensors"}},
    "attacks": [{"name": "fgsm", "eps": 0.05}, {"name": "pgd", "steps": 2, "eps": 0.05}],
    "examples": 20,
    "images": 2,
}


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store whose study ran, with a model of the user's: two files, which leave a mark when they are run."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("bundle") / "home"
    torch.set_num_threads(1)  # as jobs run and are replayed: last bits depend on the number
    folder.mkdir()
    (folder / "helper.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    (folder / "m.py").write_text(
        f"from pathlib import Path\nfrom helper import net\nPath({str(folder / 'mark')!r}).touch()\ndef build(): return net()\n"
    )
    random = torch.Generator().manual_seed(0)
    save_file({"1.weight": torch.randn(10, 64, generator=random), "1.bias": torch.zeros(10)}, folder / "w.safetensors")
    study = json.loads(json.dumps(STUDY))
    study["models"]["own"] |= {"file": f"{folder}/m.py:build", "weights": f"{folder}/w.safetensors"}
    return worked_off(folder / "store", study)


@pytest.fixture(scope="session")
def whole(bundled: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "s.zip"
    write_bundle(bundled, "s", path, tell=pytest.fail)
    return path
