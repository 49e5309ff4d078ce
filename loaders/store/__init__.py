"""The image store: a data set in one HDF5 file, made once from image files and read fast ever after."""

from npgait.loaders.store.convert import prepare
from npgait.loaders.store.job import Outcome, Settings
from npgait.loaders.store.layout import Head, Store, open_store
from npgait.loaders.store.sources import find_listings

__all__ = ["Head", "Outcome", "Settings", "Store", "find_listings", "open_store", "prepare"]
