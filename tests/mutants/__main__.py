"""Known mistakes of diffusion code and of trainers, made here on purpose: a test must fail on each of them.

    python -m tests.mutants              # all of them, as `make mutants`
    python -m tests.mutants --only 3     # those of one number

A mutant is our code with one snippet replaced, in a copy of the tree; the checkout is not touched. It is killed when
the test that it names fails on an assertion: an error of any other kind proves nothing. The same tests must pass on a
copy without a mutant. Where our code has no place for a mistake, the mutant is what comes nearest to its effect.

Exit codes: 0 all are killed, 1 not all are, or a snippet no longer occurs exactly once.
"""

import argparse
import sys
from collections.abc import Sequence

from tests.mutants import MUTANTS
from tests.mutants.hunt import ROOT, hunt


def main(argv: Sequence[str]) -> int:
    """Hunt; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = sorted({mutant.number for mutant in MUTANTS})
    parser.add_argument(
        "--only",
        type=int,
        metavar="N",
        choices=numbers,
        help="those of one number: diffusion 1 to 14, training from 15",
    )
    only = parser.parse_args(argv).only
    try:
        return hunt(ROOT, [mutant for mutant in MUTANTS if only in (None, mutant.number)])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
