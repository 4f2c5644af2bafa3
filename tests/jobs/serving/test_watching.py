"""What a watcher says of served images, beside counting by hand; its log and its bounds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustlib.datasets import load
from robustlib.datasets.choose import spread
from robustlib.monitoring.query_windows import QueryWindows, tiny_pictures
from robustlib.monitoring.signals import MARGIN, NOISE, RANGE, REPEATS
from robustlib.packages.manifest import open_package
from robustq.jobs.packages.card import Monitoring
from robustq.jobs.packages.make import Made
from robustq.jobs.serving.answers import Answer
from robustq.jobs.serving.watching import SignalLog, Watcher, make_watcher
from tests.helpers.packaged import QUICK

CARD = Monitoring(
    sigma=0.3, copies=8, window=20, nearest=3, thresholds={NOISE: 0.3, MARGIN: 0.5, REPEATS: 0.05},
    ranges={"mean": (0.2, 0.8)}, rates=[], note="",
)  # fmt: skip


def ask(x: np.ndarray) -> np.ndarray:
    """Class 1 where the mean lies above a half."""
    mean = x.mean((1, 2, 3))
    return np.stack([0.5 - mean, mean - 0.5], 1).astype(np.float32)


def answers_to(x: np.ndarray) -> list[Answer]:
    return [Answer(int(row.argmax()), row, "logits") for row in ask(x)]


def flat(*levels: float) -> np.ndarray:
    return np.full((len(levels), 1, 4, 4), np.array(levels).reshape(-1, 1, 1, 1), np.float32)


def look(watcher: Watcher, client: str, x: np.ndarray, **how: Any) -> list[tuple[str, ...]]:
    return watcher.look(client, x, answers_to(x), **how)


def test_signals_are_raised_where_they_ought_to_be():
    watcher, x = Watcher(ask, CARD, seed=0), flat(0.7, 0.5001, 0.9, 0.3)
    found = look(watcher, "a", x)
    assert found[0] == () and found[3] == () and found[2] == (RANGE,)
    assert MARGIN in found[1] or NOISE in found[1]  # noise of 0.3 / 4 on a mean at the boundary
    assert watcher.seen() == {"images": 4, "under-noise": 4, "flagged": 2, "clients": 1}


def test_the_same_image_again_is_seen_of_one_client_alone():
    watcher = Watcher(ask, CARD, every=0)
    for client in ("a", "b"):
        found = look(watcher, client, flat(0.7, 0.7, 0.7, 0.7, 0.3))
        assert found == [(), (), (), (REPEATS,), ()]
    assert look(watcher, "c", flat(0.7)) == [()] and look(watcher, "a", flat(0.71)) == [(REPEATS,)]
    assert watcher.counters() == {NOISE: 0, MARGIN: 0, REPEATS: 3, RANGE: 0}
    assert watcher.seen() == {"images": 12, "under-noise": 0, "flagged": 3, "clients": 3}


def test_every_nth_image_is_shown_under_noise():
    watcher = Watcher(ask, CARD, every=3, seed=0)
    for _ in range(4):
        look(watcher, "a", flat(0.7, 0.65))
    assert watcher.seen()["under-noise"] == 3  # the first, fourth and seventh of eight


def test_a_request_is_shown_under_noise_in_parts():
    """What the program takes at once is bounded, however many images a request has: each gets its copies all the same."""
    seen: list[int] = []

    def counted(x: np.ndarray) -> np.ndarray:
        seen.append(len(x))
        return ask(x)

    watcher = Watcher(counted, CARD, at_once=3, seed=0)
    x = flat(*[0.7, 0.3, 0.5001] * 3, 0.7)
    found = look(watcher, "a", x)
    assert sum(seen) == 10 * CARD.copies and max(seen) == 3 and watcher.seen()["under-noise"] == 10
    noisy = [bool({NOISE, MARGIN} & set(names)) for names in found]
    assert sum(noisy[2::3]) >= 2 and not any(noisy[0::3])


def test_of_votes_the_program_itself_says_the_class():
    """A smoothed answer has no logits: the image is shown without noise too."""
    watcher, x = Watcher(ask, CARD, seed=0), flat(0.7)
    smoothed = [Answer(0, np.array([1.0, 0.0], np.float32), "votes")]
    assert watcher.look("a", x, smoothed) == [()]


def test_the_log_has_a_line_for_each_flagged_image_and_no_image(tmp_path: Path):
    place = tmp_path / "signals.jsonl"
    watcher = Watcher(ask, CARD, log=SignalLog(place), every=0)
    look(watcher, "10.0.0.7" + "x" * 200, flat(0.9, 0.7, 0.1), request="r1")
    watcher.close()
    lines = [json.loads(line) for line in place.read_text().splitlines()]
    assert [(line["request"], line["image"], line["label"], line["signals"]) for line in lines] == [
        ("r1", 0, 1, [RANGE]), ("r1", 2, 0, [RANGE]),
    ]  # fmt: skip
    assert all(line.keys() == {"at", "request", "client", "image", "label", "signals"} for line in lines)
    assert lines[0]["client"] == "10.0.0.7" + "x" * 72


def test_the_log_stays_small(tmp_path: Path):
    watcher = Watcher(ask, CARD, log=SignalLog(tmp_path / "log", most_bytes=2000), every=0)
    for i in range(100):
        look(watcher, f"client {i}", flat(0.9), request=f"r{i}")
    watcher.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    assert all(path.stat().st_size <= 2000 for path in tmp_path.iterdir())
    assert json.loads((tmp_path / "log").read_text().splitlines()[-1])["request"] == "r99"


def test_a_log_that_cannot_be_written_is_a_failure(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Which the server counts, and nothing that it prints for each image; then it goes on where it can be written."""
    place = tmp_path / "logs" / "signals.jsonl"
    watcher = Watcher(ask, CARD, log=SignalLog(place), every=0)
    for client in ("a", "b"):
        with pytest.raises(FileNotFoundError):
            look(watcher, client, flat(0.9, 0.91))
    assert capfd.readouterr() == ("", "")
    place.parent.mkdir()
    assert look(watcher, "c", flat(0.92)) == [(RANGE,)]
    watcher.close()
    assert len(place.read_text().splitlines()) == 1


