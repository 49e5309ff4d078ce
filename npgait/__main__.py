"""`python -m npgait` is `npgait`."""

import sys

try:
    from npgait.cli.main import main
except ModuleNotFoundError as error:
    if error.name != "npgait.cli":
        raise
    sys.exit(
        "npgait: this folder's source shadows the installed npgait, and has no commands in it; start "
        "Python in another folder, or install it by pip install -e ."
    )

main()
