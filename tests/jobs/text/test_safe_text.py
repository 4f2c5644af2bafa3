"""What people are shown: no password of an address, and nothing that a terminal would obey or hide."""

import ast
import json
import time
import unicodedata
from pathlib import Path

import pytest

from robustq.jobs.text.safe_text import address, has_password, hide, one_line, plain
from robustq.jobs.text.tables import csv_text, json_text, markdown, plain_table

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("postgresql://me:geheim@h/db", "postgresql://me:***@h/db"),
        ("postgresql+psycopg://me:ge/h@eim@h:5432/db?a=b", "postgresql+psycopg://me:***@h:5432/db?a=b"),
        ("postgresql://:geheim@h", "postgresql://:***@h"),
        ("postgresql:/me:geheim@h", "postgresql:/me:***@h"),
        ("POSTGRES://u:geheim#?x@h/d", "POSTGRES://u:***@h/d"),
        ("at postgresql://h/db?user=a&password=geheim&x=1 now", "at postgresql://h/db?user=a&password=***&x=1 now"),
        ("host=h password=geheim dbname=x", "host=h password=*** dbname=x"),
        ("sslpassword = 'ge heim' x", "sslpassword = *** x"),
        ("http://me:geheim@head:8265", "http://me:***@head:8265"),
        ("https://h/predict?key=geheim", "https://h/predict?key=***"),
        ("s3://KEY:geheim@bucket/a", "s3://KEY:***@bucket/a"),
    ],
)
def test_no_password_is_shown(given: str, shown: str):
    assert hide(given) == shown


@pytest.mark.parametrize(
    "text",
    ["http://h:80/v1/m@2:predict", "http://[::1]:8265/a@b", "me@h", "max_tokens=5 token=3", "postgresql://me@h/d"],
)
def test_what_is_no_password_stays(text: str):
    assert hide(text) == text


def test_a_whole_address_may_hold_spaces_and_quotes():
    assert address("postgresql://me:g e'h\"@h:pp/db") == "postgresql://me:***@h:pp/db"
    assert address("me:geheim@h/db") == "me:***@h/db"
    assert has_password("postgresql://h/d?password=geheim") and not has_password("sqlite:////data/a@b.db")


def test_json_stays_json_without_passwords():
    data = {"a": "postgresql://a:geheim@h/x", "b": "c@d", "c": "password=", "d": 'say password="geheim" ok', "e": "'"}
    for separators in ((",", ":"), (", ", ": ")):
        found = json.loads(hide(json.dumps(data, separators=separators)))
        assert found == data | {"a": "postgresql://a:***@h/x", "d": "say password=*** ok"}


@pytest.mark.slow
def test_long_texts_are_looked_through_quickly():
    begun = time.monotonic()
    for text in ("mysql://a:" * 5000, "a.b" * 50_000 + "://=", "://" * 50_000 + "=", "password=" * 20_000):
        hide(text)
    assert time.monotonic() - begun < 5


@pytest.mark.slow
def test_every_control_and_format_character_is_written_out():
    for code in range(0x110000):
        character = chr(code)
        kind = unicodedata.category(character)
        if kind in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in "\n\t":
            assert character not in plain(f"a{character}b"), hex(code)
    assert plain("a\x1b[31mred\x1b[0m\x1b]0;x\x07\u202eb\x9b") == "ared\\x1b]0;x\\x07\\u202eb\\x9b"
    assert plain("zero\u200bwidth\ufe0f\u3164") == "zero\\u200bwidth\\ufe0f\\u3164"
    assert plain("one\r\ntwo\rthree\x85four\tfive") == "one\ntwo\nthree\nfour\tfive"
    assert one_line("one\r\n\ttwo") == "one two"
    assert plain("Größe 模型 é µ ±") == "Größe 模型 é µ ±"


def test_heads_of_tables_and_json_are_safe_too():
    rows = [{"a\x1b[2J\u202e": "postgresql://me:" + "geheim" * 9 + "@h"}]
    assert plain_table(rows).splitlines()[0] == "a\\x1b[2J\\u202e"
    assert "geheim" not in plain_table(rows, width=30)
    assert json_text({"a": "\x7f\x1b\u202e"}).isprintable() is False and "\x7f" not in json_text({"a": "\x7f"})
    assert json.loads(json_text({"a": "\x7f\x1b\u202e"})) == {"a": "\x7f\x1b\u202e"}


def test_markdown_is_no_html_and_no_link():
    cell = markdown([{"a": "<img src=x onerror=y> & [x](http://h) a|b"}], ["a"]).splitlines()[2]
    assert cell == r"| &lt;img src=x onerror=y&gt; &amp; [x]\(http://h) a\|b |"


def test_formulas_are_data_unless_spreadsheets_are_meant():
    rows = [{"=head": text, "n": -1.5} for text in ("=1+1", "+1", "-1", "@a", "\t=1", "plain", "a=b")]
    assert csv_text(rows, ["=head", "n"]).splitlines() == [
        "=head,n", "=1+1,-1.5", "+1,-1.5", "-1,-1.5", "@a,-1.5", "\t=1,-1.5", "plain,-1.5", "a=b,-1.5"
    ]  # fmt: skip
    assert csv_text(rows, ["=head", "n"], spreadsheet=True).splitlines() == [
        "'=head,n", "'=1+1,-1.5", "'+1,-1.5", "'-1,-1.5", "'@a,-1.5", "'\t=1,-1.5", "plain,-1.5", "a=b,-1.5"
    ]  # fmt: skip


def test_times_are_in_utc_to_the_millisecond():
    assert csv_text([{"recorded_at": 1.9996}, {"recorded_at": None}], ["recorded_at"]).splitlines() == [
        "recorded_at", "1970-01-01 00:00:02.000Z", '""'
    ]  # fmt: skip


@pytest.mark.slow
def test_everything_is_printed_in_one_place():
    found = []
    for path in [ROOT / "cli.py", *(ROOT / "cluster").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "click.echo", "click.secho"):
                found.append(path.name)
    assert sorted(found) == ["safe_text.py"]
