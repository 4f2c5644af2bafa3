"""Models that only answer: callables of every kind, and a server on this machine that answers well and badly."""

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlib.attacks import ATTACKS
from robustlib.audit.audit import Audit, audit
from robustlib.evaluation.batches import evaluate_batches
from robustlib.evaluation.explanation import explain
from robustlib.inference.fast_copy import make_replicas
from robustlib.models import build
from robustlib.models.black_box import BlackBoxModel, are_probabilities, endpoint
from tests.helpers.model_server import Reply, Server, answering, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def scores(images: np.ndarray) -> np.ndarray:
    """Logits of a linear model with three classes; images (B, 1, 4, 4)."""
    return images.reshape(len(images), -1) @ np.linspace(-1, 1, 48).reshape(16, 3)


def shares(images: np.ndarray) -> np.ndarray:
    odds = np.exp(scores(images))
    return odds / odds.sum(1, keepdims=True)


X = torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LOGITS = torch.from_numpy(scores(X.double().numpy())).float()


def test_logits_come_through_from_tensors_arrays_and_lists():
    for fn in (
        lambda x: torch.from_numpy(scores(x.numpy())),
        lambda x: scores(np.asarray(x)),
        lambda x: scores(x.numpy()).tolist(),
    ):
        torch.testing.assert_close(BlackBoxModel(fn)(X), LOGITS)


def test_probabilities_become_logits_of_the_same_probabilities():
    found = BlackBoxModel(lambda x: shares(x.numpy()))(X)
    torch.testing.assert_close(found, LOGITS.log_softmax(1), rtol=1e-4, atol=1e-5)
    certain = BlackBoxModel(lambda x: np.eye(3)[[0, 2]])(X[:2])
    assert certain.isfinite().all() and certain.argmax(1).tolist() == [0, 2]


def test_rounded_probabilities_are_all_on_one_scale():
    """Two decimals: some rows sum to 0.99 and some to 1.01, and none may be taken for logits among logarithms."""
    model = BlackBoxModel(lambda x: shares(x.numpy()).round(2))
    found = model(X)
    rounded = torch.from_numpy(shares(X.numpy()).round(2)).float()
    assert (rounded.sum(1) != 1).any()
    torch.testing.assert_close(found, rounded.clamp_min(1e-12).log())
    logits = BlackBoxModel(lambda x: scores(x.numpy()))
    assert not are_probabilities(LOGITS)
    logits(X)
    logits.fn = lambda x: np.full((len(x), 3), 1 / 3)  # rows that might be either: it gave logits before
    torch.testing.assert_close(logits(X), torch.full((len(X), 3), 1 / 3))
    model.fn = lambda x: scores(x.numpy()) - 5
    with pytest.raises(ValueError, match=r"^expected probabilities, as before, got -"):
        model(X)


@pytest.mark.parametrize("kind", [np.int64, np.float32, np.uint8])
def test_labels_become_rows_with_a_one(kind: type):
    model = BlackBoxModel(lambda x: scores(x.numpy()).argmax(1).astype(kind), num_classes=3)
    assert torch.equal(model(X), nn.functional.one_hot(LOGITS.argmax(1), 3).float())


@pytest.mark.parametrize(
    ("fn", "classes", "message"),
    [
        (lambda x: scores(x.numpy()).argmax(1), None, "answers with labels: expected num_classes"),
        (lambda x: np.full(len(x), 3), 3, "labels from 0 to 2, got 3 to 3"),
        (lambda x: np.full(len(x), 0.5), 3, "labels from 0 to 2, got 0.5 to 0.5"),
        (lambda x: scores(x.numpy())[:-1], 3, r"answer of shape \(9, classes\) or \(9,\), got \(8, 3\)"),
        (lambda x: x, 3, r"got \(9, 1, 4, 4\)"),
        (lambda x: "seven", 3, "expected numbers as the model's answer, got str"),
        (lambda x: [[1, 2]] + [[1]] * 8, 3, "expected numbers as the model's answer, got list"),
        (lambda x: None, 3, "expected numbers as the model's answer, got NoneType"),
    ],
)
def test_other_answers_are_refused(fn, classes, message):
    with pytest.raises(ValueError, match=message):
        BlackBoxModel(fn, classes)(X)


