"""Requests put together: every client gets its own answer, however they meet; queue, failures and clients that leave."""

import http.client
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from robustq.jobs.serving.application import make_application
from robustq.jobs.serving.batching import FAILED, Batcher
from robustq.jobs.serving.settings import Settings
from tests.helpers.served import FACTS, Colours, Reply, ask, means, npy, running, some_images, until

KIND = "application/x-npy"


@contextmanager
def served(engine: Colours, **settings: Any) -> Iterator[tuple[int, Batcher]]:
    application = make_application(engine, FACTS, Settings(**settings))
    with running(application) as port:
        yield port, application.state.service.batcher
        engine.open.set()


def send(port: int, images: np.ndarray) -> Reply:
    return ask(port, "/predict", npy(images), KIND)


def scores(found: Reply) -> np.ndarray:
    assert found.status == 200, found.body
    return np.array([answer["scores"] for answer in found.json["answers"]], np.float32)


@pytest.mark.slow
def test_each_client_gets_its_own_answers():
    """200 requests of 1 to 9 images from 16 threads, in batches that mix them."""
    requests = [some_images(1 + k % 9, seed=k) for k in range(200)]
    engine = Colours()
    with served(engine, batch_size=8, batch_seconds=0.003) as (port, _), ThreadPoolExecutor(16) as clients:
        found = list(clients.map(lambda images: scores(send(port, images)), requests))
    assert all(np.array_equal(came, means(images)) for came, images in zip(found, requests, strict=True))
    assert sum(engine.sizes) == sum(map(len, requests)) and max(engine.sizes) == 8
    assert len(engine.sizes) < 200  # some were put together


@pytest.mark.slow
def test_what_waits_while_the_engine_works_is_one_batch():
    engine = Colours()
    with served(engine, batch_size=4, batch_seconds=0) as (port, batcher), ThreadPoolExecutor(8) as clients:
        engine.open.clear()
        first = clients.submit(send, port, some_images(1))
        until(lambda: engine.sizes == [1])
        rest = [clients.submit(send, port, some_images(1, seed=k)) for k in range(1, 7)]
        until(lambda: batcher.images == 6)
        engine.open.set()
        assert np.array_equal(scores(first.result()), means(some_images(1)))
        for k, each in enumerate(rest, 1):
            assert np.array_equal(scores(each.result()), means(some_images(1, seed=k)))
    assert engine.sizes == [1, 4, 2]


@pytest.mark.slow
def test_the_first_waits_for_others_no_longer_than_it_was_told():
    engine = Colours()
    with served(engine, batch_size=3, batch_seconds=1.0) as (port, _), ThreadPoolExecutor(3) as clients:
        start = time.monotonic()
        send(port, some_images(1))
        alone = time.monotonic() - start
        start = time.monotonic()
        assert all(each.status == 200 for each in clients.map(send, [port] * 3, [some_images(1)] * 3))
        together = time.monotonic() - start
    assert engine.sizes == [1, 3] and 1.0 <= alone < 10 and together < 0.9


@pytest.mark.slow
def test_a_full_queue_is_503_and_says_when_to_come_again():
    engine = Colours()
    with served(engine, queue_images=5, request_images=4) as (port, batcher), ThreadPoolExecutor(4) as clients:
        engine.open.clear()
        waits = [clients.submit(send, port, some_images(1))]
        until(lambda: engine.sizes == [1])
        waits += [clients.submit(send, port, some_images(n)) for n in (4, 1)]
        until(lambda: batcher.images == 5)
        found = send(port, some_images(1))
        assert found.status == 503 and 1 <= int(found.headers["Retry-After"]) <= 60
        assert found.json["error"] == "5 images wait, and no more than 5 may: ask again later"
        assert ask(port, "/health").status == 200
        engine.open.set()
        assert [len(scores(each.result())) for each in waits] == [1, 4, 1]
        assert send(port, some_images(1)).status == 200


@pytest.mark.slow
def test_who_has_gone_away_costs_no_computation_and_no_place():
    engine = Colours()
    with served(engine, queue_images=4, request_images=4, batch_seconds=0) as (port, batcher):
        with ThreadPoolExecutor(2) as clients:
            engine.open.clear()
            first = clients.submit(send, port, some_images(1))
            until(lambda: engine.sizes == [1])
            leaving = http.client.HTTPConnection("127.0.0.1", port)
            leaving.request("POST", "/predict", npy(some_images(3)), {"Content-Type": KIND})
            until(lambda: batcher.images == 3)
            leaving.close()
            until(lambda: batcher.queue[0].future.cancelled())
            stays = clients.submit(send, port, some_images(4))  # for which there was no room before
            until(lambda: batcher.images == 4)
            engine.open.set()
            assert first.result().status == stays.result().status == 200
        assert engine.sizes == [1, 4]
        assert b'robustq_requests_total{status="499"} 1.0' in ask(port, "/metrics").body


