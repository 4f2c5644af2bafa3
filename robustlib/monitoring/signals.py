"""The names of signals. They tell whoever looks after a server what to look at, and defend nothing.

Detectors of attacked images were broken one after the other by attacks that know them (Carlini and Wagner 2017,
https://arxiv.org/abs/1705.07263; Tramer et al. 2020, https://arxiv.org/abs/2002.08347). So each signal here goes with a
rate under an attack that knows it.
"""

NOISE = "noise-disagreement"  # the class of noisy copies is not that of the image
MARGIN = "vote-margin"  # the votes of noisy copies are close
REPEATS = "repeated-queries"  # a client asks about nearly the same image again and again
RANGE = "out-of-range"  # brightness, contrast or fine detail as no clean image has
SIGNALS = (NOISE, MARGIN, REPEATS, RANGE)
