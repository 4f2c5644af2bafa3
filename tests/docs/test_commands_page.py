"""docs/commands.md is what click says today."""

import re

from robustq.cli import main
from tests.docs.make_commands import PAGE, as_comments, page


def test_the_page_is_what_click_says():
    assert PAGE.read_text() == page(), "run: python -m tests.docs.make_commands"


def test_every_command_and_option_is_on_the_page():
    """Counted without the page's own code."""
    text = PAGE.read_text()
    for name, command in main.commands.items():
        section = text.partition(f"\n## robustq {name}\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert all(re.search(rf"(`|, ){option}\b", section) for option in parameter.opts), (
                    name,
                    parameter.opts,
                )
    assert "\n## robustq db upgrade\n" in text


def test_what_is_said_of_an_example_is_a_comment():
    assert as_comments("robustq a b    does this\nrobustq c") == "robustq a b    # does this\nrobustq c"
