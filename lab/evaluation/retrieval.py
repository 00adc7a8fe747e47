"""Does a scorer find the text of a picture, and the picture of a text, among others?

By chance the right one of k comes first in 1 / k of all cases. What counts as found is a score above all others: where
scores are equal nothing was told apart.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lab.errors import Refused
from lab.evaluation.intervals import wilson
from lab.evaluation.prompt_accuracy import Proportion
from lab.randomness import key


def stands_out(own: Tensor, others: Tensor) -> Tensor:
    """Say which queries found their answer: (n,) scores of the right ones against (n, k) of others -> (n,) bool."""
    return own > others.amax(dim=1)


def strangers(meanings: Sequence[str], num: int, seed: int) -> Tensor:
    """Choose for each item others of another meaning than its own, at random and without repetition.

    Args:
        meanings: of n items.
        num: how many others.
        seed: the choice for item i is a function of it and of i.

    Returns:
        (n, num) int64 numbers of items.

    Raises:
        Refused: some item has fewer others.
    """
    rows = []
    for item, own in enumerate(meanings):
        others = [other for other, said in enumerate(meanings) if said != own]
        if len(others) < num:
            raise Refused(
                f"of {len(meanings)} held-out pictures only {len(others)} say something else than picture {item}, and "
                f"first of {num + 1} needs {num}: raise --num, or hold more of the data out"
            )
        rows.append(key(seed, "strangers", item).choice(others, num, replace=False).tolist())
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
