"""The images and maps that an explanation job kept, by what was done to the images."""

from dataclasses import dataclass

import numpy as np

from robustq.jobs.store import artifacts


@dataclass(frozen=True)
class KeptMaps:
    """index: places in the split, shape (n,).  images, maps: by what was done, in that order, the clean ones first;
    float32, shape (n, C, H, W), and (n, 1 or C, H, W).
    """

    index: np.ndarray
    images: dict[str, np.ndarray]
    maps: dict[str, np.ndarray]


def kept_maps(root: str, sha256: str, order: list[str], most: int) -> KeptMaps:
    """The first ones. order: what was done to the images.  Raises OSError, ArtifactError and ValueError where they are
    lost.
    """
    import safetensors  # not at the top: reading commands should not wait for it
    import safetensors.numpy

    content = artifacts.get(root, sha256)
    try:
        found = safetensors.numpy.load(content)
        kept = {kind: {name: found[f"{kind}/{name}"][:most] for name in order} for kind in ("image", "map")}
        return KeptMaps(found["index"][:most], kept["image"], kept["map"])
    except (safetensors.SafetensorError, KeyError, TypeError) as error:
        raise ValueError("no maps are in it") from error
