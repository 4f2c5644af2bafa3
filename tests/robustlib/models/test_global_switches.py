"""What a model's file switches for the whole process ends with the model being made, and is said."""

from pathlib import Path

import pytest
import torch

from robustlib.inference.float32_switches import FINE, PRECISIONS, switch
from robustlib.inference.global_switches import put_back, read
from robustlib.inference.model_modes import strict_float32
from robustlib.models import build

FACTS = {"in_channels": 1, "num_classes": 10, "image_size": (8, 8)}
LINES = {
    "torch.backends.cudnn.benchmark": "torch.backends.cudnn.benchmark = True",
    "torch.backends.cudnn.deterministic": "torch.backends.cudnn.deterministic = True",
    "torch.backends.cudnn.enabled": "torch.backends.cudnn.enabled = False",
    "torch.set_default_dtype": "torch.set_default_dtype(torch.float64)",
    "torch.set_default_device": "torch.set_default_device('meta')",
    "torch.set_grad_enabled": "torch.set_grad_enabled(False)",
    "torch.set_num_threads": "torch.set_num_threads(torch.get_num_threads() + 1)",
    "torch.use_deterministic_algorithms": "torch.use_deterministic_algorithms(True, warn_only=True)",
    "TF32": "torch.backends.cuda.matmul.allow_tf32 = True",
}


def test_every_switch_is_looked_at():
    assert set(LINES) == set(read())


@pytest.mark.slow
@pytest.mark.parametrize("name", LINES)
def test_a_file_that_switches_is_told_and_others_run_as_before(name: str, tmp_path: Path):
    made = "torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10, device='cpu', dtype=torch.float32))"
    (tmp_path / "m.py").write_text(f"import torch\n{LINES[name]}\ndef make():\n    return {made}\n")
    before, told = read(), list[str]()
    model = build(file=f"{tmp_path}/m.py:make", tell=told.append, **FACTS)  # pyright: ignore[reportArgumentType]
    assert read() == before
    assert model(torch.rand(2, 1, 8, 8)).requires_grad
    assert len(told) == 1 and f"m.py:make sets {name} for the whole process: put back once" in told[0]


GENERAL = ("torch.backends.", "torch.backends.cudnn.", "torch.backends.mkldnn.", "torch.backends.cuda.matmul.")


@pytest.mark.skipif(not FINE, reason="torch has had these switches since 2.9")
@pytest.mark.parametrize("name", GENERAL)
@pytest.mark.parametrize("value", ["tf32", "ieee"])
def test_a_switch_that_others_follow_is_put_back(name: str, value: str):
    """What is not set itself follows the general ones: those alone make TF32 of everything."""
    before, shown = read(), [switch(one).fp32_precision for one in PRECISIONS]
    with put_back() as changed:
        exec(f"{name}fp32_precision = {value!r}", {"torch": torch})
        with strict_float32():
            assert {switch(one).fp32_precision for one in PRECISIONS} == {"ieee"}
        assert eval(f"{name}fp32_precision", {"torch": torch}) == value
    assert changed == ["TF32"]
    assert read() == before and [switch(one).fp32_precision for one in PRECISIONS] == shown
    assert eval("torch.backends.fp32_precision") == before["TF32"]["generic"]


def test_switches_are_put_back_also_after_an_error():
    before = read()
    with pytest.raises(KeyError), put_back() as changed:
        torch.backends.cudnn.benchmark = not before["torch.backends.cudnn.benchmark"]
        raise KeyError
    assert read() == before and changed == ["torch.backends.cudnn.benchmark"]
    with put_back() as changed:
        pass
    assert changed == []
