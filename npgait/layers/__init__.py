"""Layers: each file reads forward, inverse, difference_inverse, transpose, local_update."""

from npgait.layers.conv import Conv2D
from npgait.layers.dense import Dense
from npgait.layers.patches import Window

__all__ = ["Conv2D", "Dense", "Window"]
