"""Models as programs for a runtime: exported, compared with the model, attacked again, quantised, timed."""
