"""GAIT-prop on NumPy and CuPy: local, layer-wise targets instead of backpropagated gradients."""

__version__ = "0.1.0"
