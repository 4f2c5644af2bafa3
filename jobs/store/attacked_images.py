"""The attacked images that an evaluation kept."""

import numpy as np

from robustq.jobs.store import artifacts


def attacked_images(root: str, sha256: str, which: slice | np.ndarray) -> np.ndarray:
    """Those asked for, float32, shape (N, C, H, W). Raises OSError and ValueError where they are lost, and IndexError
    for places beyond those that were kept.
    """
    import safetensors  # not at the top: the queue knows what is kept, and `robustq status` should not wait
    import safetensors.numpy

    content = artifacts.get(root, sha256)
    try:
        found = safetensors.numpy.load(content)["x_adv"]
    except (safetensors.SafetensorError, KeyError, TypeError) as error:
        raise ValueError("no attacked images are in it") from error
    if found.ndim != 4:
        raise ValueError(f"expected attacked images of shape (N, C, H, W), got {found.shape}")
    return found[which].astype(np.float32, copy=False)