def test_a_log_that_cannot_be_written_is_no_silence(tmp_path: Path):
    """Whoever asks the watcher counts it as failed: a line that is lost is not said to be written."""
    watcher = Watcher(ask, CARD, log=SignalLog(tmp_path / "gone" / "log"), every=0)
    assert look(watcher, "a", flat(0.7)) == [()]
    with pytest.raises(FileNotFoundError):
        look(watcher, "a", flat(0.9))


def test_different_images_raise_no_repeats_and_a_query_attack_does():
    """The digits; the threshold as packages set it, by other images than those that are asked about."""
    images = load.load("digits", "test").x.astype(np.float32) / 255
    limit = QueryWindows().distances("clean", tiny_pictures(images[200:])).min() / 2
    card = CARD.model_copy(update={"window": 200, "nearest": 10, "ranges": {}, "thresholds": {REPEATS: float(limit)}})
    watcher, random = Watcher(lambda x: x[:, 0, 0, :2], card, every=0), np.random.default_rng(0)
    nothing = [Answer(0, np.zeros(2, np.float32), "logits")]
    for image in images[:200]:
        assert watcher.look("clean", image[None], nothing) == [()]
    flags = []
    for _ in range(100):  # one image, changed by at most 0.05 in each pixel, as of an attack by its answers
        query = np.clip(images[0] + random.choice([-0.05, 0.05], images[0].shape), 0, 1).astype(np.float32)
        flags += watcher.look("attacker", query[None], nothing)
    assert flags[:10] == [()] * 10 and all(names == (REPEATS,) for names in flags[10:])


def test_of_a_package_the_rates_are_those_of_its_card(measured: Made):
    """Clean images that were measured, sent once by one client: as many are flagged as the card says, by each signal."""
    watcher = make_watcher(open_package(measured.place))
    assert watcher is not None and measured.card.monitoring is not None
    told = {rate.signal: rate.flagged for rate in measured.card.monitoring.rates if rate.on == "clean"}
    n = told[RANGE].n
    x = load.load("digits", "test").x[spread(QUICK.examples, n)].astype(np.float32) / 255
    found = watcher.look("one", x, [Answer(0, np.zeros(10, np.float32), "votes")] * n)
    for name in (RANGE, REPEATS):
        assert sum(name in names for names in found) == round(told[name].rate * n)
    for name in (NOISE, MARGIN):  # under noise of its own
        assert abs(sum(name in names for names in found) / n - told[name].rate) <= 0.1


def test_a_package_without_measured_signals_has_no_watcher(place: Path):
    assert make_watcher(open_package(place)) is None
