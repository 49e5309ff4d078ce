"""Layers: dense.py and conv.py, the same five equations in each; patches*.py serve the second."""

from npgait.layers.conv import Conv2D
from npgait.layers.dense import Dense
from npgait.layers.patches import Window

__all__ = ["Conv2D", "Dense", "Window"]
