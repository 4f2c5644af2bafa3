"""What a served model answers over HTTP: each way of asking gives its answer, and everything else is one line."""

import json
import re
import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.middleware import Middleware

from robustq.jobs.serving.answers import ABSTAINED, Answer, Certificate
from robustq.jobs.serving.application import make_application
from robustq.jobs.serving.server import Calm, doors
from robustq.jobs.serving.settings import Settings
from tests.helpers.served import (
    CLASSES,
    FACTS,
    SHAPE,
    Colours,
    Reply,
    ask,
    instances,
    is_closed,
    means,
    npy,
    picture,
    running,
    some_images,
    until,
)

V1 = "/v1/models/colours:predict"
X = some_images(5)
TOKEN = "of-tests-0123456"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with running(make_application(Colours(), FACTS, Settings(request_images=8, body_seconds=0.5))) as port:
        yield port


def line_of(found: Reply) -> str:
    """The one line with which a request is refused."""
    said = found.json
    assert found.body.count(b"\n") == 1 and found.body.endswith(b"\n") and set(said) == {"error", "request"}
    assert "\n" not in said["error"] and found.headers["X-Request-Id"] == said["request"]
    return said["error"]


@pytest.mark.parametrize(
    ("body", "kind", "n"),
    [
        (npy(X), "application/octet-stream", 5),
        (npy(X[0]), "application/x-npy", 1),
        (npy(X / np.float32(255)), "application/x-npy; charset=binary", 5),
        (instances(X.astype(np.float32) / np.float32(255)), "application/json", 5),
        (picture(X[0]), "image/png", 1),
        (picture(X[0]), "Image/PNG", 1),
    ],
    ids=["octets", "one", "floats", "json", "png", "PNG"],
)
def test_each_body_gets_the_answer_of_its_images(port, body, kind, n):
    found = ask(port, "/predict", body, kind)
    assert found.status == 200 and found.headers["Content-Type"] == "application/json"
    said = found.json
    assert (said["model"], said["package"]) == ("colours", FACTS.digest)
    assert said["request"] == found.headers["X-Request-Id"] and re.fullmatch(r"[0-9a-f]{16}", said["request"])
    expected = means(X[:n])
    assert np.array_equal([answer["scores"] for answer in said["answers"]], expected)
    assert [answer["label"] for answer in said["answers"]] == expected.argmax(1).tolist()
    assert [answer["class"] for answer in said["answers"]] == [CLASSES[k] for k in expected.argmax(1)]
    for answer in said["answers"]:
        told = (answer["kind"], answer["abstained"], answer["certificate"], answer["signals"])
        assert told == ("logits", False, None, None)


def test_the_v1_protocol_gives_rows_of_logits(port):
    found = ask(port, V1, instances(X / 255), "application/json")
    assert found.status == 200 and set(found.json) == {"predictions"}
    assert np.allclose(found.json["predictions"], means(X), atol=1e-6)
    assert found.headers["X-Package-Digest"] == FACTS.digest
    assert ask(port, "/v1/models").json == {"models": ["colours"]}
    assert ask(port, "/v1/models/colours").json == {"name": "colours", "ready": True}


@pytest.mark.parametrize("path", ["/predict", V1])
def test_answers_say_which_bodies_are_taken(port, path):
    said = ask(port, path, instances(X / 255), "application/json").headers["Accept-Post"].split(", ")
    assert {"application/json", "application/x-npy", "image/png", "image/jpeg"} <= set(said)
    assert {ask(port, path, b"x", kind).status for kind in said} == {400}  # damaged, and of a type that is read


def test_channels_last_are_asked_for(port):
    found = ask(port, "/predict?layout=HWC", npy(X.transpose(0, 2, 3, 1)), "application/x-npy")
    assert np.array_equal([answer["scores"] for answer in found.json["answers"]], means(X))
    assert "expected ?layout=CHW or ?layout=HWC, got 'x'" in line_of(
        ask(port, "/predict?layout=x", npy(X), "image/png")
    )


