"""evaluate.py --selftest: figures of fixed inputs beside those that are stored and those of other libraries."""

import importlib.util

from lab.evaluation.selftest import OTHERS, checks


def selftest() -> int:
    """Print the table; 0 where every figure is what it should be, 1 where one is not.

    Raises:
        Refused: torch-fidelity is not installed.
    """
    found = checks()
    width = max(len(check.name) for check in found)
    print(f"{'figure':<{width}}  {'against':<14}  {'ours':>14}  {'theirs':>14}  {'difference':>10}")
    for check in found:
        values = f"{check.ours:>14.8g}  {check.theirs:>14.8g}  {check.ours - check.theirs:>10.1e}"
        print(f"{check.name:<{width}}  {check.against:<14}  {values}{'' if check.is_met else '  WRONG'}")
    if absent := [library for library, module, _ in OTHERS if not importlib.util.find_spec(module.split(".")[0])]:
        print(f"not installed, and not compared with: {', '.join(absent)}")
    wrong = [check for check in found if not check.is_met]
    print(f"{len(found) - len(wrong)} of {len(found)} figures are what they should be")
    return 1 if wrong else 0
