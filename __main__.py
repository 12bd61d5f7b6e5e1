"""`python -m simpipe`."""

from simpipe.cli import main

main()
