"""Where jobs run: the only floor that knows Ray."""
