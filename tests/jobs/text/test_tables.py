"""Rows as text: the lines of a narrow terminal are whole, those of files have everything."""

import csv
import io
import random

import pytest

from robustq.jobs.commands import terminal_rows
from robustq.jobs.text import tables
from robustq.jobs.text.tables import csv_text, latex, markdown, plain_table, table, wide

ROWS = [
    {"model": "a", "attack": "pgd", "eps": 0.1, "n": 1000, "note": None},
    {"model": "a-rather-long-name-of-a-model", "attack": "apgd-ce", "eps": 0.03137254901960784, "n": 5, "note": "x"},
]


def test_a_table_without_a_limit_has_everything():
    assert plain_table(ROWS).splitlines() == [
        "model                          attack       eps     n  note",
        "-----------------------------  -------  -------  ----  ----",
        "a                              pgd          0.1  1000",
        "a-rather-long-name-of-a-model  apgd-ce  0.03137     5  x",
    ]
    assert plain_table([]) == "nothing to show"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (12_670.4, "12670"),
        (9999.4, "9999"),
        (9999.6, "10000"),
        (-123_456.7, "-123457"),
        (0.123456, "0.1235"),
        (1e20, "1e+20"),
    ],
)
def test_a_large_number_is_written_out(value: float, shown: str):
    """Seconds of a long run, in a log file: 1.267e+04 is for nobody."""
    assert tables.text(value) == shown


def test_texts_are_shortened_and_columns_left_out_by_what_they_are_worth():
    assert plain_table(ROWS, width=40, least=("note", "n")).splitlines() == [
        "model                   attack       eps",
        "----------------------  -------  -------",
        "a                       pgd          0.1",
        "a-rather-long-name-of…  apgd-ce  0.03137",
        "left out to fit: n, note",
    ]
    assert plain_table(ROWS, width=80, least=("note", "n")) == plain_table(ROWS)


@pytest.mark.parametrize("width", [1, 2, 5, 12, 20, 33, 47, 60, 80, 200])
def test_no_line_is_ever_wider_than_the_terminal(width):
    chance = random.Random(width)
    letters = "abc |&_é模型\u0301\n\t\x1b"
    for _ in range(50):
        names = [f"column-{i}" for i in range(chance.randint(1, 9))]
        rows = [
            {
                name: chance.choice([None, 0.123456, 7, "".join(chance.choices(letters, k=chance.randint(0, 40)))])
                for name in names
            }
            for _ in range(chance.randint(1, 4))
        ]
        lines = plain_table(rows, width=width, least=names[:2]).split("\n")
        assert len(lines) in (len(rows) + 2, len(rows) + 3)
        assert max(map(wide, lines)) <= width
        assert not any(set(line) & set("\t\x1b") for line in lines)


def test_only_a_terminal_has_a_width(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "30")
    assert table(ROWS, least=terminal_rows.LEAST) == plain_table(ROWS)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert tables.terminal_width() == 30
    assert (
        table(ROWS, least=terminal_rows.LEAST)
        == plain_table(ROWS, width=30, least=terminal_rows.LEAST)
        != plain_table(ROWS)
    )


def test_markdown_keeps_bars_inside_their_cells():
    assert markdown([{"a|b": "x|y\nz", "n": 1.5}], ["a|b", "n"]).splitlines() == [
        r"| a\|b | n |",
        "| --- | ---: |",
        r"| x\|y z | 1.5 |",
    ]


def test_latex_escapes_what_means_something_there():
    found = latex([{"model_a": "b_1 & 50% #{x} ~^\\$", "n": 2}], ["model_a", "n"]).splitlines()
    assert found[0] == r"\begin{tabular}{lr}"
    assert found[2] == r"model\_a & n \\"
    assert found[4] == r"b\_1 \& 50\% \#\{x\} \textasciitilde{}\textasciicircum{}\textbackslash{}\$ & 2 \\"
    assert found[-1] == r"\end{tabular}"


def test_csv_reads_back_with_every_digit():
    rows = [{"model": 'a,"b"\nc', "eps": 8 / 255, "versions": {"b": 1, "a": None}, "none": None}]
    head, line = csv.reader(io.StringIO(csv_text(rows, list(rows[0]))))
    assert head == ["model", "eps", "versions", "none"]
    assert line[0] == 'a,"b"\nc' and float(line[1]) == 8 / 255 and line[2] == '{"a": null, "b": 1}' and line[3] == ""
