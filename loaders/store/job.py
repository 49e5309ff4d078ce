"""What is to be converted, how, and into which files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from npgait.loaders.store import layout
from npgait.loaders.store.journal import Journal
from npgait.loaders.store.listing import ArrayListing, Listing

LEAST_ROOM = 4096  # of encoded images: HDF5 puts what is smaller elsewhere


@dataclass(frozen=True)
class Settings:
    """How a store is made.

    Parameters
    ----------
    size : int
        Side of the images, in pixels; sets that come as arrays keep theirs.
    store : {"raw", "jpeg", "original"}
        Pixels; JPEG files of that size; or the source's own bytes, resized when read.
    quality : int
        Of the JPEG files, 1 to 95.
    shuffled : bool
        Whether images are stored in an order drawn at random, so that a run of them is a fair sample.
    seed : int
        Of that order.
    skip_unreadable : bool
        Whether a source file that cannot be read is skipped, as a damaged one is.
    """

    size: int = 224
    store: str = "raw"
    quality: int = 90
    shuffled: bool = True
    seed: int = 0
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.size <= layout.MAX_SIDE:
            raise ValueError(f"size is {self.size}; expected 1 to {layout.MAX_SIDE} pixels")
        if self.store not in layout.STORES:
            raise ValueError(f"store {self.store!r} is unknown; use one of {', '.join(layout.STORES)}")
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality is {self.quality}; expected 1 to 95")


@dataclass(frozen=True)
class Outcome:
    """What a conversion came to."""

    path: Path
    images: int
    done: int
    skipped: int
    redone: int = 0  # done before, and lost with a kill or a crash of the machine
    finished: bool = True
    report: Path | None = None
    before: bool = False  # made by an earlier start; the images were not looked at again


@dataclass
class Job:
    """One conversion under way: its plan and its files."""

    listing: Listing | ArrayListing
    settings: Settings
    out: Path
    plan: str = ""
    start: int = 0  # of the images in the file
    behind: int = 0  # bytes of the file behind the images
    end: int = 0  # of the encoded bytes written so far
    journal: Journal = field(default_factory=lambda: Journal(-1))

    @property
    def part(self) -> Path:
        """The store in the making."""
        return self.out.with_name(self.out.name + layout.PART)

    @property
    def journal_path(self) -> Path:
        """Says which images are done."""
        return self.out.with_name(self.out.name + layout.JOURNAL)

    @property
    def report_path(self) -> Path:
        """Lists what was skipped."""
        return self.out.with_name(self.out.name + layout.REPORT)

    @property
    def raw(self) -> bool:
        """Whether pixels are stored, not files."""
        return self.settings.store == "raw"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image as it is read."""
        if isinstance(self.listing, ArrayListing):
            height, width, channels = self.listing.images.shape[1:]
            return height, width, channels
        return self.settings.size, self.settings.size, 3

    @property
    def room(self) -> int:
        """Bytes of images for which room is made from the start."""
        return len(self.listing) * int(np.prod(self.shape)) if self.raw else LEAST_ROOM


def plan_of(listing: Listing | ArrayListing, settings: Settings) -> str:
    """Return the SHA-256 of all that decides the content; equal plans go on with each other."""
    size = 0 if isinstance(listing, ArrayListing) else settings.size
    quality = settings.quality if settings.store == "jpeg" else 0
    text = json.dumps([settings.store, size, quality]) + listing.digest()
    return hashlib.sha256(text.encode()).hexdigest()
