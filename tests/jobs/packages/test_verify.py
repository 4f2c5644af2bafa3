"""The verification of packages: every alteration is found and named, and nothing in them runs."""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from robustlib.packages.golden import Golden, golden_bytes, read_golden
from robustq.jobs.errors import SpecError
from robustq.jobs.packages.make import Made
from robustq.jobs.packages.verify import Verified, look_at_logits, verify
from tests.helpers.onnx_programs import with_class_names
from tests.helpers.packaged import altered, zipped


def failures(place: Path, digest: str | None = None) -> list[str]:
    return [f"{one.what}: {one.line}" for one in verify(place, digest).failed]


def test_as_it_was_made(made: Made, place: Path, tmp_path: Path):
    found = verify(place, made.digest)
    assert [(one.what, one.state) for one in found.findings] == [
        ("digest", "ok"), ("files", "ok"), ("golden", "ok"), ("versions", "note"),
    ]  # fmt: skip
    assert found.digest == made.digest and found.findings[1].line.startswith("6 files")
    assert failures(zipped(place, tmp_path / "p.zip"), made.digest.upper()) == []


def test_it_loads_no_torch(place: Path):
    look = (
        "import sys\nfrom robustq import cli\n"
        f"try: cli.main(['verify', {str(place)!r}])\n"
        "except SystemExit as end: assert not end.code\n"
        "loaded = {'torch', 'ray', 'torchvision', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and "the same classes" in done.stdout, done.stderr


def test_without_a_digest_it_says_what_it_cannot_tell(place: Path):
    first = verify(place).findings[0]
    assert first.state == "note" and "only the digest that `robustq package` printed tells" in first.line


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "model.pt2", "golden.npz", "card.md"])
def test_one_bit_of_any_file(place: Path, tmp_path: Path, name: str):
    data = bytearray((place / name).read_bytes())
    data[len(data) // 2] ^= 1
    found = failures(altered(place, tmp_path / "p", files={name: bytes(data)}))
    assert found[0] == f"files: {name}: another content than the card's, by its hash"


def test_a_weight_in_the_program_whose_hash_was_changed_too(made: Made, place: Path, tmp_path: Path):
    """Found by the golden images, whoever changes program and hash together."""
    import onnx

    model = onnx.load_model_from_string((place / "model.onnx").read_bytes())
    bias = next(t for t in model.graph.initializer if t.name.endswith("fc3.bias"))
    values = np.frombuffer(bias.raw_data, np.float32).copy()
    values[0] += 0.05
    bias.raw_data = values.tobytes()
    copy = altered(place, tmp_path / "p", files={"model.onnx": model.SerializeToString()}, rehash=True)
    (found,) = failures(copy)
    assert found.startswith("golden: model.onnx: 64 images, a logit differs by 0.05 or less, at most ")
    assert any(line.startswith("digest: ") for line in failures(copy, made.digest))


def test_the_card_alone(made: Made, place: Path, tmp_path: Path):
    """A number on the card is sealed by the page, whose hash the card has."""
    clean = made.card.model_dump(mode="json")["clean"]
    copy = altered(place, tmp_path / "p", files={}, card={"clean": clean | {"accuracy": 1.0}})
    assert failures(copy) == ["card: card.json says something else than when card.md, which has its hash, was written"]
    assert failures(copy, made.digest)[0].startswith("digest: ") and failures(copy, made.digest)[0].endswith(
        f"expected {made.digest}: this is another package"
    )


def test_another_order_of_the_classes(made: Made, place: Path, tmp_path: Path):
    order = made.card.classes[::-1]
    copy = altered(place, tmp_path / "p", files={}, card={"classes": order})
    card, classes = failures(copy)
    assert card.startswith("card: ") and classes == (
        f"classes: the card names them in the order {order}, model.onnx has {order[::-1]}"
    )


def test_card_page_and_hashes_together_are_told_by_the_digest(made: Made, place: Path, tmp_path: Path):
    """Whoever writes all of it anew has made another package: nothing in it can tell."""
    order = made.card.classes[::-1]
    from robustlib.packages.manifest import seal_of

    said = json.loads((place / "card.json").read_text()) | {"classes": order}
    page = (place / "card.md").read_text()
    page = page.replace(seal_of(json.loads((place / "card.json").read_text())), seal_of(said)).encode()
    program = with_class_names((place / "model.onnx").read_bytes(), json.dumps(order))
    new: dict[str, bytes | None] = {"card.md": page, "model.onnx": program}
    copy = altered(place, tmp_path / "p", files=new, card={"classes": order}, rehash=True)
    assert failures(copy) == []
    assert [line.partition(":")[0] for line in failures(copy, made.digest)] == ["digest"]


def test_a_golden_image(place: Path, tmp_path: Path):
    golden = read_golden((place / "golden.npz").read_bytes())
    golden.images[3] = 255 - golden.images[3]
    (found,) = failures(altered(place, tmp_path / "p", files={"golden.npz": golden_bytes(golden)}, rehash=True))
    assert found.startswith("golden: model.onnx: 64 images, a logit differs by ")
    golden.images[3] = 255 - golden.images[3]
    golden.logits["model.onnx"][5] = np.nan
    (found,) = failures(altered(place, tmp_path / "q", files={"golden.npz": golden_bytes(golden)}, rehash=True))
    assert "a logit differs by inf or less" in found


def test_fewer_golden_images_than_the_card_says(place: Path, tmp_path: Path):
    golden = read_golden((place / "golden.npz").read_bytes())
    logits = {name: some[:9] for name, some in golden.logits.items()}
    fewer = golden_bytes(Golden(golden.images[:9], golden.labels[:9], golden.index[:9], logits))
    found = failures(altered(place, tmp_path / "p", files={"golden.npz": fewer}, rehash=True))
    assert found == ["golden: golden.npz holds 9 images, the card says 64"]


def test_a_program_without_a_tolerance_does_not_pass(made: Made, place: Path, tmp_path: Path):
    golden = made.card.model_dump(mode="json")["golden"] | {"tolerance": {}}
    found = failures(altered(place, tmp_path / "p", files={}, card={"golden": golden}))
    assert "golden: the card states no tolerance for model.onnx" in found


def test_logits_of_one_class_and_texts_as_logits_are_looked_at():
    one = np.ones((2, 1), np.float32)
    golden = Golden(np.zeros((2, 1, 2, 2), np.uint8), np.zeros(2, int), np.arange(2), {})
    for came, failed in ((one, 0), (one + 1, 1), (np.array([["a"], ["b"]], object), 1)):
        found = Verified("p")
        look_at_logits(found, "model.onnx", golden, one, came, 0.1, 1)
        assert len(found.failed) == failed, found.findings


def test_another_version_of_the_runtime_is_named(place: Path, monkeypatch: pytest.MonkeyPatch):
    here = onnxruntime.__version__
    monkeypatch.setattr(onnxruntime, "__version__", "9.9.9")
    *_, last = verify(place).findings
    assert last.state == "note" and last.line.startswith("onnxruntime 9.9.9 here, on ")
    assert f"made with {here}: another version, which may round otherwise" in last.line


class Runs:
    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def bombs(marker: Path) -> dict[str, bytes]:
    """A pickle that would make a folder, in every form in which a package could hold it."""
    bomb = pickle.dumps(Runs(marker))
    file, array = io.BytesIO(), np.array([Runs(marker)] * 64, dtype=object)
    golden: dict[str, Any] = {"images": np.zeros((64, 1, 8, 8), np.uint8), "labels": array, "index": np.arange(64)}
    np.savez(file, **golden)
    pt2 = io.BytesIO()
    with zipfile.ZipFile(pt2, "w") as archive:
        archive.writestr("archive/data/sample_inputs/model.pt", bomb)
    return {"model.pt2": pt2.getvalue(), "model.onnx": bomb, "golden.npz": file.getvalue(), "model.safetensors": bomb}


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx", "golden.npz", "model.safetensors"])
def test_no_pickle_in_a_package_runs(made: Made, place: Path, tmp_path: Path, name: str):
    """Neither when it is verified nor when it is a model: hashed only, or refused by what reads it."""
    from robustlib.datasets import load
    from robustq.jobs.running.package_models import build_packaged
    from robustq.jobs.specs import ModelSpec

    marker = tmp_path / "ran"
    copy = altered(place, tmp_path / "p", files={name: bombs(marker)[name]}, rehash=True)
    found = failures(copy, made.digest)
    assert found[0].startswith("digest: ") and (len(found) > 1) == (name in ("model.onnx", "golden.npz"))
    if name in ("model.onnx", "model.safetensors"):
        with pytest.raises(ValueError, match=r"is no ONNX program|cannot be built: .*[Hh]eader"):
            build_packaged(ModelSpec(), load.load("digits", "test"), copy, None)
    else:
        build_packaged(ModelSpec(), load.load("digits", "test"), copy, None)
    assert not marker.exists()


def test_a_file_too_many_and_one_missing(place: Path, tmp_path: Path):
    bomb = pickle.dumps(Runs(tmp_path / "ran"))
    copy = altered(place, tmp_path / "p", files={"extra.pkl": bomb, "model.pt2": None})
    assert failures(copy) == ["files: model.pt2: missing", "files: extra.pkl: the card does not name it"]
    assert not (tmp_path / "ran").exists()


def test_paths_that_leave_the_folder(place: Path, tmp_path: Path):
    (tmp_path / "in").mkdir()
    out = zipped(place, tmp_path / "in" / "p.zip")
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("../planted", b"x")
    (found,) = failures(out)
    assert found.endswith("holds '../planted': a package has files in one folder, with plain names")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "p.zip"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"clean": {"n": -1}}, "card: it is no card of this format: clean."),
        ({"surprise": 1}, "card: it is no card of this format: surprise: Extra inputs are not permitted"),
    ],
)
def test_a_card_of_another_form(place: Path, tmp_path: Path, change: dict[str, Any], line: str):
    (found,) = failures(altered(place, tmp_path / "p", files={}, card=change))
    assert found.startswith(line)


def test_what_is_no_digest_is_told(place: Path):
    for digest in ("", "1f0c", "ü" * 64, "g" * 64):
        with pytest.raises(SpecError, match="--digest: expected 64 digits and letters from a to f, got '"):
            verify(place, digest)


def test_a_place_without_a_package(tmp_path: Path):
    with pytest.raises(SpecError, match="there is no package"):
        verify(tmp_path / "none")
    assert failures(tmp_path)[0].endswith("is no package: it has no card.json, which `robustq package` writes")
