"""Explanations: functions (model, x, target, *, ...) -> attribution, by the names that studies use."""

from robustlib.attacks.types import Params
from robustlib.explanations.grad_cam import grad_cam
from robustlib.explanations.gradient_maps import input_x_gradient, integrated_gradients, saliency, smoothgrad
from robustlib.explanations.kernel_shap import kernel_shap
from robustlib.explanations.lime import lime
from robustlib.explanations.occlusion import occlusion
from robustlib.explanations.types import Explanation
from robustlib.inference.throughput import Work, stepped


def each_window(params: Params) -> Work:
    """A pass for each window of an image of 32x32, and one of the whole."""
    step = params["stride"] or params["window"]
    return Work(1 + (-(-32 // step)) ** 2)


EXPLANATIONS: dict[str, Explanation] = {
    "saliency": Explanation(saliency, lambda p: stepped(1), surrogate="gradient"),
    "input-x-gradient": Explanation(input_x_gradient, lambda p: stepped(1), surrogate="input-x-gradient"),
    "integrated-gradients": Explanation(
        integrated_gradients, lambda p: stepped(p["steps"]), surrogate="input-x-gradient"
    ),
    "smoothgrad": Explanation(smoothgrad, lambda p: stepped(p["samples"]), surrogate="gradient"),
    "grad-cam": Explanation(grad_cam, lambda p: stepped(1), surrogate="input-x-gradient", looks_inside=True),
    "occlusion": Explanation(occlusion, each_window, surrogate="input-x-gradient"),
    "lime": Explanation(lime, lambda p: Work(p["samples"]), surrogate="input-x-gradient"),
    "kernel-shap": Explanation(kernel_shap, lambda p: Work(p["samples"] + 2), surrogate="input-x-gradient"),
}
