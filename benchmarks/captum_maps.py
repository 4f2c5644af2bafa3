"""The same explanations by captum, with the same options, on the same classes."""

from collections.abc import Callable, Generator
from typing import Any, ClassVar

import torch
from captum import attr
from captum._utils.models.linear_model import SkLearnRidge
from torch import Tensor, nn

from robustlib.explanations import EXPLANATIONS
from robustlib.explanations.grad_cam import find_layer
from robustlib.explanations.kernel_shap import coalitions
from robustlib.explanations.lime import closeness
from robustlib.explanations.variants import squares, with_parts
from robustlib.inference.oracle import as_oracle
from robustlib.rng import Draws

Given = Callable[[nn.Module, dict[str, Any], Tensor, Tensor, Draws], Tensor]


class CaptumMaps:
    """captum's maps of a network. size: images in a pass, where it is not left at its defaults."""

    ONE_BY_ONE: ClassVar[set[str]] = {"lime", "kernel-shap"}

    def __init__(self, model: nn.Module, size: int):
        self.model, self.size = model, size

    def maps(
        self, method: str, options: dict[str, Any], x: Tensor, target: Tensor, *, defaults: bool = False
    ) -> Tensor:
        """Attributions of images, shape (N, 1 or C, H, W). options: of our function of that name."""
        given: dict[str, Any] = {name: p.default for name, p in EXPLANATIONS[method].options.items()} | options
        explain = {
            "saliency": self.saliency,
            "input-x-gradient": self.input_x_gradient,
            "integrated-gradients": self.integrated_gradients,
            "smoothgrad": self.smoothgrad,
            "grad-cam": self.grad_cam,
            "occlusion": self.occlusion,
            "lime": self.lime,
            "kernel-shap": self.kernel_shap,
        }[method]
        size = len(x) if defaults else self.size
        parts = zip(x.split(size), target.split(size), strict=True)
        at_once = None if defaults else size
        return torch.cat([explain(images, classes, given, at_once).detach() for images, classes in parts])

    def saliency(self, x: Tensor, target: Tensor, given: dict[str, Any], size: int | None) -> Tensor:
        return attr.Saliency(self.model).attribute(x.clone().requires_grad_(), target=target)

    def input_x_gradient(self, x: Tensor, target: Tensor, given: dict[str, Any], size: int | None) -> Tensor:
        return attr.InputXGradient(self.model).attribute(x.clone().requires_grad_(), target=target)

    def integrated_gradients(self, x: Tensor, target: Tensor, given: dict[str, Any], size: int | None) -> Tensor:
        return attr.IntegratedGradients(self.model).attribute(
            x, given["baseline"], target=target, n_steps=given["steps"], internal_batch_size=size
        )

    def smoothgrad(self, x: Tensor, target: Tensor, given: dict[str, Any], size: int | None) -> Tensor:
        noisy = attr.NoiseTunnel(attr.Saliency(self.model))
        at_once = None if size is None else max(1, size // len(x))
        found: Any = noisy.attribute(
            x, nt_type="smoothgrad", nt_samples=given["samples"], stdevs=given["sigma"], target=target,
            nt_samples_batch_size=at_once, abs=False,
        )  # fmt: skip
        return found.abs()

    def grad_cam(self, x: Tensor, target: Tensor, given: dict[str, Any], size: int | None) -> Tensor:
        layer = find_layer(as_oracle(self.model), x[:1], given["layer"])[1]
        maps: Any = attr.LayerGradCam(self.model, layer).attribute(x, target=target, relu_attributions=True)
        return attr.LayerAttribution.interpolate(maps, tuple(x.shape[-2:]), "bilinear")

    def occlusion(self, x: Tensor, target: Tensor, given: dict[str, Any], size: int | None) -> Tensor:
        window, stride = given["window"], given["stride"] or given["window"]
        channels = x.shape[1]
        found = attr.Occlusion(self.model).attribute(
            x, (channels, window, window), (channels, stride, stride), given["baseline"], target=target,
            perturbations_per_eval=1 if size is None else max(1, size // len(x)),
        )  # fmt: skip
        return found[:, :1]  # the same in every channel

    def lime(self, x: Tensor, target: Tensor, given: dict[str, Any], size: int | None) -> Tensor:
        found = attr.Lime(
            self.model,
            SkLearnRidge(alpha=given["ridge"]),
            similarity_func=lambda _, __, z, **k: closeness(z, given["kernel_width"]),
        )
        return self.sampled(found, x, target, given, size)

    def kernel_shap(self, x: Tensor, target: Tensor, given: dict[str, Any], size: int | None) -> Tensor:
        return self.sampled(attr.KernelShap(self.model), x, target, given, size)

    def sampled(self, found: Any, x: Tensor, target: Tensor, given: dict[str, Any], size: int | None) -> Tensor:
        """Image by image, as captum goes through them itself, though it then asks about all of them once more."""
        mask = squares(x, given["grid"])[None, None].expand(1, *x.shape[1:])
        return torch.cat([
            found.attribute(
                image, given["baseline"], target=own, feature_mask=mask, n_samples=given["samples"],
                perturbations_per_eval=size or 1,
            )[:, :1]
            for image, own in zip(x.split(1), target.split(1), strict=True)
        ])  # fmt: skip


class GivenCoalitions(attr.KernelShap):
    """captum's KernelSHAP on coalitions that are given, shape (samples, parts)."""

    def __init__(self, model: nn.Module, chosen: Tensor):
        super().__init__(model)
        self.chosen = chosen

    def kernel_shap_perturb_generator(self, original_inp: Any, **kwargs: object) -> Generator[Tensor, None, None]:
        count = self.chosen.shape[1]
        yield torch.ones(1, count, dtype=torch.long)
        yield torch.zeros(1, count, dtype=torch.long)
        yield from self.chosen.long().split(1)


def same_draws(peer: CaptumMaps, method: str, options: dict[str, Any], x: Tensor, target: Tensor) -> Tensor | None:
    """captum's maps of a method that draws, with our draws of seed 0; None of one that draws nothing."""
    given: dict[str, Any] = {name: p.default for name, p in EXPLANATIONS[method].options.items()} | options
    known: dict[str, Given] = {"smoothgrad": given_noise, "lime": given_variants, "kernel-shap": given_coalitions}
    draw = known.get(method)
    if draw is None:
        return None
    draws = Draws(0, torch.arange(len(x)))
    return torch.cat([draw(peer.model, given, x[[i]], target[[i]], draws[i : i + 1]).detach() for i in range(len(x))])


def given_noise(model: nn.Module, given: dict[str, Any], x: Tensor, target: Tensor, draws: Draws) -> Tensor:
    shape, saliency = tuple(x.shape[1:]), attr.Saliency(model)
    noisy = [x + given["sigma"] * draws.normal(shape, f"smoothgrad/{k}") for k in range(given["samples"])]
    return torch.stack([saliency.attribute(z.requires_grad_(), target, abs=False) for z in noisy]).mean(0).abs()


def given_variants(model: nn.Module, given: dict[str, Any], x: Tensor, target: Tensor, draws: Draws) -> Tensor:
    kept = draws.uniform((given["samples"], given["grid"] ** 2), "lime")[0] < 0.5
    kept[0] = True
    rows, parts = iter(kept.double().split(1)), squares(x, given["grid"])
    found = attr.LimeBase(
        model,
        SkLearnRidge(alpha=given["ridge"]),
        similarity_func=lambda _, __, z, **k: closeness(z, given["kernel_width"])[0],
        perturb_func=lambda *_, **k: next(rows),
        perturb_interpretable_space=True,
        from_interp_rep_transform=lambda z, image, **k: with_parts(image, z.bool()[None], parts, given["baseline"]),
        to_interp_rep_transform=None,
    ).attribute(x, target=target, n_samples=given["samples"])
    return found.flatten()[parts][None, None].float()


def given_coalitions(model: nn.Module, given: dict[str, Any], x: Tensor, target: Tensor, draws: Draws) -> Tensor:
    chosen = coalitions(draws, given["grid"] ** 2, given["samples"])[:, 0]
    mask = squares(x, given["grid"])[None, None].expand(1, *x.shape[1:])
    return GivenCoalitions(model, chosen).attribute(
        x, given["baseline"], target=target, feature_mask=mask, n_samples=len(chosen) + 2, perturbations_per_eval=50
    )[:, :1]
