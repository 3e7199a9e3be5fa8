"""`python -m duet_unlearn` is `duet`."""

from duet_unlearn.cli import main

main()
