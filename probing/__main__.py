"""`python -m probing`: the same as the command `probing`."""

from probing.cli import main

main()
