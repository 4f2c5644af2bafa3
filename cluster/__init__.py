"""Where jobs run: the only package that knows Ray."""
