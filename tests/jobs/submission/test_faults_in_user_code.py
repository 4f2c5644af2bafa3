"""What a user's module raises in a method that somebody else calls: one line with its place in the user's file."""

from pathlib import Path

import pytest

from robustq.jobs.errors import SpecError
from robustq.jobs.study.study import load_study
from robustq.jobs.submission.expand_study import expand, resolve

MODULE = """import torch

class Mine(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(64, 10)

    def forward(self, x):
        return self.net(x.flatten(1))

{method}
        raise RuntimeError("not here")

def make():
    return Mine()
"""
METHODS = {
    "parameters": "    def parameters(self, recurse=True):",
    "named_parameters": "    def named_parameters(self, *args, **kwargs):",
    "modules": "    def modules(self):",
    "train": "    def train(self, mode=True):",
    "eval": "    def eval(self):",
    "__deepcopy__": "    def __deepcopy__(self, memo):",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_raises_is_named_with_its_line(tmp_path: Path, name: str):
    (tmp_path / "m.py").write_text(MODULE.format(method=METHODS[name]))
    (tmp_path / "s.yaml").write_text(
        'dataset: digits\nmodels:\n  mine: {file: "m.py:make", train: {epochs: 1}}\nattacks: [{name: pgd, eps: 0.1}]\nexamples: 10\n'
    )
    study, origin = load_study(tmp_path / "s.yaml", {})
    try:
        expand(resolve(study, origin, tmp_path, tmp_path))
    except SpecError as error:  # what nobody calls does no harm
        assert str(error).startswith(f"{tmp_path}/s.yaml:3: ") and "RuntimeError: not here" in str(error)
        assert "(m.py:12)" in str(error) or name in ("train", "eval"), error
    else:
        assert name not in ("parameters", "named_parameters")
