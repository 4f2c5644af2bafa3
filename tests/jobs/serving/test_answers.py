"""What a package's program answers, beside what its golden images say."""

from pathlib import Path

import numpy as np
import pytest

from robustlib.packages.contents import PackageError
from robustlib.packages.golden import as_floats, read_golden
from robustlib.packages.manifest import GOLDEN, ONNX, open_package
from robustq.jobs.serving.answers import Certificate, Program
from robustq.jobs.serving.replies import certified
from tests.helpers.packaged import altered


def test_the_program_gives_its_golden_answers(place: Path):
    package = open_package(place)
    golden = read_golden(package.read(GOLDEN))
    engine = Program(package)
    answers = engine.answer(as_floats(golden.images))
    assert engine.image == golden.images.shape[1:] and len(engine.classes) == golden.logits[ONNX].shape[1]
    assert np.allclose(np.stack([answer.scores for answer in answers]), golden.logits[ONNX], atol=1e-5)
    assert [answer.label for answer in answers] == golden.logits[ONNX].argmax(axis=1).tolist()
    assert {(answer.kind, answer.certificate) for answer in answers} == {("logits", None)}


def test_a_card_without_its_classes_is_one_line(place: Path, tmp_path: Path):
    copy = altered(place, tmp_path / "copy", files={}, card={"classes": 3})
    with pytest.raises(PackageError, match=r"^it is no card of this format: classes: "):
        Program(open_package(copy))


@pytest.mark.parametrize("radius", [0.4996, 0.25, 1.0, 8 / 255, 1e-9, 0.30000000000000004])
def test_a_radius_is_said_as_it_was_certified(radius: float):
    """Rounded to three digits 0.4996 would be 0.5, which nobody showed."""
    (said,) = certified(Certificate({radius: True}, 500, 0.25, 0.001))["holds"]
    assert float(said) == radius and (radius != 0.4996 or said == "0.4996") and (radius != 1.0 or said == "1")
