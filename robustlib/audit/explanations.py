"""Causes and remedies in plain words: free of torch, so that readers of results have them."""

# What is wrong, and what to mend in the evaluation.
CAUSES: dict[str, tuple[str, str]] = {
    "untrained": (
        "The model is hardly better than naming one class for everything: it has nothing to be robust with.",
        "Train it, or check that the right weights were loaded and that images come in the range it expects.",
    ),
    "training-mode": (
        "Layers of the model stay in training mode, so that its answers are not those it would give in use.",
        "Call model.eval() and do not override train() or pass training=True.",
    ),
    "test-time": (
        "The model adapts as it answers: it takes gradients, or changes with what it is asked. No attack here does so.",
        "Attack the adaptation too, through all of its steps, and what it starts from without it; report that number.",
    ),
    "batch-dependence": (
        "An image's answer depends on the other images of its batch, so that accuracies do too.",
        "Evaluate with fixed statistics (BatchNorm in eval mode), one answer an image.",
    ),
    "randomness": (
        "The model answers by chance, and an attack that sees one draw follows noise.",
        "Attack the expectation over draws (EOT) and report the mean over fresh draws.",
    ),
    "probabilities": (
        "The model gives probabilities where attacks expect logits: their gradient fades as it grows confident.",
        "Return the logits, and leave the softmax to whoever needs probabilities.",
    ),
    "saturation": (
        "The loss is so saturated that its gradient rounds to zero, and an attack that follows it does not move.",
        "Attack the margin of the logits (or DLR), or the scores before they are scaled; report that number.",
    ),
    "labels-only": (
        "The model answers with classes alone: attacks with gradients have none to follow.",
        "Attack the scores behind the answer, or by decisions alone (HopSkipJump); report that number.",
    ),
    "only-answers": (
        "The model only answers, as a callable or behind an address: attacks with gradients have none to follow.",
        "Quote the lowest number as what searches by its answers left, and audit the network itself where you have it.",
    ),
    "missing-gradient": (
        "Gradients do not reach the images: something on the way is not differentiable, or cuts the graph.",
        "Replace it by the identity going backwards (BPDA), or attack without gradients; report that number.",
    ),
    "non-differentiable": (
        "The gradient is zero nearly everywhere: something in the model is a step.",
        "Replace the step by a straight-through estimator, or attack without gradients; report that number.",
    ),
    "wrong-gradient": (
        "The backward pass is not that of the forward pass: the gradient points anywhere.",
        "Remove the custom backward pass, replace that part going backwards (BPDA), or attack without gradients.",
    ),
    "shattered-gradient": (
        "The gradient is right for tiny steps and wrong for those of an attack: the loss is rugged.",
        "Average gradients over a neighbourhood, replace the rugged part (BPDA), or attack without gradients.",
    ),
    "weak-attack": (
        "The gradients are sound, but this attack did not find what stronger ones do.",
        "Report AutoAttack, or at least several losses and restarts.",
    ),
}

# Kinds of attack, for the page: what each tells when it breaks what the naive one left.
REMEDIES = {
    "standard": "a stronger attack of the same kind",
    "margin": "another loss, which does not saturate",
    "expectation": "the expectation over the model's randomness",
    "scores": "the scores behind the answer",
    "straight-through": "straight-through gradients",
    "float64": "finer arithmetic",
    "smoothed": "gradients averaged over neighbours",
    "gradient-free": "search by scores, without gradients",
    "decision": "search by decisions alone",
    "surrogate": "a surrogate's gradients",
    "noise": "chance",
}
