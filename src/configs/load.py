"""From presets and flags to one checked `RunConfig`.

Precedence, low to high: defaults, `--config` files in the order given, `$RUSHES_OVERLAY`, flags
(wherever they stand). A flag is a dotted path of the schema, or a published HD-VILA spelling from
`rushes.configs.published`. Presets are found by path, or by name inside the package.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from rushes.configs import schema
from rushes.configs.published import translate_flag
from rushes.configs.schema import RunConfig
from rushes.errors import ConfigError

OVERLAY_VARIABLE = "RUSHES_OVERLAY"
HELP = """usage: {program} --config PRESET.json [--config OVERLAY.json] [--section.key VALUE ...]

Every field of the schema is a flag: --train.batch_size 4, --data.frames local, --seed 7,
--model.kind frames_mean; booleans take 0/1/true/false, lists and objects take JSON.
--dry-run checks everything and takes one step, then says what would run.
"""


def load_config(argv: Sequence[str], program: str = "rushes", **preset: Any) -> RunConfig:
    """The configuration that `argv` asks for.

    Args:
        argv: flags, without the program's name.
        program: shown in the help text.
        preset: values laid over the defaults before any file (a runner's own task and stage).

    Raises:
        ConfigError: unknown key (the nearest name is given), wrong type or value, missing file.
        SystemExit: after printing the help, for `--help`.
    """
    if "--help" in argv or "-h" in argv:
        print(HELP.format(program=program))  # noqa: T201
        raise SystemExit(0)
    files, flags = split_flags(argv)
    merged: dict[str, Any] = dict(preset)
    overlay = os.environ.get(OVERLAY_VARIABLE)
    for file in [*files, *([overlay] if overlay else [])]:
        merged = merge(merged, read_preset(file))
    for path, value in flags:
        merged = merge(merged, _nested(path, value))
    return build_config(merged)


def build_config(values: Mapping[str, Any]) -> RunConfig:
    """A checked `RunConfig` from nested plain values; raises `ConfigError`."""
    check_names(values, RunConfig, "")
    try:
        return _adapter().validate_python(values)
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in item['loc'])}={item['input']!r}: {item['msg']}"
            for item in error.errors()
        ]
        raise ConfigError("; ".join(lines)) from error


def config_to_json(config: RunConfig) -> dict[str, Any]:
    """Nested plain values, ready for JSON; `build_config` turns them back into the same config."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def read_preset(name: str) -> dict[str, Any]:
    """The JSON object of a preset: a path, or a name inside the package (with or without .json)."""
    path = Path(name)
    if not path.is_file():
        packaged = resources.files("rushes.configs") / f"{path.stem}.json"
        if path.suffix not in ("", ".json") or not packaged.is_file():
            raise ConfigError(f"{name}: no such preset; the package has {preset_names()}")
        return _object(packaged.read_text("utf-8"), name)
    return _object(path.read_text("utf-8"), name)


def preset_names() -> list[str]:
    """Names of the presets inside the package (`base_model*` hold BERT sizes, not runs)."""
    folder = resources.files("rushes.configs")
    names = (Path(entry.name) for entry in folder.iterdir() if entry.name.endswith(".json"))
    return sorted(name.stem for name in names if not name.stem.startswith("base_model"))


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `under`: objects key by key, everything else replaced."""
    out = dict(under)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(out.get(key), Mapping):
            out[key] = merge(out[key], value)
        else:
            out[key] = value
    return out


def split_flags(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, Any]]]:
    """The `--config` files and the (dotted path, value) flags of a command line."""
    files: list[str] = []
    flags: list[tuple[str, Any]] = []
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--"):
            raise ConfigError(f"{token!r}: expected a --flag; see --help")
        name, equals, value = token[2:].partition("=")
        if name in ("dry-run", "dry_run") and not equals:
            # The only switch that may stand without a value.
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "1"
        elif not equals:
            if not rest:
                raise ConfigError(f"--{name}: expected a value after it")
            value = rest.pop(0)
        if name == "config":
            files.append(value)
        else:
            flags.append(_typed(name.replace("dry-run", "dry_run"), value))
    return files, flags


def _typed(name: str, text: str) -> tuple[str, Any]:
    """A flag as (dotted path, value), published spellings translated, JSON read where it is one."""
    published = translate_flag(name, text)
    if published is not None:
        return published
    hint = _hint(name)
    if hint in (str, str | None):
        # Text stays text ("1200" is a step name), except null, which unsets.
        return name, None if text == "null" and hint != str else text  # noqa: E721
    try:
        return name, json.loads(text)
    except json.JSONDecodeError:
        return name, text


def _hint(path: str) -> Any:
    """Type of the field at a dotted path; raises `ConfigError` naming the nearest path."""
    kind: Any = RunConfig
    for part in path.split("."):
        if not is_dataclass(kind):
            kind = Any
            break
        hints = get_type_hints(kind)
        if part not in hints:
            raise ConfigError(_unknown(path, all_paths()))
        kind = hints[part]
    return kind


@cache
def all_paths() -> tuple[str, ...]:
    """Every dotted path of the schema."""

    def walk(kind: Any, prefix: str) -> list[str]:
        paths = []
        for name, hint in get_type_hints(kind).items():
            paths.append(prefix + name)
            if is_dataclass(hint):
                paths.extend(walk(hint, f"{prefix}{name}."))
        return paths

    return tuple(walk(RunConfig, ""))


def check_names(values: Mapping[str, Any], kind: Any, prefix: str) -> None:
    """Raise `ConfigError` for a key that the schema does not have, with the nearest one."""
    hints = get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(_unknown(prefix + key, [prefix + name for name in hints]))
        inner = _inner_dataclass(hints[key])
        if inner is None:
            continue
        if isinstance(value, Mapping):
            check_names(value, inner, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                if isinstance(item, Mapping):
                    check_names(item, inner, f"{prefix}{key}.{index}.")


def _inner_dataclass(hint: Any) -> Any:
    """The dataclass that a hint is or is a tuple of, else None."""
    if is_dataclass(hint):
        return hint
    arguments = getattr(hint, "__args__", ())
    return next((argument for argument in arguments if is_dataclass(argument)), None)


def _unknown(path: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.0)
    last = difflib.get_close_matches(path.rpartition(".")[2], [k.rpartition(".")[2] for k in known])
    by_leaf = [k for k in known if last and k.rpartition(".")[2] == last[0]]
    return f"{path}: no such key; did you mean {(by_leaf or near)[0]!r}?"


def _nested(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _object(text: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name}:{error.lineno}: not JSON: {error.msg}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{name}: expected a JSON object, found {type(value).__name__}")
    return value


@cache
def _adapter() -> TypeAdapter[RunConfig]:
    for item in vars(schema).values():
        if is_dataclass(item) and isinstance(item, type):
            assert fields(item)
            item.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    return TypeAdapter(RunConfig)
