"""How every script starts and ends: quiet imports, one line per expected failure, an exit code that means something."""

import logging
import os
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
    # Threads that spin while they wait for each other are many times slower where other work has the core; sleeping
    # costs a hundredth where none has (docs/log.md, 2026-11-26). Read when torch is loaded, which is inside main.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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
