"""The entry point of `python -m robustq`."""

from robustq.cli import main

main(prog_name="robustq")