def test_it_is_attacked_by_what_needs_no_gradient(net: nn.Module, test: tuple[Tensor, Tensor]):
    """Square finds the same images on a network and on what only hands its answers on, to the bit."""
    x, y = test[0][:24], test[1][:24]
    attack = [("square", partial(ATTACKS["square"], eps=0.2, queries=60))]

    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return net(x).detach()

    run = partial(evaluate_batches, x=x, y=y, attacks=attack, eps=0.2, num_classes=10, device=torch.device("cpu"))
    (given,), (asked,) = run(Whole()), run(BlackBoxModel(lambda x: net(x).numpy()))
    assert torch.equal(given.x_adv, asked.x_adv) and asked.outcome.success.any()
    with pytest.raises(ValueError, match="no gradient"):
        list(
            evaluate_batches(
                BlackBoxModel(lambda x: net(x)),
                x,
                y,
                [("pgd", partial(ATTACKS["pgd"], eps=0.1))],
                eps=0.1,
                num_classes=10,
            )
        )


@pytest.mark.parametrize(
    ("answer", "cause"), [("logits", "only-answers"), ("probabilities", "only-answers"), ("labels", "labels-only")]
)
def test_an_audit_asks_a_server_as_it_asks_a_callable(answer: str, cause: str, server: Server, net, test, train):
    """It finds the same on both, by searches and a surrogate alone, and says what it left out."""
    forms = {"logits": lambda z: z, "probabilities": lambda z: z.softmax(1), "labels": lambda z: z.argmax(1)}

    @torch.no_grad()
    def fn(images: np.ndarray) -> np.ndarray:
        return forms[answer](net(torch.from_numpy(images).float())).numpy()

    x, y = test[0][:20], test[1][:20]
    server.reply = answering(fn)
    pool = train[0][:128].float() / 255
    found = []
    for model in (BlackBoxModel(lambda x: fn(x.numpy()), 10), endpoint(server.url, num_classes=10)):
        *_, last = audit(model, x, y, eps=0.2, queries=60, pool=pool, num_classes=10)
        assert isinstance(last, Audit)
        found.append(last)
    asked, served = found
    assert torch.equal(asked.x_adv, served.x_adv) and asked.checks == served.checks
    assert (served.verdict, served.cause) == ("fail", cause)
    assert served.naive_robust_accuracy == served.clean_accuracy > served.adaptive_robust_accuracy
    assert [trial.attack for trial in served.trials][:4] == ["random noise", "Square", "NES", "HopSkipJump"]
    assert served.left_out == [("PGD, FGSM and Auto-PGD on the model's own gradient", "it only answers")]
    with torch.no_grad():
        stands = net(served.x_adv).argmax(1) == y
    assert stands.float().mean().item() == pytest.approx(served.adaptive_robust_accuracy)
    # Of each image the queries of four searches at most, besides what the model is looked at with and the pool.
    assert sum(len(request["instances"]) for request in server.requests) < 20 * (3 * 60 + 20) + 128 + 5000


def test_what_has_no_gradient_has_no_copy_to_compare(net: nn.Module, test: tuple[Tensor, Tensor]):
    replicas = make_replicas(BlackBoxModel(lambda x: net(x)), test[0][:16])
    assert replicas.search is replicas.fine is replicas.exact and replicas.exact.unseen is None
    replicas.exact(test[0][:60])
    assert replicas.passes.forwards == 60 and replicas.passes.gradients == 0