@pytest.mark.slow
def test_what_nobody_thought_of_is_one_line_and_counted(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise MemoryError("a secret")

    monkeypatch.setattr("robustq.jobs.serving.application.read_images", broken)
    with running(make_application(Colours(), FACTS)) as port:
        found = ask(port, "/predict", npy(X), "application/x-npy")
        assert found.status == 500 and line_of(found) == "the server failed on this request: its log says why"
        assert numbers(port)["robustq_requests_total 500"] == 1


def test_a_request_keeps_the_id_that_it_came_with(port):
    for given, kept in (("a-b.1", True), ("x" * 65, False), ("a b", False), ('"', False)):
        found = ask(port, "/predict", npy(X), "application/x-npy", X_Request_Id=given)
        assert (found.json["request"] == given) == kept == (found.headers["X-Request-Id"] == given)


@pytest.mark.parametrize("path", ["/predict", V1])
def test_what_cannot_be_read_is_one_line(port, path):
    cases = (
        (b"x", None, 415, "expected a body of Content-Type application/json, image/png, image/jpeg or"),
        (b"x", "text/plain", 415, "got 'text/plain'"),
        (b"x", "application/json", 400, "expected JSON, {"),
        (npy(X.astype(np.float64)), "application/x-npy", 400, "expected an array of uint8 or float32"),
        (npy(some_images(9)), "application/x-npy", 413, "expected at most 8 images a request, got 9"),
        (b"x" * (2**20 + 2**16), "image/png", 413, "expected a body of at most 1048936 bytes"),
        (b"", "image/jpeg", 400, "expected a JPEG"),
    )
    for body, kind, status, line in cases:
        found = ask(port, path, body, kind)
        assert found.status == status and line in line_of(found), line
    packed = ask(port, path, npy(X), "application/x-npy", Content_Encoding="gzip")
    assert packed.status == 415 and "Content-Encoding 'gzip'" in line_of(packed)


def test_paths_and_methods_that_are_none_are_one_line(port):
    assert "there is no '/elsewhere' here, expected one of: /predict, /v1/" in line_of(ask(port, "/elsewhere"))
    assert "there is no '/elsewhere' here" in line_of(ask(port, "/elsewhere", Host="["))  # of which no URL is made
    other = ask(port, "/v1/models/net:predict", b"{}", "application/json")
    assert other.status == 404 and V1 in line_of(other)
    found = ask(port, "/predict")
    assert (
        found.status == 405
        and line_of(found) == "'/predict': expected POST, got GET"
        and found.headers["Allow"] == "POST"
    )


def raw(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """What comes back when these bytes are sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        found = b""
        while b"\n" not in found.partition(b"\r\n\r\n")[2] and (part := connection.recv(65536)):
            found += part
        return found


HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-npy\r\n"


def test_a_body_without_length_is_read_within_the_limit(port):
    body = npy(X)
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:100], body[100:])) + b"0\r\n\r\n"
    found = raw(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
    assert found.startswith(b"HTTP/1.1 200 ")
    said = json.loads(found.partition(b"\r\n\r\n")[2])
    assert np.array_equal([answer["scores"] for answer in said["answers"]], means(X))
    endless = b"10000\r\n" + b"x" * 2**16 + b"\r\n"
    found = raw(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", endless, endless)
    assert found.startswith(b"HTTP/1.1 413 ") and b"expected a body of at most" in found


@pytest.mark.parametrize("declared", [b"99999999999", b"9" * 400, b"-1", b"x", b"1, 2"])
def test_a_declared_length_is_believed_or_refused(port, declared):
    found = raw(port, HEAD + b"Content-Length: " + declared + b"\r\n\r\n")
    assert found.startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 "))


@pytest.mark.slow
def test_a_body_that_does_not_come_is_not_waited_for(port):
    start = time.monotonic()
    found = raw(port, HEAD + b"Content-Length: 500\r\n\r\n", b"\x93NUMPY")
    assert found.startswith(b"HTTP/1.1 408 ") and b"expected the body within 0.5 seconds" in found
    assert 0.4 < time.monotonic() - start < 10


@pytest.mark.slow
def test_bodies_of_all_clients_share_their_room():
    """Who declares much and sends little takes no place from others; who sends it does, until he has gone."""
    application = make_application(Colours(), FACTS, Settings(body_seconds=20))
    room = application.state.service.room
    with running(application) as port, socket.create_connection(("127.0.0.1", port)) as slow:
        body = npy(some_images(60))
        slow.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body[:3000])
        until(lambda: room.taken == 3000)
        room.most = 3000 + 2000
        assert ask(port, "/predict", npy(X), "application/x-npy").status == 200
        found = ask(port, "/predict", npy(some_images(60)), "application/x-npy")
        assert found.status == 503 and found.headers["Retry-After"] == "1"
        assert "the bodies of other requests take all the memory" in line_of(found)
        slow.close()
        until(lambda: room.taken == 0)


@pytest.mark.slow
def test_connections_that_are_too_many_are_closed_as_they_come(monkeypatch: pytest.MonkeyPatch):
    """So that a process never runs out of files, of which asyncio writes a traceback each time."""
    monkeypatch.setattr(Calm, "most", 20)
    with running(make_application(Colours(), FACTS)) as port:
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
        until(lambda: sum(map(is_closed, idle)) == 40)
        for each in idle:
            each.close()
        until(lambda: ask_or_none(port) == 200)


def ask_or_none(port: int) -> int | None:
    try:
        return ask(port, "/health").status
    except OSError:
        return None


def test_the_card_is_given_in_both_forms(port):
    assert ask(port, "/card").body == ask(port, "/card.json").body == FACTS.card
    for found in (ask(port, "/card.md"), ask(port, "/card", Accept="text/markdown, */*;q=0.1")):
        assert found.body == FACTS.text and found.headers["Content-Type"] == "text/markdown; charset=utf-8"


def test_health_says_what_is_served(port):
    said = {"status": "ok", "model": "colours", "package": FACTS.digest, "engine": "means of channels"}
    found = ask(port, "/health")
    assert (found.status, found.json) == (200, said)


class Every:
    """Raises a signal for each image whose class is red, and for each of the first client's."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, str]] = []
        self.closed = False

    def look(self, client, images, answers, *, request=""):
        assert images.shape == (len(answers), *SHAPE)
        self.seen.append((client, len(images), request))
        return [("red", "odd") if answer.label == 0 else () for answer in answers]

    def counters(self) -> dict[str, int]:
        return {"red": 7, "odd": 0}

    def close(self) -> None:
        self.closed = True


def numbers(port: int) -> dict[str, float]:
    """Every sample of /metrics, read by Prometheus' own parser."""
    found = ask(port, "/metrics")
    assert found.status == 200 and found.headers["Content-Type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(found.body.decode())
    return {
        sample.name + "".join(f" {value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.slow
def test_what_is_counted_is_what_was_asked():
    watch = Every()
    with running(make_application(Colours(), FACTS, Settings(batch_seconds=0), watch)) as port:
        for n in (1, 3, 5):
            answers = ask(port, "/predict", npy(X[:n]), "application/x-npy", X_Request_Id=f"r{n}").json["answers"]
            expected = [["red", "odd"] if row.argmax() == 0 else [] for row in means(X[:n])]
            assert [answer["signals"] for answer in answers] == expected
        ask(port, "/predict", b"x", "text/plain")
        found = numbers(port)
    assert watch.closed and watch.seen == [("127.0.0.1", 1, "r1"), ("127.0.0.1", 3, "r3"), ("127.0.0.1", 5, "r5")]
    assert (found["robustq_requests_total 200"], found["robustq_requests_total 415"]) == (3, 1)
    assert (found["robustq_images_total"], found["robustq_batch_images_count"]) == (9, 3)
    batches = [found[f"robustq_batch_images_bucket {most}"] for most in ("1.0", "2.0", "4.0", "8.0", "+Inf")]
    assert batches == [1, 1, 2, 3, 3]
    assert found["robustq_queue_images"] == 0 and found["robustq_request_seconds_count"] == 4
    assert (found["robustq_signals_total red"], found["robustq_signals_total odd"]) == (7, 0)
    assert found["process_resident_memory_bytes"] > 1e6


class Voting(Colours):
    """Votes of three copies; the first image is certain within 0.25, of the others nothing is."""

    def answer(self, images: np.ndarray) -> list[Answer]:
        certain = Certificate({0.25: True, 0.5: False}, 30, 0.25, 0.001)
        unsure = Certificate({0.25: False, 0.5: False}, 60, 0.25, 0.001)
        first = Answer(0, np.array([27, 3, 0], np.float32), "votes", certain)
        other = Answer(ABSTAINED, np.array([30, 30, 0], np.float32), "votes", unsure)
        return [first, *[other] * (len(images) - 1)]


@pytest.mark.slow
def test_votes_are_shares_and_a_certificate_says_what_holds():
    with running(make_application(Voting(), FACTS)) as port:
        first, second = ask(port, "/predict", npy(X[:2]), "application/x-npy").json["answers"]
        rows = ask(port, V1, npy(X[:2]), "application/x-npy").json["predictions"]
    assert (first["class"], first["abstained"], first["kind"]) == ("red", False, "votes")
    holds = {"norm": "L2", "holds": {"0.25": True, "0.5": False}, "sigma": 0.25, "alpha": 0.001, "votes": 30}
    assert first["certificate"] == holds and np.allclose(first["scores"], [0.9, 0.1, 0])
    assert (second["label"], second["class"], second["abstained"]) == (None, None, True)
    assert second["certificate"]["holds"] == {"0.25": False, "0.5": False}
    assert np.allclose(rows, [[0.9, 0.1, 0], [0.5, 0.5, 0]])


@pytest.mark.slow
def test_without_the_token_nothing_but_health_is_answered():
    with running(make_application(Colours(), FACTS, doors=doors("0.0.0.0", TOKEN))) as port:
        body = npy(X[:1])
        for path in ("/predict", V1, "/card", "/metrics", "/", "/v1/models"):
            found = ask(port, path, body, "application/x-npy", Authorization="Bearer x")
            assert found.status == 403 and "Authorization: Bearer TOKEN" in json.loads(found.body)["error"], path
            assert json.loads(found.body)["request"] == found.headers["x-request-id"]
        assert ask(port, "/health").status == 200
        basic = {"Authorization": "Basic eDpvZi10ZXN0cy0wMTIzNDU2"}  # x:of-tests-0123456
        for named in ({"Authorization": f"Bearer {TOKEN}"}, {"Authorization": f"bearer {TOKEN}"}, basic):
            assert ask(port, "/predict", body, "application/x-npy", **named, Host="model.example:9").status == 200
        assert ask(port, "/predict", body, "application/x-npy", Authorization=TOKEN).status == 403
        assert ask(port, "/health", Host="a:99999999").status == 200
        assert ask(port, "/card", Host="a:99999999").status == 403
        assert numbers_with(port)["robustq_requests_total 403"] == 8


@pytest.mark.slow
def test_images_sent_to_an_address_with_the_token_are_answered():
    """A redirect, which a page gets there, would lose them, and bring a page with status 200 in their place."""
    with running(make_application(Colours(), FACTS, doors=doors("0.0.0.0", TOKEN))) as port:
        for path in ("/predict", V1):
            found = ask(port, f"{path}?token={TOKEN}", npy(X[:1]), "application/x-npy")
            assert found.status == 200 and "Set-Cookie" not in found.headers and TOKEN not in found.body.decode()
            assert ask(port, f"{path}?token=x", npy(X[:1]), "application/x-npy").status == 403
        led = ask(port, f"/card.md?token={TOKEN}")
        assert (led.status, led.headers["location"]) == (303, "./card.md")


def numbers_with(port: int) -> dict[str, float]:
    text = ask(port, "/metrics", Authorization=f"Bearer {TOKEN}").body.decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {" ".join([sample.name, *sample.labels.values()]): sample.value for sample in samples}


@pytest.mark.slow
def test_on_loopback_another_name_is_not_answered():
    assert all(isinstance(door, Middleware) for door in doors("127.0.0.1", None))
    with running(make_application(Colours(), FACTS, doors=doors("127.0.0.1", None))) as port:
        found = ask(port, "/predict", npy(X), "application/x-npy", Host="evil.example")
        told = json.loads(found.body)["error"]
        assert (found.status, told) == (421, "robustq serve answers to localhost, 127.0.0.1 and [::1] only")
        assert ask(port, "/predict", npy(X), "application/x-npy", Host=f"localhost:{port}").status == 200
