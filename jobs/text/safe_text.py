"""Text on its way to a person: addresses without their passwords, and nothing that a terminal would obey or hide."""

import re
import sys
from typing import Any

from robustq.jobs.errors import Unprinted

HIDDEN = "***"
# A password in an address stands between the name's colon and the @, and such an address ends at a space or a quote.
USER = re.compile(r"""(://[^\s:/?#@'"<>]*):([^\s/?#'"<>]*)@""")
# Of a database it may hold anything, also what ought to be written as %40 or %2F.
DATABASES = "postgres|mysql|mariadb|oracle|mssql|redis|cockroachdb"
DATABASE = re.compile(
    rf"""((?:{DATABASES})[\w+.-]{{0,40}}:/{{0,2}}[^\s:/@]*):(?:(?!"[,}}\]])\S){{0,2000}}@""", re.IGNORECASE
)
WHOLE_ADDRESS = re.compile(r"(?s)^([^:/]*://?(?!/)[^:/@]*|[^:/@]+(?=:(?!/))):.*@")
QUERY = re.compile(r"""([?&](?:token|key|sig|sas|pass|auth)=)([^\s&;'"<>\\]+)""", re.IGNORECASE)
SECRET = "password|passwd|pwd|passphrase|secret|api_?key|secret_?key|access_?key|auth_?token|access_?token|signature"
VALUE = r"""'[^'"\n]*'|"[^"\s,:{}\[\]]+"|\\"[^"\s\\]+\\"|[^\s&;,'"<>\\]*[^\s&;,'"<>\\:.]"""
PARAMETER = re.compile(rf"((?:{SECRET})\s?=\s?)({VALUE})", re.IGNORECASE)

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
TURNS = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# Unicode's controls but line feed and tab, its format characters, of which some turn the direction of what follows, and
# halves of pairs, which no terminal's encoding has.
CONTROL_MARKS = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\ud800-\udfff\ufeff\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a"
)
# What else is drawn as nothing: fillers, joiners and selectors of variants.
NOTHING = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff"
UNSEEN = re.compile(f"[{CONTROL_MARKS}{NOTHING}]")
SPACES = re.compile(r"[\n\t]+")


def hide(text: str) -> str:
    """The text with the password of every address in it as ***, also of one that is no valid address."""
    if ":" in text:
        text = QUERY.sub(rf"\1{HIDDEN}", USER.sub(rf"\1:{HIDDEN}@", DATABASE.sub(rf"\1:{HIDDEN}@", text)))
    return PARAMETER.sub(rf"\1{HIDDEN}", text) if "=" in text else text


def address(url: str) -> str:
    """A store's or cluster's address without its password, whatever stands in that: spaces and slashes too."""
    return hide(url if url.startswith(("http://", "https://")) else WHOLE_ADDRESS.sub(rf"\1:{HIDDEN}@", url))


def has_password(url: str) -> bool:
    return address(url) != url


def plain(text: str) -> str:
    r"""Several lines as a terminal may have them: colours are dropped, what it would obey or not show is written as
    \x1b or \u202e. Line feeds and tabs stay; other ends of lines become line feeds.
    """
    if text.isascii() and text.isprintable():
        return text
    return UNSEEN.sub(escaped, TURNS.sub("\n", COLOUR.sub("", text)))


def one_line(text: str) -> str:
    """The same in one line."""
    return SPACES.sub(" ", plain(text))


def escaped(found: re.Match[str]) -> str:
    return numbered(found[0])


def numbered(letter: str) -> str:
    """A letter by its number, as in Python."""
    code = ord(letter)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def brief(value: Any, most: int = 120) -> str:
    """A value as it is written in Python, without its middle where that is long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most * 2 // 3]}...{text[-most // 4 :]} ({len(text)} letters)"


def say(text: Any, *, err: bool = False, nl: bool = True, data: bool = False) -> None:
    """Print to a person, or to a program: the only way out of robustq.

    data: bytes that have a form of their own, such as CSV. They stay as they are, unless a terminal shows them.
    Raises Unprinted where standard output cannot be written, BrokenPipeError where nobody reads it any more.
    """
    raw = data and not (sys.stderr if err else sys.stdout).isatty()
    put(hide(str(text)) if raw else plain(hide(str(text))), err=err, nl=nl)


def put(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print what needs no look at it, as very many plain letters. Raises as `say` does."""
    import click

    try:
        click.echo(text, err=err, nl=nl)
    except BrokenPipeError:  # whoever read it has gone, and wants no more
        if not err:
            raise
    except OSError as error:
        if not err:  # of standard error nobody could be told
            raise Unprinted(f"the answer cannot be printed: {error.strerror}") from error