def test_a_factory_may_return_any_callable(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def build(num_classes):\n"
        "    return lambda x: np.asarray(x).reshape(len(x), -1).argmax(1) % num_classes\n"
        "def broken():\n"
        "    return 3\n"
    )
    facts = {"in_channels": 1, "num_classes": 5, "image_size": (4, 4)}
    model = build(file=f"{tmp_path}/mine.py:build", **facts)
    assert isinstance(model, BlackBoxModel)
    assert torch.equal(model(X).argmax(1), X.flatten(1).argmax(1) % 5)
    with pytest.raises(ValueError, match=r"returned int, expected a torch.nn.Module or a callable"):
        build(file=f"{tmp_path}/mine.py:broken", **facts)


@pytest.mark.parametrize(("layout", "shape"), [("CHW", [4, 1, 4, 4]), ("HWC", [4, 4, 4, 1])])
def test_a_server_is_asked_in_batches(server: Server, layout, shape):
    server.reply = answering(lambda images: scores(images.reshape(len(images), 16)))
    torch.testing.assert_close(endpoint(server.url, layout=layout, batch_size=4)(X), LOGITS)
    sizes = [np.shape(request["instances"]) for request in server.requests]
    assert [len(request["instances"]) for request in server.requests] == [4, 4, 1] and list(sizes[0]) == shape
    assert {(r["type"], r["path"]) for r in server.requests} == {("application/json", "/v1/models/digits:predict")}
    sent = np.concatenate([np.array(request["instances"]).reshape(-1, 16) for request in server.requests])
    np.testing.assert_array_equal(sent.astype(np.float32), X.reshape(9, 16).numpy())


@pytest.mark.parametrize("layout", ["CHW", "HWC"])
def test_a_server_that_takes_arrays_gets_them(server: Server, layout):
    """The same numbers to the bit as in lists, from its first answer on, and for as long as it says so."""
    taken: list[np.ndarray] = []

    def reply(images: np.ndarray) -> Reply:
        taken.append(images)
        return answering(scores)(images)

    server.reply, server.headers = reply, {"Accept-Post": "image/png, Application/X-NPY; version=1"}
    model = endpoint(server.url, layout=layout, batch_size=4)
    model(X)
    server.headers = {}
    model(X[:8])
    json, npy = "application/json", "application/x-npy"
    assert [request["type"] for request in server.requests] == [json, npy, npy, npy, json]
    assert {images.dtype.name for images in taken[1:4]} == {"float32"}
    sent = np.concatenate([np.float32(images) for images in taken])
    shaped = X if layout == "CHW" else X.permute(0, 2, 3, 1)
    np.testing.assert_array_equal(sent, np.concatenate([shaped, shaped[:8]]))


@pytest.mark.parametrize("status", [400, 403, 415])
def test_a_server_that_refuses_an_array_gets_lists_for_good(server: Server, status: int):
    """As where not all servers behind an address are alike, or a proxy before them passes no body that it does not know."""

    def reply(images: np.ndarray) -> Reply:
        arrays = server.requests[-1]["type"] == "application/x-npy"
        return (status, b"no such body") if arrays else answering(scores)(images)

    server.reply, server.headers = reply, {"Accept-Post": "application/x-npy"}
    model = endpoint(server.url, batch_size=4)
    torch.testing.assert_close(model(X), torch.from_numpy(scores(X.numpy())).float())
    json, npy = "application/json", "application/x-npy"
    assert [request["type"] for request in server.requests] == [json, npy, json, json]


def test_images_that_are_refused_in_every_form_are_told_as_lists(server: Server):
    server.reply, server.headers = answering(scores), {"Accept-Post": "application/x-npy"}
    model = endpoint(server.url)
    model(X)
    server.reply = lambda images: (413, server.requests[-1]["type"].encode())
    with pytest.raises(ValueError, match=r"refuses the images: HTTP 413 application/json$"):
        model(X)


