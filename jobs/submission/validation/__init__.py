"""The validation of a study against the kernels, its data and its models, before anything is queued."""
