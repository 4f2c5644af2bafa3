"""The rates of signals on a card: counted again by hand from what the package holds."""

import json
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from robustlib.datasets import load
from robustlib.datasets.choose import spread
from robustlib.metrics import wilson
from robustlib.monitoring.image_statistics import image_statistics, ranges_of
from robustlib.monitoring.query_windows import QueryWindows, tiny_pictures
from robustlib.monitoring.signals import MARGIN, NOISE, RANGE, REPEATS, SIGNALS
from robustlib.packages.manifest import ONNX, open_package
from robustlib.packages.onnx_session import OnnxSession
from robustq.jobs.packages import monitored
from robustq.jobs.packages.attacked_images import images_of
from robustq.jobs.packages.card import Card, Monitoring, card_of
from robustq.jobs.packages.chosen_model import model_by_job
from robustq.jobs.packages.make import Made
from robustq.jobs.packages.monitored import query_row
from robustq.jobs.packages.monitoring_text import monitoring_text
from robustq.jobs.packages.stored_numbers import read_stored
from robustq.jobs.packages.verify import verify
from robustq.jobs.store.connection import Store
from tests.helpers.packaged import MEASURED as N
from tests.helpers.packaged import QUICK, TRAINED, altered

COUNTED = [4 * k // 3 for k in range(N)]  # of the 40 attacked images, evenly


@pytest.fixture
def told(measured: Made) -> Monitoring:
    assert measured.card.monitoring is not None
    return measured.card.monitoring


def test_every_signal_has_its_rates(told: Monitoring):
    found = {(rate.signal, rate.on) for rate in told.rates}
    assert found == {(name, on) for name in SIGNALS for on in ("clean", "stored", "adaptive")} | {(REPEATS, "square")}
    for rate in told.rates:
        samples = rate.flagged.n
        if rate.signal == REPEATS and rate.on in ("square", "adaptive"):  # queries of one attack are no samples
            samples = int(re.findall(r"of (\d+) attacks", rate.note)[0])
            assert samples <= monitored.QUERIED < rate.flagged.n
        low, high = wilson(rate.flagged.rate * samples, samples)
        assert (rate.flagged.low, rate.flagged.high) == pytest.approx((low, high))
        assert (rate.fooled is None) == (rate.on == "clean")
        assert rate.fooled is None or (rate.missed is not None and rate.missed <= rate.fooled)
    assert {rate.flagged.n for rate in told.rates if rate.on in ("clean", "stored")} == {N}


def test_thresholds_come_from_images_that_are_not_counted(told: Monitoring):
    """Of the digits those beside 30 of the 40 that were attacked: ranges and the distance of queries, worked out anew."""
    images = load.load("digits", "test").x.astype(np.float32) / 255
    rest = np.delete(images, COUNTED, 0)
    for name, ends in ranges_of(rest, monitored.RARE).items():
        assert told.ranges[name] == pytest.approx(ends)
    least = QueryWindows().distances("one", tiny_pictures(rest)).min()
    assert told.thresholds[REPEATS] == pytest.approx(least / 2) and (told.window, told.nearest) == (200, 10)
    assert told.thresholds.keys() == {NOISE, MARGIN, REPEATS}


def test_of_a_split_in_the_order_of_its_classes_all_are_looked_at():
    """As of a folder of images: thresholds of the first class alone would flag the others, and rates would be its own."""
    y = np.repeat(np.arange(10), 100)
    places = spread(len(y), 200)
    assert np.bincount(y[places]).tolist() == [20] * 10 and len(np.unique(places)) == 200
    rest = np.setdiff1d(np.arange(len(y)), places)
    assert np.bincount(y[rest[spread(len(rest), 200)]]).tolist() == [20] * 10
    assert spread(3, 8).tolist() == [0, 1, 2] and spread(0, 8).tolist() == []


def test_signals_that_no_attack_knew_are_named(told: Monitoring):
    """As of a network without gradients: an empty place on the card would look like nothing found."""
    assert told.note == monitored.unattacked(told.rates) == ""
    some = [rate for rate in told.rates if rate.on != "adaptive" or rate.signal == REPEATS]
    said = "by an attack that knows it nothing was measured of noise-disagreement, vote-margin, out-of-range"
    assert monitored.unattacked(some) == f"the network gives no gradient: {said}"
    none = [rate for rate in told.rates if rate.on == "clean"]
    assert monitored.unattacked(none).startswith("the program gets no image right: by an attack that knows it")


def test_rates_on_clean_and_stored_images_are_counted_by_hand(told: Monitoring, measured: Made, trained: Store):
    with trained.begin() as db:
        chosen = model_by_job(db, TRAINED)
        stored = read_stored(db, chosen, measured.card.classes)
    attacked = images_of(trained, chosen, stored, QUICK.examples, lambda line: None)
    session = OnnxSession(open_package(measured.place).read(ONNX), ONNX)
    x_adv, label = attacked.x_adv[COUNTED], attacked.label[COUNTED]
    fooled = session(x_adv).argmax(1) != label
    clean = load.load("digits", "test").x[COUNTED].astype(np.float32) / 255
    rates = {(rate.signal, rate.on): rate for rate in told.rates}
    for on, x in (("clean", clean), ("stored", x_adv)):
        outside = 0
        for i in range(N):
            numbers = image_statistics(x[i : i + 1].astype(np.float64))
            outside += any(not low <= numbers[name][0] <= high for name, (low, high) in told.ranges.items())
        assert rates[RANGE, on].flagged.rate == pytest.approx(outside / N)
    assert rates[NOISE, "stored"].fooled == rates[RANGE, "stored"].fooled == pytest.approx(fooled.mean())


def test_a_query_attack_is_missed_only_where_no_query_is_flagged():
    """Three attacks of four queries: none, one and the last two flagged; the first and the third fool the program."""
    far, near = np.full((1, 4), 255, np.uint8), np.zeros((1, 4), np.uint8)
    step = np.array([[0], [85], [170], [255]], np.uint8).repeat(4, 1)
    done = monitored.Queried([step, np.concatenate([near, near, far, step[1:2]])], np.array([True, True]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitored, "QueryWindows", lambda: QueryWindows(window=4, nearest=1))
        found = query_row(monitored.Signals(None, 0.1, {REPEATS: 0.1}, {}), "square", done, "three")  # pyright: ignore
    assert (found.flagged.n, found.flagged.rate) == (8, 1 / 8) and (found.fooled, found.missed) == (1.0, 0.5)
    assert found.note == "three; 1 of 2 attacks is flagged, at their query 2 in the median"


def test_the_page_calls_it_monitoring_and_has_the_rates(measured: Made, told: Monitoring):
    page = (measured.place / "card.md").read_text()
    section = page.partition("## Monitoring\n")[2].partition("\n## ")[0]
    assert "monitoring, never a defence" in section and all(f"| {name} |" in section for name in SIGNALS)
    assert monitoring_text(told) == f"## Monitoring\n{section}".rstrip() and monitoring_text(None) == ""
    jsonschema.validate(
        json.loads((measured.place / "card.json").read_text()),
        json.loads((measured.place / "card.schema.json").read_text()),
    )
    assert verify(measured.place, measured.digest).failed == []


def test_a_card_of_before_there_were_signals_is_read(measured: Made, tmp_path: Path):
    said = json.loads((measured.place / "card.json").read_text())
    del said["monitoring"]
    old = altered(measured.place, tmp_path / "old", files={})
    (old / "card.json").write_text(json.dumps(said))
    assert card_of(open_package(old)).monitoring is None
    assert Card.model_validate(said).model_copy(update={"monitoring": measured.card.monitoring}) == measured.card