def test_a_server_is_not_asked_about_no_images(server: Server):
    """As a search does of which every image has fallen: servers refuse such a request."""
    assert endpoint(server.url, num_classes=10)(X[:0]).shape == (0, 10) and server.requests == []


def test_labels_of_a_server_become_rows(server: Server):
    server.reply = answering(lambda images: scores(images).argmax(1))
    model = build(file=server.url, in_channels=1, num_classes=3, image_size=(4, 4), options={"retries": 0})
    assert torch.equal(model(X).argmax(1), LOGITS.argmax(1))


def test_a_server_in_trouble_is_asked_again_with_pauses(server: Server, monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr("robustlib.models.http_request.time.sleep", pauses.append)
    good = answering(scores)
    server.reply = lambda images: (503, b"busy") if len(server.requests) < 4 else good(images)
    torch.testing.assert_close(endpoint(server.url, backoff=0.25)(X), LOGITS)
    assert pauses == [0.25, 0.5, 1.0] and len(server.requests) == 4
    server.reply = lambda images: (500, b"out\nof memory")
    with pytest.raises(ValueError, match=r"gave no answer in 3 tries: HTTP 500 out of memory$"):
        endpoint(server.url, retries=2)(X)


@pytest.mark.slow
def test_a_server_that_is_not_there(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("robustlib.models.http_request.time.sleep", lambda seconds: None)
    with pytest.raises(ValueError, match=r"^http://127.0.0.1:1/m:predict gave no answer in 2 tries: .*refused"):
        endpoint("http://127.0.0.1:1/m:predict", retries=1)(X)
    gone = threading.Event()
    server.reply = lambda images: (gone.wait(5), (200, b""))[1]
    with pytest.raises(ValueError, match=r"gave no answer in 1 try: .*timed out"):
        endpoint(server.url, retries=0, timeout=0.2)(X)
    gone.set()


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((400, b"bad shape"), "refuses the images: HTTP 400 bad shape$"),
        ((404, b""), "refuses the images: HTTP 404$"),
        ((200, b"<html>"), "answers with no JSON: '<html>'"),
        ((200, b"[1]"), 'answers without a list "predictions", with list'),
        ((200, b'{"outputs": []}'), 'answers without a list "predictions", with the entries outputs'),
        ((200, b'{"predictions": [[1, 2]]}'), "gives 1 prediction for 9 images"),
        ((200, b'{"predictions": [' + b", ".join([b'{"a": 1}'] * 9) + b"]}"), r"several outputs an image \(a\)"),
        ((200, b'{"predictions": [' + b", ".join([b'"x"'] * 9) + b"]}"), "expected numbers"),
        ((200, b'{"predictions": [' + b", ".join([b"[[1]]"] * 9) + b"]}"), r"got \(9, 1, 1\)"),
    ],
)
def test_a_server_that_answers_otherwise(server: Server, reply: Reply, message: str):
    server.reply = lambda images: reply
    with pytest.raises(ValueError, match=message):
        endpoint(server.url, num_classes=3, retries=0)(X)


def test_a_function_gets_images_alone():
    """Copies to search on are traced, with what is no tensor."""
    asked = list[object]()

    def fn(images: Tensor) -> np.ndarray:
        asked.append(images)
        return scores(images.numpy())

    model = nn.Sequential(nn.Identity(), BlackBoxModel(fn)).eval()
    make_replicas(model, X)
    explain(model, X, method="occlusion")
    assert asked and all(isinstance(each, Tensor) for each in asked)


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("ftp://host/m", {}, "address as http://HOST/...:predict, got 'ftp://host/m'"),
        ("http://", {}, "got 'http://'"),
        ("http://host/m", {"layout": "WHC"}, "layout CHW or HWC, got 'WHC'"),
        ("http://host/m", {"batch_size": 0}, "expected batch_size of at least 1, got 0"),
    ],
)
def test_what_is_no_address_is_refused(url: str, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        endpoint(url, **options)
