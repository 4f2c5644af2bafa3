"""The copy of a model that attacks search on: the same function in the quickest safe form that the device has.

What a search finds counts only once the original model agrees, so the copy may differ by rounding, and by nothing else:
each form is compared with the original on real images, in logits and gradients, and given up for a plainer one where it
differs or cannot be made.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, fx, nn

from robustlib.inference.batch_sizes import batch_sizes
from robustlib.inference.batched_model import Count
from robustlib.inference.copy_agreement import compare, known_slopes, refusal, repeated, unseen
from robustlib.inference.cuda_graphs import Graphs, RecordingFailed, no_recordings
from robustlib.inference.cudnn_tuning import MUCH, seconds_of
from robustlib.inference.folded_layers import Normalized
from robustlib.inference.gradients import Net
from robustlib.inference.graph_fusion import fuse
from robustlib.inference.graph_rewriting import fold, normalises, steady_linear
from robustlib.inference.model_modes import copied, layout
from robustlib.inference.replica import Replica
from robustlib.inference.replicas import Replicas
from robustlib.inference.wrappers import unwrapped
from robustlib.memory import out_of_memory
from robustlib.model_calls import ask

ORDINARY = 64  # a batch size that all CPUs treat like the larger ones


def make_replicas(model: nn.Module, sample: Tensor, *, half: bool | None = None) -> Replicas:
    """Replicas for a model in eval mode on its device; the search copy in the quickest form that agrees with the model.

    sample: some images, on the device.  half: search in half precision; where it is None, as `suits_half` says.
    """
    exact = exact_replica(model, sample)
    if not exact.sizes:
        return Replicas(exact, exact, exact)
    half = suits_half(model, sample.device) if half is None else half
    known = exact(sample), known_slopes(exact, sample)
    given_up = [why] if sample.is_cuda and (why := no_recordings()) else list[str]()
    rough = None
    if half:
        rough = first_that_agrees(forms(model, sample, halves(sample.device)), sample, *known, given_up)
    judge = first_that_agrees(forms(model, sample, [torch.float32]), sample, *known, given_up) or exact
    replicas = put_together(exact, judge, rough, f" (given up: {'; '.join(given_up)})" if given_up else "")
    for replica in replicas.every:
        replica.count.clear()
    return replicas


def put_together(exact: Replica, judge: Replica, rough: Replica | None, given_up: str) -> Replicas:
    """The model, its copy in float32, which may be itself, and that in half precision. given_up: for the mode."""
    fine = judge if judge is exact else judge.but(judge=judge)
    if rough is None:
        fine = fine.but(mode=fine.mode + given_up)
        search = fine
    else:
        search = rough.but(mode=rough.mode + given_up, judge=judge, in_float32=fine, spare=judge)
        fine = fine.but(in_half=search)
    return Replicas(fine if judge is exact else exact, search, fine)


def first_that_agrees(
    ways: list[Callable[[], Replica]],
    sample: Tensor,
    reference: Tensor,
    slopes: Tensor | None,
    given_up: list[str],
) -> Replica | None:
    return next((found for make in ways if (found := attempt(make, sample, reference, slopes, given_up))), None)


def exact_replica(model: nn.Module, sample: Tensor) -> Replica:
    """The original model; without fixed sizes where its logits depend on who else is in the batch."""
    few, memory_format = sample[:7], layout(model)
    with torch.no_grad():
        alone = ask(model, few.contiguous(memory_format=memory_format))
    replica = Replica(
        model, sizes=batch_sizes(sample), memory_format=memory_format, mode="float32, as given", tuned=sample.is_cuda
    )
    # On a CPU the same arithmetic in half of the time; a GPU is asked.
    if takes_channels_last(model, few, alone) and (not sample.is_cuda or quicker_channels_last(replica, sample)):
        replica = replica.but(memory_format=torch.channels_last)
    if not torch.allclose(replica(few), alone.float(), rtol=1e-4, atol=1e-4):
        return Replica(model, sizes=(), memory_format=layout(model), mode="float32, as given, batches as they come")
    return replica.but(sizes=steady_sizes(replica, sample))


@torch.no_grad()
def takes_channels_last(model: nn.Module, x: Tensor, logits: Tensor) -> bool:
    """Whether the model gives these logits for the same images channels-last too."""
    try:
        found = ask(model, x.contiguous(memory_format=torch.channels_last))
    except Exception as error:  # a user's model may raise anything at images that lie in another order: as before, then
        if out_of_memory(error):
            raise
        return False
    return found.shape == logits.shape and torch.allclose(found.float(), logits.float(), rtol=1e-4, atol=1e-4)


def quicker_channels_last(replica: Replica, sample: Tensor) -> bool:
    """Whether a GPU computes batches of the smallest size much sooner with the images channels-last."""
    x, other = repeated(sample, replica.sizes[0]), replica.but(memory_format=torch.channels_last)
    return seconds_of(lambda: other(x), x.device) < MUCH * seconds_of(lambda: replica(x), x.device)


def steady_sizes(replica: Replica, sample: Tensor) -> tuple[int, ...]:
    """Its batch sizes without the smallest where these give other bits than an ordinary one: some CPUs treat matrices
    of few rows in another way (measured: eight rows in float32, on a CPU with AMX).
    """
    if sample.device.type != "cpu" or not replica.sizes:
        return replica.sizes
    sizes, some = replica.sizes, sample[:16]
    expected = replica.but(sizes=(next((size for size in sizes if size >= ORDINARY), sizes[-1]),))(some)
    while len(sizes) > 1 and not torch.equal(replica.but(sizes=sizes[:1])(some), expected):
        sizes = sizes[1:]
    return sizes


def suits_half(model: nn.Module, device: torch.device) -> bool:
    """Whether half precision is the quicker one: on CUDA devices; on CPUs with instructions for bfloat16, where a
    convolution has the 16 channels that fill them.
    """
    if device.type == "cuda":
        return True
    if not has_bfloat16():
        return False
    return any(isinstance(layer, nn.Conv2d) and layer.in_channels >= 16 * layer.groups for layer in model.modules())


def has_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16."""
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    # PyTorch of before it tells, by names that are its own.
    told = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask() for ask in told if ask is not None)


