"""Tables for papers, from stored results."""