@pytest.mark.slow
def test_a_model_that_fails_is_500_and_the_server_lives_on(log: pytest.LogCaptureFixture):
    engine = Colours()
    with served(engine) as (port, _):
        engine.error = RuntimeError("secret of the model")
        found = send(port, some_images(2))
        assert found.status == 500 and found.json["error"] == FAILED and b"secret" not in found.body
        (record,) = log.records
        assert record.getMessage() == "the engine failed on 2 images" and record.exc_info
        assert str(record.exc_info[1]) == "secret of the model"
        engine.error = None
        assert np.array_equal(scores(send(port, some_images(2))), means(some_images(2)))


class Wrong(Colours):
    """Gives as many answers too few, or scores that are no numbers."""

    short, nan = 0, False

    def answer(self, images):
        found = super().answer(images)
        if self.nan:
            found[0].scores[0] = np.nan
        return found[self.short :]


@pytest.mark.slow
@pytest.mark.parametrize(("short", "nan"), [(1, False), (0, True)])
def test_answers_that_cannot_be_right_are_500(short, nan, log: pytest.LogCaptureFixture):
    engine = Wrong()
    engine.short, engine.nan = short, nan
    with served(engine) as (port, _):
        assert send(port, some_images(3)).status == 500


class Allergic(Colours):
    """Gives no numbers for all images of a batch in which one is black."""

    def answer(self, images):
        found = super().answer(images)
        if not images.any(axis=(1, 2, 3)).all():
            for one in found:
                one.scores[:] = np.nan
        return found


@pytest.mark.slow
def test_one_that_the_model_fails_on_costs_the_others_nothing(log: pytest.LogCaptureFixture):
    engine, black = Allergic(), np.zeros_like(some_images(1))
    with served(engine, batch_size=8, batch_seconds=0) as (port, batcher), ThreadPoolExecutor(4) as clients:
        engine.open.clear()
        first = clients.submit(send, port, some_images(1))
        until(lambda: engine.sizes == [1])
        asked = [
            clients.submit(send, port, images) for images in (some_images(2, seed=1), black, some_images(1, seed=2))
        ]
        until(lambda: batcher.images == 4)
        engine.open.set()
        assert [each.result().status for each in (first, *asked)] == [200, 200, 500, 200]
        assert np.array_equal(scores(asked[0].result()), means(some_images(2, seed=1)))
        assert np.array_equal(scores(asked[2].result()), means(some_images(1, seed=2)))
    assert engine.sizes[:2] == [1, 4] and sorted(engine.sizes[2:]) == [1, 1, 2]
    assert [record.getMessage() for record in log.records] == ["the engine failed on 1 image"]


class Blind:
    """Watches nothing, and fails at it."""

    def look(self, client, images, answers, *, request=""):
        raise ValueError("no eyes")

    def counters(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        pass


@pytest.mark.slow
def test_what_watches_and_fails_takes_no_answer_away(log: pytest.LogCaptureFixture):
    with running(make_application(Colours(), FACTS, watch=Blind())) as port:
        found = send(port, some_images(2))
        assert np.array_equal(scores(found), means(some_images(2)))
        assert [answer["signals"] for answer in found.json["answers"]] == [None, None]
        assert b"robustq_watch_failures_total 1.0" in ask(port, "/metrics").body
    assert [record.getMessage() for record in log.records] == ["what watches requests failed on 2 images"]


@pytest.mark.slow
def test_at_its_end_a_server_answers_what_it_accepted_and_refuses_the_rest():
    engine = Colours()
    application = make_application(engine, FACTS)
    batcher = application.state.service.batcher
    with ThreadPoolExecutor(4) as clients:
        with running(application) as port:
            engine.open.clear()
            accepted = [clients.submit(send, port, some_images(2, seed=k)) for k in range(3)]
            until(lambda: sum(engine.sizes) + batcher.images == 6)
            batcher.stop_taking()
            found = send(port, some_images(1))
            assert (found.status, found.headers["Connection"], found.headers["Retry-After"]) == (503, "close", "5")
            assert ask(port, "/health").status == 503 and ask(port, "/health").json["status"] == "stopping"
            threading.Timer(0.5, engine.open.set).start()
        for k, each in enumerate(accepted):
            assert np.array_equal(scores(each.result()), means(some_images(2, seed=k)))
    assert not batcher.thread.is_alive()
    with pytest.raises(ConnectionRefusedError):
        send(port, some_images(1))


class Slow:
    """A watch that takes its time."""

    def look(self, client: str, images: np.ndarray, answers: list[Any], *, request: str = "") -> list[tuple[str, ...]]:
        time.sleep(0.3)
        return [()] * len(images)

    def counters(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        pass


@pytest.mark.slow
def test_what_an_image_takes_has_the_watching_in_it():
    """So that Retry-After is no promise that a server with --watch cannot keep."""
    application = make_application(Colours(), FACTS, Settings(), Slow())
    with running(application) as port:
        assert send(port, some_images(1)).status == 200
        until(lambda: application.state.service.batcher.seconds >= 0.06)
