"""Statistics of accuracies: intervals and tests, plain numbers in and out."""
