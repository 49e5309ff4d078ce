"""Layers: each file reads forward, inverse, difference_inverse, transpose, local_update."""

from npgait.layers.dense import Dense

__all__ = ["Dense"]
