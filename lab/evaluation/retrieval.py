"""Does a scorer find the text of a picture, and the picture of a text, among others?

By chance the right one of k comes first in 1 / k of all cases. What counts as found is a score above all others: where
scores are equal nothing was told apart.
"""

from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor

from lab.errors import Refused
from lab.evaluation.intervals import wilson
from lab.evaluation.prompt_accuracy import Proportion
from lab.randomness import key


def stands_out(own: Tensor, others: Tensor) -> Tensor:
    """Say which queries found their answer: (n,) scores of the right ones against (n, k) of others -> (n,) bool."""
    return own > others.amax(dim=1)


def strangers(n: int, num: int, seed: int, fits: Callable[[int, int], bool]) -> Tensor:
    """Choose for each of n pictures and their texts others, at random and without repetition, that do not fit it.

    What fits would be found with as much right: a picture of a large ring is one of "a ring" too.

    Args:
        n: items, each a picture and its text.
        num: how many others.
        seed: the choice for item i is a function of it and of i.
        fits: of two items, whether the text of the second is true of the picture of the first.

    Returns:
        (n, num) int64 numbers of items of which neither fits the other.

    Raises:
        Refused: for some item there are fewer.
    """
    rows = []
    for item in range(n):
        order = key(seed, "strangers", item).permutation(n).tolist()
        found = list(islice((other for other in order if not (fits(item, other) or fits(other, item))), num))
        if len(found) < num:
            raise Refused(
                f"of {n} held-out pictures only {len(found)} have nothing to do with picture {item}, and "
                f"first of {num + 1} needs {num}: raise --num, or hold more of the data out"
            )
        rows.append(found)
    return torch.tensor(rows)


def first_among(queries: Tensor, answers: Tensor, others: Tensor) -> Tensor:
    """Say which queries find their own answer among some of the answers.

    Args:
        queries, answers: (n, d) directions; answer i is the right one for query i.
        others: (n, k) numbers of the answers that it competes with.

    Returns:
        (n,) bool.
    """
    scores = queries @ answers.T
    return stands_out(scores.diagonal(), scores.gather(1, others))


def proportion(hits: Tensor) -> Proportion:
    """Count what was found, with Wilson's 95 % interval."""
    num, n = int(hits.sum()), len(hits)
    return Proportion(num / n, *wilson(num, n), n=n)
