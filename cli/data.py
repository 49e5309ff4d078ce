"""`npgait data`: make an image store of a data set, check it, look at it, time it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from click.core import ParameterSource

from npgait.cli.interrupt import stop_on_signals
from npgait.cli.paths import NamedPath
from npgait.cli.progress import Lines
from npgait.cli.table import format_table
from npgait.files import replacing, shown
from npgait.loaders import DataError
from npgait.loaders.store import Outcome, Settings, find_listings, open_store, prepare
from npgait.loaders.store.inspect import contact_sheet, source_name
from npgait.loaders.store.inspect import verify as verify_images
from npgait.loaders.store.layout import MAX_SIDE, SKIPPED, STORES
from npgait.loaders.store.listing import ArrayListing, Listing
from npgait.loaders.store.sources import KINDS
from npgait.loaders.store.speed import measure_store
from npgait.loaders.stored import ENDING, VALIDATION

path_type = NamedPath()
NAMES_SHOWN = 20


def threads_option(default: str) -> Callable[..., Any]:
    """Return the option --threads; `default` in words, for it stands in the help only."""
    return click.option(
        "--threads",
        default=0,
        type=click.IntRange(0, 1024),
        help=f"Threads that read  [default: {default}]",
    )


@click.group(short_help="Make, check, show and time image stores.")
def data() -> None:
    """Image stores: a data set in one HDF5 file, made once, read fast ever after."""


@data.command("prepare")
@click.argument("kind", type=click.Choice(KINDS), metavar="KIND")
@click.argument("source", type=path_type, metavar="SRC")
@click.argument("out", type=path_type, metavar="OUT.h5")
@click.option(
    "--size",
    default=224,
    show_default=True,
    type=click.IntRange(1, MAX_SIDE),
    help="Side of an image, in pixels.",
)
@click.option(
    "--store",
    default="raw",
    show_default=True,
    type=click.Choice(STORES),
    help="Keep pixels; JPEG files of that size; or the files as they are, resized when read.",
)
@click.option(
    "--quality",
    default=90,
    show_default=True,
    type=click.IntRange(1, 95),
    help="Quality of --store jpeg.",
)
@click.option(
    "--split", type=click.Choice(["train", "val"]), help="Only this split  [default: all there are]"
)
@click.option("--labels", type=path_type, help="Text file that names the class of each flat file.")
@click.option(
    "--order",
    type=click.Choice(["shuffled", "sorted"]),
    help="How images are stored  [default: training sets shuffled, others sorted]",
)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the shuffled order."
)
@click.option(
    "--workers", type=click.IntRange(1, 1024), help="Processes that convert  [default: one a core]"
)
@click.option(
    "--skip-unreadable",
    is_flag=True,
    help="Skip files that cannot be read, for the disk or their rights, and do not stop at one.",
)
@click.option("--quiet", "-q", is_flag=True, help="Show the result only.")
def prepare_command(
    kind: str,
    source: Path,
    out: Path,
    size: int,
    store: str,
    quality: int,
    split: str | None,
    labels: Path | None,
    order: str | None,
    seed: int,
    workers: int | None,
    skip_unreadable: bool,
    quiet: bool,
) -> None:
    """Turn the images at SRC into the image store OUT.h5.

    KIND is imagenet, for ILSVRC2012 as it is published (folders, or tar archives that need not be
    unpacked) and for any images in one folder per class; or the name of a data set that npgait knows:
    digits, mnist, kmnist, fashion-mnist, cifar10, cifar100. Where SRC has a validation or test set too,
    that goes to OUT.val.h5.

    The command may be stopped or killed at any moment: the same command goes on. Files that are no good
    image are skipped, and listed in OUT.h5.skipped.txt.

    \b
    npgait data prepare imagenet ~/ILSVRC2012 imagenet.h5
    npgait data prepare imagenet ILSVRC2012_img_train.tar imagenet.h5 --size 256 --store jpeg
    npgait data prepare cifar10 ~/data cifar10.h5
    """  # noqa: D301 - click wants the control character
    if out.suffix != ENDING:
        raise click.UsageError(f"OUT.h5 is {str(out)!r}; expected a name that ends in {ENDING}")
    validation = out.with_name(out.name.removesuffix(ENDING) + VALIDATION)
    listings = find_listings(
        kind,
        source,
        split=split,
        labels=labels,
        leave_out=[out, validation],
        skip_unreadable=skip_unreadable,
    )
    _check_size(listings, size)
    goes_on = "the same command goes on"
    with stop_on_signals(goes_on, "stopping after the images under way") as stop:
        for listing in listings:
            path = out if listing is listings[0] else validation
            shuffled = order == "shuffled" or (order is None and listing.split == "train")
            settings = Settings(size, store, quality, shuffled, seed, skip_unreadable)
            click.echo(f"{listing.split}: {len(listing)} images of {len(listing.classes)} classes")
            with Lines(path.name, "image", len(listing), quiet=quiet) as lines:
                outcome = prepare(
                    listing, path, settings, workers=workers, progress=lines.show, stop=stop
                )
            _report(outcome)
            if stop() and not (outcome.finished and listing is listings[-1]):
                click.echo(f"stopped; {goes_on}", err=True)
                sys.exit(128 + (stop.signal or 0))


def _check_size(listings: Sequence[Listing | ArrayListing], size: int) -> None:
    """Refuse a --size that was given for images that keep their own."""
    given = click.get_current_context().get_parameter_source("size") != ParameterSource.DEFAULT
    for listing in listings:
        if given and isinstance(listing, ArrayListing) and {size} != set(listing.images.shape[1:3]):
            height, width = listing.images.shape[1:3]
            raise DataError(
                f"--size is {size}; {listing.name} has {height} x {width} pixels, which are kept as "
                "they are: leave --size out"
            )


def _report(outcome: Outcome) -> None:
    if outcome.redone:
        click.echo(
            f"{outcome.redone} images had not reached the disk when the machine stopped; done again"
        )
    if not outcome.finished:
        click.echo(f"{outcome.path}: {outcome.done} of {outcome.images} images done")
        return
    size = outcome.path.stat().st_size
    click.echo(
        f"{outcome.path}: {outcome.images} images, {outcome.skipped} skipped, {size / 1e6:.1f} MB"
        + ("; it was there, and is left as it is" if outcome.before else "")
    )
    if outcome.report is not None:
        click.echo(f"skipped images are listed in {outcome.report}")


@data.command("verify", short_help="Check every image of FILE against its checksum.")
@click.argument("file", type=path_type)
@threads_option("one a core")
@click.option("--quiet", "-q", is_flag=True, help="Show the result only.")
def verify_command(file: Path, threads: int, quiet: bool) -> None:
    """Check every image of FILE against its checksum.

    The status is 1 if an image is damaged, and 2 if FILE can be no store, for it was cut short, say.
    """
    store = open_store(file)
    found = 0
    with Lines(file.name, "image", len(store), quiet=quiet) as lines:
        for done, damage in verify_images(store, threads=threads):
            for one in damage:
                lines.print(f"image {one.number} ({shown(one.source)}): {one.reason}")
            found += len(damage)
            lines.show(done, found)
    if found:
        click.echo(f"{file}: {found} of {len(store)} images damaged", err=True)
        sys.exit(1)
    click.echo(f"{file}: {len(store)} images, all as they were written")


@data.command("info")
@click.argument("file", type=path_type)
@click.option("--png", type=path_type, help="Write a contact sheet of 100 images drawn at random.")
def info_command(file: Path, png: Path | None) -> None:
    """Show what FILE holds: counts, classes, sizes, what was skipped."""
    if png is not None and png.is_dir():
        raise click.BadParameter(f"{png} is a folder; expected the name of a file", param_hint="--png")
    store = open_store(file)
    if png is not None and png.exists() and png.samefile(file):
        raise click.BadParameter(f"{png} is the store itself", param_hint="--png")
    head, counts = store.head, np.bincount(store.head.labels, minlength=len(store.head.classes))
    height, width, channels = head.image_shape
    skipped = np.flatnonzero(head.state == SKIPPED)
    rows = [
        ["data set", shown(f"{head.name}, split {head.split}")],
        ["images", f"{len(store)}, of which {len(skipped)} were skipped"],
        ["classes", f"{len(head.classes)}, of {counts.min()} to {counts.max()} images"],
        ["size", f"{height} x {width}, {channels} channel{'s' if channels > 1 else ''}"],
        ["stored as", head.store],
        ["made by", shown(head.made_by)],
        ["mean", ", ".join(f"{v:.3f}" for v in head.mean)],
        ["std", ", ".join(f"{v:.3f}" for v in head.std)],
        ["file", f"{file.stat().st_size / 1e6:.1f} MB, images from byte {store.start}"],
        ["digest", store.digest],
    ]
    click.echo(format_table(["", str(file)], rows))
    click.echo(
        "\nclasses: " + _shortened([f"{c} ({n})" for c, n in zip(head.classes, counts, strict=True)])
    )
    if len(skipped):
        click.echo("skipped: " + _shortened([source_name(store, i) for i in skipped.tolist()]))
    if png is not None:
        with replacing(png) as temporary:
            contact_sheet(store).save(temporary, "PNG")
        click.echo(f"contact sheet: {png}")


def _shortened(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(map(shown, names[:NAMES_SHOWN])) + more


@data.command("bench")
@click.argument("file", type=path_type)
@click.option(
    "--batch-size",
    default=256,
    show_default=True,
    type=click.IntRange(1, 65536),
    help="Images of a batch.",
)
@threads_option("one a core, up to 8")
@click.option(
    "--block",
    default=32,
    show_default=True,
    type=click.IntRange(1),
    help="Images that are read in a run.",
)
@click.option(
    "--seconds",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.01, 60.0),
    help="Seconds of each measurement.",
)
def bench_command(file: Path, batch_size: int, threads: int, block: int, seconds: float) -> None:
    """Show how fast FILE gives batches here, and where the time goes.

    Rates are the median of five measurements in a warm page cache; the share is of the first line, in
    the same run.
    """
    if not math.isfinite(seconds):
        raise click.BadParameter(f"{seconds} is not a finite number", param_hint="--seconds")
    store = open_store(file)
    if batch_size > len(store):
        batch_size = len(store)
        click.echo(f"batches of {batch_size}: the store has no more images", err=True)
    rates = list(
        measure_store(store, batch_size=batch_size, threads=threads, block=block, seconds=seconds)
    )
    rows = [
        [r.stage, f"{r.median:,.0f}", f"{r.best:,.0f}", f"{r.median / rates[0].median:.0%}"]
        for r in rates
    ]
    click.echo(format_table(["stage", "images/s", "best", "share"], rows))