def halves(device: torch.device) -> list[torch.dtype]:
    return [torch.float16, torch.bfloat16] if device.type == "cuda" else [torch.bfloat16]


def forms(model: nn.Module, sample: Tensor, dtypes: list[torch.dtype]) -> list[Callable[[], Replica]]:
    """Ways to make the search copy, the quickest first: this is where a form is chosen.

    Fused only on CUDA devices, in half precision: in strict float32 the convolutions themselves take most of the time,
    and cuDNN makes fused ones for tensor cores.  Fused only where it can be recorded: if that fails it does for the
    folded form too, and each form that is given up costs a recording.
    A form is a function from the model to a network and its name. One by torch.compile would stand before these, where
    the work left is many times its warm-up: on an H100 it made 328,000 forwards and 151,000 gradients a second of
    ResNet-18 where the folded form made 180,000 and 101,000 (float16, graphs, batches of 2,048). The fused form, which
    needs no warm-up, has not been measured there: `benchmarks/gpu.py attacks` gives its rates beside the folded form's.
    """
    ways: list[Callable[[], Replica]] = []
    records = sample.is_cuda and not no_recordings()
    # On CPUs stored results must replay to the bit: there this waits for the next version of the kernels.
    can_fold = sample.is_cuda or not any(normalises(layer) for layer in model.modules())
    for dtype in dtypes:
        sizes = batch_sizes(sample, dtype)
        if records and dtype != torch.float32:
            ways.append(partial(search_replica, fused, model, dtype, sizes, True))
        for make in (folded, plain) if can_fold else (plain,):
            for graphs in (True, False) if records else (False,):
                ways.append(partial(search_replica, make, model, dtype, sizes, graphs))
    return ways


def attempt(
    make: Callable[[], Replica],
    sample: Tensor,
    reference: Tensor,
    slopes: Tensor | None = None,
    given_up: list[str] | None = None,
) -> Replica | None:
    """The replica, if it can be made and its logits and gradients are those of the original but for rounding.

    reference, slopes: the original's logits for the sample, and what `slopes_of` gives for it, where that is known.
    given_up: is told of a replica that could be made and is not to be used, and why.
    """
    replica = None
    try:
        replica = make()
        drift, fault = compare(replica, sample, reference, slopes)
    except (
        Exception
    ) as error:  # tracing, casting and graphing a user's model may raise anything: a plainer form is tried
        # Of a model without gradients every form raises: nothing that is said of this one.
        known = out_of_memory(error) or isinstance(error, RecordingFailed)
        if not known and (replica is None or slopes is None):
            return None
        drift, fault = 0.0, refusal(error)
    if fault or replica is None:
        if given_up is not None:
            given_up.append(f"{replica.mode}: {fault}" if replica else fault)
        return None
    left = unseen(replica, sample, reference, slopes, 4 * drift)
    return replica.but(drift=4 * drift, sizes=steady_sizes(replica, sample), count=Count(), unseen=left)


def search_replica(
    make: Callable[[nn.Module], tuple[nn.Module, str]],
    model: nn.Module,
    dtype: torch.dtype,
    sizes: tuple[int, ...],
    graphs: bool,
) -> Replica:
    net, mode = make(model)
    if all(weights.device.type == "cpu" for weights in model.parameters()):
        steady_linear(net)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    has_images = any(tensor.ndim == 4 for tensor in (*net.parameters(), *net.buffers()) if len(tensor) > 1)
    memory_format = torch.channels_last if has_images else torch.contiguous_format
    net = net.to(dtype=dtype, memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    takes = (dtype, memory_format)
    let_go(net)
    if isinstance(net, Normalized):
        net.dtype, net.memory_format = takes
        takes = (torch.float32, torch.contiguous_format)
    called: Net = Graphs(net) if graphs else net
    words = [str(dtype).removeprefix("torch."), mode, "channels-last" if has_images else "", "graphs" if graphs else ""]
    return Replica(
        called,
        sizes=sizes,
        dtype=takes[0],
        memory_format=takes[1],
        mode=", ".join(word for word in words if word),
        precision=dtype,
        recorded=graphs,
    )


def let_go(net: nn.Module) -> None:
    """Undo the circle of a traced network and its graph: else their memory waits for the garbage collector, which knows
    nothing of a GPU's.
    """
    for layer in net.modules():
        if isinstance(layer, fx.GraphModule):
            layer.graph.owning_module = None


def searched(model: nn.Module) -> nn.Module:
    """A copy to search on: on CUDA devices of what is inside of wrappers, which no trace goes through.

    On CPUs stored results must replay to the bit: there this waits for the next version of the kernels.
    """
    return unwrapped(model) if any(weights.is_cuda for weights in model.parameters()) else copied(model)


def plain(model: nn.Module) -> tuple[nn.Module, str]:
    return searched(model), "as given"


def folded(model: nn.Module) -> tuple[nn.Module, str]:
    return fold(searched(model)), "folded"


def fused(model: nn.Module) -> tuple[nn.Module, str]:
    """Raises ValueError where there is nothing to fuse: the folded form then is the same."""
    net = fold(searched(model))
    if not fuse(net):
        raise ValueError("no convolution has a ReLU after it")
    return net, "fused"
