"""The tests. `pytest -n auto` (pytest-xdist) spreads them over the cores."""

import os

# Set in many containers; what is buffered, as a user's output mostly is, fails later and in other ways.
os.environ.pop("PYTHONUNBUFFERED", None)

# Before NumPy is imported: processes that share the cores get one thread of the BLAS each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
