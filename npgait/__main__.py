"""`python -m npgait` is `npgait`."""

from npgait.cli.main import main

main()
