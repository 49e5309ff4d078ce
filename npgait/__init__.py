"""GAIT-prop on NumPy and CuPy: local, layer-wise targets instead of backpropagated gradients.

Five lines train a network:

    import npgait

    network = npgait.models.square(n_in=64, n_classes=10, width=128, depth=3)
    rows = npgait.fit(network, x, labels, rule="gait", epochs=20)
    classes = network.predict(x)
"""

import os

# Before NumPy is loaded: threads of OpenBLAS that have nothing to do shall sleep after 2^15 cycles, not
# after 2^26. They would take a core from whatever comes between two products. A user's own setting wins.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "15")

from npgait import layers, losses, metrics, models, optimizers, rules
from npgait.backend import select_device
from npgait.fitting import fit
from npgait.network import Network
from npgait.saving import load_network, save_network

__version__ = "0.1.0"

__all__ = [
    "Network",
    "__version__",
    "fit",
    "layers",
    "load_network",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "rules",
    "save_network",
    "select_device",
]
