"""Settings of a server: how requests are batched, and what is taken of them."""

import math
from dataclasses import dataclass
from pathlib import Path

QUEUE_BYTES = 256 * 2**20  # of images that wait, at most
BODY_BYTES = 512 * 2**20  # of bodies that are being read, all clients' together
NUMBER_BYTES = 24  # of a number as JSON, with what parts it from the next
ASIDE_BYTES = 2**16  # of what stands beside the numbers: names, a header
PICTURE_BYTES = 2**20  # of what a PNG or JPEG may hold beside its pixels: profiles, previews


@dataclass(frozen=True)
class Smoothing:
    """How answers are certified. radii: rising, in L2 and units of images in [0, 1].  alpha: the chance that anything
    said of an image is wrong.  votes: for an image, at most.
    """

    sigma: float
    radii: tuple[float, ...] = ()
    alpha: float = 0.001
    votes: int = 10_000


@dataclass(frozen=True)
class Watching:
    """How requests are watched. log: a file of JSON lines.  every: of how many images one is shown under noise; none
    if 0.
    """

    log: Path | None = None
    every: int = 1


@dataclass(frozen=True)
class Settings:
    """batch_size: images that the engine gets at once, at most.  batch_seconds: how long the first of them waits for
    others.  request_images: of one request.  queue_images: that wait, of all clients; beyond it, 503.
    body_seconds: in which a request's body has to arrive.  most_pixels: of a picture that the card says is resized.
    """

    batch_size: int = 32
    batch_seconds: float = 0.002
    request_images: int = 64
    queue_images: int = 1024
    body_seconds: float = 30.0
    most_pixels: int = 2**24

    def waiting_images(self, image: tuple[int, int, int]) -> int:
        """Images that may wait, also by the memory that they take."""
        return max(self.request_images, min(self.queue_images, QUEUE_BYTES // (4 * math.prod(image))))

    def json_bytes(self, image: tuple[int, int, int]) -> int:
        """Bytes of the longest body of nested lists."""
        return ASIDE_BYTES + NUMBER_BYTES * self.request_images * math.prod(image)

    def array_bytes(self, image: tuple[int, int, int]) -> int:
        """Bytes of the longest array of float32."""
        return ASIDE_BYTES + 4 * self.request_images * math.prod(image)

    def picture_bytes(self, image: tuple[int, int, int]) -> int:
        """Bytes of the longest PNG or JPEG."""
        return PICTURE_BYTES + 4 * math.prod(image)

    def all_bodies(self, image: tuple[int, int, int]) -> int:
        """Bytes of all bodies together: at least one of the longest always has room."""
        return max(BODY_BYTES, self.json_bytes(image))
