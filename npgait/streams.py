"""Random numbers that decide a result: one named stream a purpose, drawn on the host.

No global state. NumPy and CuPy runs of one seed start equal, and a stream's state can be saved and
taken up again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

import numpy as np


@dataclass
class Streams:
    """Independent generators, one for each thing that chance decides."""

    weights: np.random.Generator
    feedback: np.random.Generator
    order: np.random.Generator
    augmentation: np.random.Generator

    def save(self) -> str:
        """Return the state of all streams as JSON."""
        return json.dumps({f.name: getattr(self, f.name).bit_generator.state for f in fields(self)})

    def restore(self, state: str) -> None:
        """Take up what `save` returned.

        Raises
        ------
        ValueError
            If `state` is not such a text.
        """
        try:
            states = json.loads(state)
            for f in fields(self):
                getattr(self, f.name).bit_generator.state = states[f.name]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not the state of random streams: {error}") from error


def random_streams(seed: int) -> Streams:
    """Return the streams of a run: children of one SeedSequence, always in the same order."""
    children = np.random.SeedSequence(seed).spawn(len(fields(Streams)))
    return Streams(*(np.random.Generator(np.random.PCG64(child)) for child in children))
