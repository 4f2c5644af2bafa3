"""The driver: it claims jobs, starts them on Ray and records what comes back."""
