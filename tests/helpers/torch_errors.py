"""Errors of PyTorch under the names that each version has for them."""

import torch

# Before torch 2.8 what a device reports was a plain RuntimeError, in the same words.
AcceleratorError: type[RuntimeError] = getattr(torch, "AcceleratorError", RuntimeError)
