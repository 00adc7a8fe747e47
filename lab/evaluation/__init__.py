"""How good a model is: figures that name what they measured, on how many, and how sure they are."""
