"""Experiment files: TOML with `[defaults]` and one `[[experiment]]` each, and the presets among them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from npgait.config import KEYS, ConfigError, Experiment, make_experiment, nearest, unknown_key
from npgait.files import printable, read_bytes

MAX_FILE_BYTES = 1 << 20  # no experiment file comes near a megabyte; a wrong file may


def read_experiments(
    path: Path,
    text: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    only: Sequence[str] = (),
) -> list[Experiment]:
    """Return the experiments of a TOML file.

    Parameters
    ----------
    path : Path
        The file, which messages name as it is given.
    text : str, optional
        Its content, if it is at hand.
    overrides : mapping, optional
        Keys and values that win over the file's in every experiment that is returned.
    only : sequence of str
        Names, in the file, of the experiments that are returned; all where there are none. The others
        are checked as they stand in the file.

    Raises
    ------
    ConfigError
        If the file cannot be read, a key or value is wrong, or a name is not in the file.
    """
    where, overrides = str(path), overrides or {}
    experiments, names = [], []
    for values in _entries(path, text):
        name = values["name"]
        names.append(name)
        if not only or name in only:
            experiments.append(_make(values, overrides, where))
        else:
            _make(values, {}, where)
    _check_unique(names, where)
    _check_among(names, only)
    if "name" in overrides:
        _check_unique([e.name for e in experiments], f"{where}, changed by --set name")
    return experiments


def _entries(path: Path, text: str | None) -> list[dict[str, Any]]:
    """Return keys and values of each experiment of a file, its name among them."""
    where = str(path)
    table = _parse(path, text)
    unknown = set(table) - {"defaults", "experiment"}
    if unknown:
        key = sorted(unknown)[0]
        raise ConfigError(
            f"{where}: top-level key {key!r} is unknown; expected [defaults] and [[experiment]]"
            + nearest(key, KEYS, "; {} belongs in one of these")
        )
    defaults, entries = table.get("defaults", {}), table.get("experiment", [])
    if not isinstance(defaults, dict) or not isinstance(entries, list) or not entries:
        raise ConfigError(f"{where}: expected one table [defaults] and at least one [[experiment]]")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise ConfigError(f"{where}: experiment {number} is not a table; write [[experiment]]")
    return [
        {"name": f"experiment{number}", **defaults, **entry} for number, entry in enumerate(entries, 1)
    ]


def _make(values: Mapping[str, Any], overrides: Mapping[str, Any], file: str) -> Experiment:
    """Return an experiment with the overrides; a message says whether they or the file is at fault."""
    where = f"{file}, experiment {values['name']!r}"
    try:
        return make_experiment({**values, **overrides}, where)
    except ConfigError:
        make_experiment(values, where)  # where the file is at fault, this raises
        return make_experiment(
            {**values, **overrides}, f"{where}, changed by --set {', '.join(overrides)}"
        )


def _check_unique(names: Sequence[str], where: str) -> None:
    """Refuse names that would share a folder, as those do that differ in case only on some systems."""
    folders = [name.casefold() for name in names]
    for name, folder in zip(names, folders, strict=True):
        times = folders.count(folder)
        if times > 1:
            raise ConfigError(
                f"{where}: key 'name': {name!r} is used {times} times (the case of letters does not "
                "count); name each its own"
            )


def _check_among(names: Sequence[str], only: Sequence[str]) -> None:
    for name in only:
        if name not in names:
            there = f"there is {names[0]}" if len(names) == 1 else f"there are {', '.join(names)}"
            raise ConfigError(f"--experiment {name!r} is not here; {there}")


def _parse(path: Path, text: str | None) -> dict[str, Any]:
    raw = _read(path) if text is None else b""
    try:
        return tomllib.loads(raw.decode("utf-8-sig") if text is None else text)
    except (ValueError, RecursionError) as error:  # a TOMLDecodeError, say, or too many digits
        raise ConfigError(f"{path}: not TOML: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, MAX_FILE_BYTES, pipes=True)  # `npgait run <(...)`
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: over {MAX_FILE_BYTES} bytes; not an experiment file") from error


def parse_override(text: str) -> tuple[str, Any]:
    """Return key and value of `key=value`; the value as TOML, or else as a bare string.

    Raises
    ------
    ConfigError
        If there is no "=", the key is unknown, or there is more than one value.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals:
        raise ConfigError(f"--set {text!r}: expected key=value")
    if key not in KEYS:
        raise ConfigError(f"--set: {unknown_key(key)}")
    word = value.strip()
    try:
        table = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        table = {"value": word}
    except (ValueError, RecursionError) as error:  # too many digits, or brackets
        raise ConfigError(f"--set {key}: cannot be read: {error}") from error
    # A second line would be lost, or become part of a word; an array or a quoted text may have more.
    if len(table) > 1 or (table["value"] == word and "\n" in word):
        raise ConfigError(f"--set {text!r}: expected one key=value; give each its own --set")
    return key, table["value"]


def to_toml(experiments: Iterable[Experiment]) -> str:
    """Return the experiments as TOML, every key written out (those that are None left away)."""
    blocks = []
    for experiment in experiments:
        lines = ["[[experiment]]"]
        for key in KEYS:
            value = getattr(experiment, key)
            if value is not None:
                lines.append(f"{key} = {_toml_value(value)}")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return _toml_text(value) if isinstance(value, str) else repr(value)


def _toml_text(text: str) -> str:
    """Return a text in quotes, as JSON has it but for letters beyond 16 bits: TOML knows no pairs."""
    parts = (json.dumps(c)[1:-1] if c <= "\uffff" else f"\\U{ord(c):08x}" for c in printable(text))
    return f'"{"".join(parts)}"'


def preset_files() -> dict[str, str]:
    """Return the text of every preset file by its name without .toml."""
    folder = resources.files("npgait.presets")
    found = {f.name.removesuffix(".toml"): f for f in folder.iterdir() if f.name.endswith(".toml")}
    return {name: found[name].read_text(encoding="utf-8") for name in sorted(found)}


def preset_experiments() -> Iterator[tuple[str, list[Experiment]]]:
    """Yield the name without .toml of every preset file, and its experiments, which are read by then."""
    for name, text in preset_files().items():
        yield name, read_experiments(Path(f"{name}.toml"), text)


def find_experiments(
    spec: str, overrides: Mapping[str, Any] | None = None, only: Sequence[str] = ()
) -> list[Experiment]:
    """Return what `spec` names: a preset file, one preset experiment, or a TOML file of the user's.

    Parameters
    ----------
    spec : str
    overrides, only
        As of `read_experiments`.

    Raises
    ------
    ConfigError
        If there is no such preset or file, with the nearest known name; and as `read_experiments`.
    """
    if spec.endswith(".toml") or "/" in spec:
        return read_experiments(Path(spec), None, overrides, only)
    files = preset_files()
    if spec in files:
        return read_experiments(Path(f"{spec}.toml"), files[spec], overrides, only)
    names = list(files)
    for file, experiments in preset_experiments():
        plain = [e.name for e in experiments]
        if spec in plain:
            _check_among([spec], only)
            return read_experiments(Path(f"{file}.toml"), files[file], overrides, [spec])
        names += plain
    raise ConfigError(
        f"preset {spec!r} is unknown{nearest(spec, names, '; nearest: {}')} "
        "(npgait presets lists all; a file of your own ends in .toml)"
    )
