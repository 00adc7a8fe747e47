"""How every script starts and ends: quiet imports, one line per expected failure, an exit code that means something."""

import logging
import sys
from collections.abc import Callable, Sequence

from lab.errors import WordbrushError
from lab.training.signals import Stopped

EXIT_CODES = (
    "exit codes: 0 done, 1 out of memory, 2 refused, 65 bad data, 70 not finite, 74 disk, 75 a process was lost, "
    "128 + n ended by signal n (the state is saved)"
)


def run(main: Callable[[Sequence[str]], int]) -> None:
    """Run a script's ``main(argv)`` and leave with its exit code; expected failures are one line on stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        code = main(sys.argv[1:])
    except WordbrushError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except Stopped as end:
        print(end, file=sys.stderr)
        code = end.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
