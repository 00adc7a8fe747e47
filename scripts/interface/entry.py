"""How every script starts and ends: quiet imports, one line per expected failure, an exit code that means something."""

import logging
import os
import sys
from collections.abc import Callable, Sequence

from lab.errors import OutOfMemory, WordbrushError
from lab.training.signals import Stopped

EXIT_CODES = (
    "exit codes: 0 done, 1 out of memory or a check that failed, 2 refused, 65 bad data, 70 not finite, 74 disk, "
    "75 a process was lost, 128 + n ended by signal n (the state is saved)"
)

REMEDY = "work on less at a time (--chunk, --tile), stop what else uses the device, or take one with more memory"


def run(main: Callable[[Sequence[str]], int]) -> None:
    """Run a script's ``main(argv)`` and leave with its exit code; expected failures are one line on stderr."""
    # Threads that spin for long while they wait for each other are many times slower where other work has the core, and
    # those that sleep at once lose a quarter where none has: they spin for some microseconds and then sleep
    # (docs/log.md, 2026-11-27). Read when torch is loaded, which is inside main.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        code = main(sys.argv[1:])
    except WordbrushError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except Stopped as end:
        print(end, file=sys.stderr)
        code = end.exit_code
    except Exception as error:
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(error, torch.OutOfMemoryError):
            raise
        print(f"error: out of memory: {REMEDY}", file=sys.stderr)
        code = OutOfMemory.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
