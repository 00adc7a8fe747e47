"""Scorers: how well a picture fits a text, as the cosine of the angle between two vectors."""
