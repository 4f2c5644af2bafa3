"""Failures of a GPU: errors after which a process computes nothing more on it, whatever it is asked to."""

from collections.abc import Iterator
from typing import Literal

# asserted: the code that ran said so itself; the GPU may be sound.  lost: CUDA's context is gone, by that code or the
# GPU.  unbuilt: the code that ran, torch's or an extension's, was not built for this GPU.  unfit: nobody could compute
# there.  busy: it takes no process beside the one that it has.
Failure = Literal["asserted", "lost", "unbuilt", "unfit", "busy"]

# In CUDA's words (cudaGetErrorString), small letters, and PyTorch's where it finds no device. Most are
# "sticky": https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html.
WORDS: dict[Failure, tuple[str, ...]] = {
    "asserted": ("device-side assert",),
    "busy": ("busy or unavailable",),
    "unbuilt": ("no kernel image is available",),
    "unfit": (
        "uncorrectable ecc",
        "uncorrectable nvlink",
        "cuda error: ecc error",
        "fallen off the bus",
        "gpu is lost",
        "no cuda-capable device",
        "no cuda gpus are available",
        "not compiled with cuda enabled",
        "driver version is insufficient",
        "no nvidia driver",
        "driver on your system is too old",
        "system not yet initialized",
        "cuda error: initialization error",
        "error 3: initialization error",  # of cudaGetDeviceCount
        "cuda error: unknown error",
        "cuda unknown error",
    ),
    "lost": (
        "illegal memory access",
        "illegal address",
        "illegal instruction",
        "misaligned address",
        "invalid program counter",
        "hardware stack error",
        "global/shared address space",
        "unspecified launch failure",
        "launch timed out",
    ),
}


# What PyTorch says where a tensor is to go to a GPU and there is none that it could use.
NO_GPU = ("no nvidia driver", "not compiled with cuda", "no cuda gpus are available", "no cuda-capable device")


def asks_for_a_gpu(error: BaseException | None) -> bool:
    """Whether the error, or one that it came of, is that there is no GPU."""
    return any(word in str(one).lower() for one in chain(error) for word in NO_GPU)


def gpu_failure(error: BaseException | None) -> Failure | None:
    """What the error says of the GPU, or one that it came of; None where it says nothing."""
    for one in chain(error):
        text = str(one).lower()
        if isinstance(one, RuntimeError | AssertionError | OSError) and (found := named(text)) is not None:
            return found
    return None


def named(text: str) -> Failure | None:
    return next((kind for kind, words in WORDS.items() if any(word in text for word in words)), None)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from or came while handling, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
