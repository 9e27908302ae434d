"""The program `must`. An interruption while it is imported ends it as one does later."""

import sys


def main() -> None:
    try:
        from must.api import cli

        cli.main()
    except KeyboardInterrupt:
        sys.stderr.write("must: interrupted\n")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
