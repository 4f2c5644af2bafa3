"""The live page's token: the printed address lets in, as browsers and curl follow it, and nothing else does."""

import base64
import http.client
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest

from robustq.jobs.errors import SpecError
from robustq.jobs.store.connection import Store
from robustq.jobs.web.access_token import credentials, make_token
from tests.helpers.fake_sweep import fill
from tests.helpers.html_reading import TOKEN, served

ROOT = Path(__file__).parents[3]
Answer = tuple[int, Message, str]


@pytest.fixture
def port(made_up: Store) -> Iterator[int]:
    fill(made_up, {"strong": 1.0})
    with served(Path(made_up.artifacts).parent / "results.db") as port:
        yield port


def get(port: int, path: str, **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    found = answer.status, answer.headers, answer.read().decode()
    connection.close()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", ["/", "/live", "/?sweep=made-up", "/elsewhere", "/?token=", "/?token=x", "/?token=%C3%A9"]
)
def test_without_the_token_there_is_nothing_to_read(port, path):
    said = "This page opens by the address that robustq ui printed when it was started, which ends in a token.\n"
    wrong = {"Cookie": f"robustq-{port}=x; robustq-{port + 1}={TOKEN}; robustq={TOKEN}"}
    for headers in ({}, wrong, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {TOKEN}"}):
        status, answered, text = get(port, path, **headers)
        assert (status, text) == (403, said)
        assert answered["Cache-Control"] == "no-store" and "Set-Cookie" not in answered


@pytest.mark.slow
def test_the_address_gives_a_cookie_and_leads_to_itself_without_the_token(port):
    status, headers, text = get(port, f"/?token={TOKEN}")
    assert (status, headers["Location"], text) == (303, "./", "")
    cookie, *rules = headers["Set-Cookie"].split("; ")
    assert cookie == f"robustq-{port}={TOKEN}" and sorted(rules) == ["HttpOnly", "Path=/", "SameSite=strict"]
    assert headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"
    for path in ("/", "/live", "/?sweep=made-up"):
        status, _, text = get(port, path, Cookie=f"other=1; {cookie}")
        assert status == 200 and "strong is the most robust model" in text and TOKEN not in text


@pytest.mark.slow
def test_what_else_the_address_says_stays(port):
    _, headers, _ = get(port, f"/?sweep=a%26b&token={TOKEN}")
    assert headers["Location"] == "./?sweep=a%26b"
    for path, place in (("//evil.example/", "./"), ("//evil.example", "./evil.example"), ("/live", "./live")):
        assert get(port, f"{path}?token={TOKEN}")[1]["Location"] == place  # of this server, whatever the path


@pytest.mark.slow
def test_a_link_on_another_page_leads_there_too(port):
    """A strict cookie goes along with no redirect that began elsewhere, but with what the page itself does."""
    status, headers, text = get(port, f"/?sweep=%22%3E&token={TOKEN}", Sec_Fetch_Site="cross-site")
    assert status == 200 and headers["Set-Cookie"].startswith(f"robustq-{port}={TOKEN};")
    assert '<meta http-equiv="refresh" content="0; url=./?sweep=%22%3E">' in text and TOKEN not in text


@pytest.mark.slow
def test_a_name_pointed_at_this_server_has_no_use_for_a_token(port):
    assert get(port, f"/?token={TOKEN}", Host="evil.example")[0] == 421


def test_each_start_has_a_token_of_its_own(monkeypatch):
    monkeypatch.delenv("ROBUSTQ_UI_TOKEN", raising=False)
    made = [make_token() for _ in range(100)]
    assert len({token for token, _ in made}) == 100
    assert all(shown == token and re.fullmatch(r"[\w-]{32}", token) for token, shown in made)  # 192 bits
    monkeypatch.setenv("ROBUSTQ_UI_TOKEN", "")
    assert make_token() != make_token()


BASIC = base64.b64encode(f"x:{TOKEN}".encode()).decode()


@pytest.mark.parametrize(
    ("header", "brought"),
    [
        (f"Bearer {TOKEN}", TOKEN),
        (f"bearer {TOKEN}", TOKEN),
        (f"BEARER   {TOKEN}", TOKEN),
        (f"Basic {BASIC}", TOKEN),
        (f"basic {BASIC}", TOKEN),
        (TOKEN, ""),
        (f"Token {TOKEN}", ""),
        (f"Bearer{TOKEN}", ""),
        (f"Bearer\t{TOKEN}", ""),
        ("Bearer", ""),
        ("", ""),
    ],
)
def test_a_token_comes_with_its_scheme_in_either_case(header, brought):
    """RFC 9110, section 11.1 and 11.4; RFC 6750, section 2.1."""
    assert credentials(header) == brought


@pytest.mark.parametrize("fixed", ["short", "a b" * 9, 'x"; Path=/' * 3, "é" * 20, "x" * 201])
def test_a_token_that_is_guessed_or_cannot_be_sent_is_refused(fixed, monkeypatch):
    monkeypatch.setenv("ROBUSTQ_UI_TOKEN", fixed)
    with pytest.raises(SpecError, match=rf"^ROBUSTQ_UI_TOKEN: expected 16 .*, got {len(fixed)} characters") as error:
        make_token()
    assert fixed not in str(error.value)


@pytest.mark.slow
def test_a_fixed_token_is_used_and_not_printed(made_up):
    fill(made_up, {"strong": 1.0})
    command = [sys.executable, "-m", "robustq", "--store", made_up.url, "ui", "--port", "0"]
    fixed = os.environ | {"ROBUSTQ_UI_TOKEN": TOKEN}
    server = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=fixed)
    assert server.stderr is not None
    line = server.stderr.readline()
    found = re.match(r"http://127\.0\.0\.1:(\d+)/\?token=\$ROBUSTQ_UI_TOKEN shows sqlite:", line)
    assert found, line
    port = int(found[1])
    assert get(port, f"/?token={TOKEN}")[0] == 303 and get(port, "/?token=$ROBUSTQ_UI_TOKEN")[0] == 403
    assert get(port, "/", Cookie=f"robustq-{port}={TOKEN}")[0] == 200
    server.send_signal(signal.SIGINT)
    assert server.wait(60) == 0
    assert server.stderr.read() == ""
    server.stderr.close()
