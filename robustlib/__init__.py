"""Attack, training and evaluation kernels: tensors in, tensors out. Knows nothing of jobs, stores or clusters."""

# Part of every job's content key: raised when a kernel's numbers change, so that old results do not pass for new.
# docs/contributing.md says when that is.
KERNEL_VERSION = "7"

# The release, also where only the code is, sent to a cluster's nodes. Results record it; no key depends on it.
VERSION = "0.1.0"
