"""How fast the image store is beside the least that the work could cost, all in one run.

    python benchmarks/store.py --data ../shared/data

Conversion beside Pillow alone on the same cores; checksums; batches beside plain `os.preadv`; and, where
PyTorch is installed, its DataLoader with h5py over the same file with as many workers.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
import zlib
from pathlib import Path

import h5py
import numpy as np
from PIL import Image, ImageOps

from npgait.loaders.store import Settings, find_listings, open_store, prepare
from npgait.loaders.store.listing import ArrayListing
from npgait.loaders.store.reader import cores, read_images
from npgait.loaders.store.speed import measure_store

REPEATS = 5


def pillow_alone(paths: list[str], size: int, ready, go) -> None:
    """Decode and resize, and nothing else; as much work as a converter cannot avoid."""
    ready.release()
    go.wait()
    for path in paths:
        with Image.open(path) as image:
            ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC).tobytes()


def rate_of_pillow(paths: list[str], size: int, workers: int) -> float:
    context = multiprocessing.get_context("fork")
    ready, go = context.Semaphore(0), context.Event()
    shares = [paths[k::workers] for k in range(workers)]
    processes = [context.Process(target=pillow_alone, args=(s, size, ready, go)) for s in shares]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    started = time.perf_counter()
    go.set()
    for process in processes:
        process.join()
    return len(paths) / (time.perf_counter() - started)


def conversion(data: Path, folder: Path, size: int, images: int) -> None:
    real = sorted((data / "imagenet_sample" / "train").glob("*/*"))
    for k in range(-(-images // len(real))):
        for path in real:
            target = folder / "source" / path.parent.name / f"{k}-{path.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    (listing,) = find_listings("imagenet", folder / "source")
    paths = [listing.where(i)[0] for i in range(len(listing))]
    workers, pairs = cores(), []
    for k in range(REPEATS):
        pillow = rate_of_pillow(paths, size, workers)
        seen: list[tuple[float, int]] = []
        started = time.perf_counter()
        prepare(
            listing,
            folder / f"{k}.h5",
            Settings(size),
            progress=lambda done, _, seen=seen: seen.append((time.perf_counter(), done)),
        )
        ours = len(listing) / (time.perf_counter() - started)
        (t0, n0), (t1, n1) = seen[1], seen[-1]  # from the first images to the last: hours, in use
        (folder / f"{k}.h5").unlink()
        pairs.append((pillow, ours, (n1 - n0) / (t1 - t0)))
    pillow, ours, under_way = (statistics.median(column) for column in zip(*pairs, strict=True))
    share, share_under_way = (statistics.median(row[i] / row[0] for row in pairs) for i in (1, 2))
    print(f"\nconversion of {len(paths)} real images to {size} pixels, {workers} cores, {REPEATS} pairs")
    print(f"  Pillow alone, decode and resize      {pillow:8.0f} images/s")
    print(f"  npgait data prepare, under way       {under_way:8.0f} images/s   {share_under_way:.0%}")
    print(f"  npgait data prepare, start to end    {ours:8.0f} images/s   {share:.0%}")
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8).tobytes()
    started = time.perf_counter()
    for _ in range(500):
        zlib.crc32(pixels)
    each = (time.perf_counter() - started) / 500
    print(f"  of that checksums                    {each * ours / workers:8.2%}")


def make_large(folder: Path, images: int, size: int) -> Path:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (images, size, size, 3), dtype=np.uint8)
    names = [str(i) for i in range(images)]
    classes = tuple(f"n{c:08d}" for c in range(1000))
    labels = rng.integers(0, 1000, images)
    prepare(ArrayListing("imagenet", "train", names, labels, classes, x), folder / "large.h5")
    return folder / "large.h5"


def reading(path: Path, threads: int) -> None:
    print(f"\nreading batches of 256, {len(open_store(path))} images, warm, {threads} threads, images/s")
    rates = list(measure_store(open_store(path), threads=threads))
    for rate in rates:
        print(f"  {rate.stage:42s} {rate.median:8.0f}   {rate.median / rates[0].median:.0%}")


def beside_pytorch(path: Path, workers: int) -> None:
    try:
        import torch
        from torch.utils.data import DataLoader, Dataset
    except ImportError:
        print("\nPyTorch is not installed here: its DataLoader was not measured")
        return

    class Images(Dataset):
        """As its users write it: the file opened in the worker, one image an index."""

        def __init__(self) -> None:
            self.file = None
            self.n = len(open_store(path))

        def __len__(self) -> int:
            return self.n

        def __getitem__(self, i: int):
            if self.file is None:
                self.file = h5py.File(path, "r")
            return torch.from_numpy(self.file["images"][i]), int(self.file["labels"][i])

    store = open_store(path)
    pairs = []
    for repeat in range(REPEATS):
        loader = DataLoader(Images(), 256, shuffle=True, num_workers=workers, drop_last=True)
        iterator = iter(loader)
        next(iterator)  # the workers are up
        started, n = time.perf_counter(), 0
        for x, _ in iterator:
            n += len(x)
        theirs = n / (time.perf_counter() - started)
        order = np.random.default_rng(repeat).permutation(len(store))
        batches = [order[i : i + 256] for i in range(0, len(order) - 255, 256)]
        reader = read_images(store, batches, threads=workers)
        next(reader)
        started = time.perf_counter()
        n = sum(len(x) for x in reader)
        pairs.append((theirs, n / (time.perf_counter() - started)))
    theirs, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"\nrandom batches of 256 as arrays, {workers} workers, one epoch, {REPEATS} pairs")
    print(f"  PyTorch {torch.__version__} DataLoader with h5py   {theirs:8.0f} images/s")
    print(f"  npgait                                {ours:8.0f} images/s   {ratio:.1f} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="holds imagenet_sample/train/CLASS/FILE"
    )
    parser.add_argument("--images", type=int, default=6000, help="of the file that is read")
    parser.add_argument("--convert", type=int, default=3000, help="images converted")
    parser.add_argument("--size", type=int, default=224)
    arguments = parser.parse_args()
    print(f"{cores()} cores, {os.uname().machine}, Pillow {Image.__version__}, h5py {h5py.__version__}")
    with tempfile.TemporaryDirectory() as name:
        conversion(arguments.data, Path(name), arguments.size, arguments.convert)
        path = make_large(Path(name), arguments.images, arguments.size)
        for threads in (1, cores()):
            reading(path, threads)
        beside_pytorch(path, cores())


if __name__ == "__main__":
    main()
