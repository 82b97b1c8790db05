"""`python -m probing` does the same as the command `probing`. Signals are handled from the first moment on."""

from probing.system import stopping
from probing.system.ending import typed_ending


def main() -> None:
    """Run the command line."""
    stopping.listen()
    with typed_ending():
        from probing.cli.commands import main as run

        run()


if __name__ == "__main__":
    main()
