"""Installs npgait: the core, its commands (cli/) and its data sets (loaders/) as one package."""

import os
import re
from pathlib import Path

from setuptools import Extension, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "npgait/__init__.py").read_text())[1]

# NumPy's operations in the same order, so that loops and NumPy give the same bits.
FLAGS = [] if os.name == "nt" else ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]


def loops(real: str, c_type: str) -> Extension:
    """Return the compiled loops of a dtype; without a C compiler npgait installs without them."""
    return Extension(
        f"npgait.kernels._loops_{real}",
        [f"npgait/kernels/{name}.c" for name in ("loops", "tiles", "tiles_avx2")],
        define_macros=[("REAL", c_type)],
        depends=[f"npgait/kernels/{name}" for name in ("equations.h", "loops.h", "tiles.c")],
        extra_compile_args=FLAGS,
        optional=True,
    )


setup(
    name="npgait",
    version=VERSION,
    description="GAIT-prop on NumPy and CuPy: local targets instead of backpropagated gradients",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    package_dir={"npgait": "npgait", "npgait.cli": "cli", "npgait.loaders": "loaders"},
    packages=[
        "npgait",
        "npgait.kernels",
        "npgait.layers",
        "npgait.rules",
        "npgait.presets",
        "npgait.cli",
        "npgait.loaders",
        "npgait.loaders.data",
        "npgait.loaders.store",
    ],
    ext_modules=[loops("float32", "float"), loops("float64", "double")],
    package_data={
        "npgait": ["py.typed"],
        "npgait.kernels": ["*.cu", "*.h", "*.c"],
        "npgait.presets": ["*.toml"],
        "npgait.loaders.data": ["*.h5", "*.txt"],
    },
    install_requires=[
        "numpy>=1.26",
        "h5py>=3.10",
        "pillow>=10.0",
        "click>=8.1",
        "tqdm>=4.65",
        "threadpoolctl>=3.2",
        "matplotlib>=3.8",
    ],
    extras_require={
        # ctk: cuBLAS, NVRTC and their kin, for machines with no more than NVIDIA's driver (CuPy 14).
        "cuda12": ["cupy-cuda12x[ctk]>=13"],
        "cuda13": ["cupy-cuda13x[ctk]>=13.6"],
        "devkit": ["scipy>=1.11"],
        "sklearn": ["scikit-learn>=1.6"],
        "onnx": ["onnx>=1.15", "onnxruntime>=1.17"],
        "docs": ["mkdocs>=1.6"],
        "test-gpu-compile": ["nvidia-cuda-nvrtc-cu12>=12.4"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "ruff>=0.6",
            "mypy>=1.11",
            "scipy>=1.11",
        ],
    },
    entry_points={"console_scripts": ["npgait = npgait.cli.main:main"]},
)
