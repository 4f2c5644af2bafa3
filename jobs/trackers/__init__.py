"""Results taken to where labs look at theirs: MLflow, Weights & Biases, TensorBoard. An extra for each."""
