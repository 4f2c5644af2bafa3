"""Addresses of models, and what of them may be told."""

from urllib.parse import urlsplit


def is_address(place: str) -> bool:
    return place.startswith(("http://", "https://")) and len(place.split("://", 1)[1]) > 0


def public(url: str) -> str:
    """An address as it may be told: without name, password and query, which may hold what is secret."""
    try:
        parts = urlsplit(url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    except ValueError:  # whose text repeats it
        return "the address"
