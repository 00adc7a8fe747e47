"""Known mistakes, made here on purpose: a test must fail on each of them."""

from tests.mutants import diffusion, training

MUTANTS = (*diffusion.MUTANTS, *training.MUTANTS)
