"""The parts that servers share: who is let in, by which names, and how long is waited for whom."""
