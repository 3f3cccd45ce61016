"""What crosses a process or a network: requests, replies, infos and errors as msgpack and bytes.

A reply travels as one small header (msgpack) and one payload in which every array starts at a
multiple of `ALIGNMENT` bytes. The same payload lies in a shared-memory slot, in the cache and in an
Arrow record batch, so no step in between looks at single arrays. Nothing is pickled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import msgpack
import numpy as np
import numpy.typing as npt

from rushes import errors
from rushes.errors import RushesError, ServiceError
from rushes.video.request import (
    Audio,
    AudioTrack,
    Box,
    Cost,
    Features,
    Frames,
    Output,
    Policy,
    Reply,
    Request,
    Resample,
    Size,
    SubtitleTrack,
    VideoInfo,
)

VERSION = 2
HEADER = b"rushes-reply"
"""Key of the reply header in the metadata of an Arrow schema."""
ALIGNMENT = 64
SECTIONS = ("arrays", "requested", "times", "status")
_KINDS: dict[str, type[Output]] = {"frames": Frames, "audio": Audio, "features": Features}
_PLAIN_DTYPES = "biuf"
"""Kinds of NumPy dtypes that may cross: booleans, integers, floats. Never objects."""


class Busy(ServiceError):
    """A server is full: ask another one, or again in a moment."""


class NotARequest(ServiceError):
    """What was sent is no request, whichever server is asked: asking again changes nothing."""


_OWN = {"Busy": Busy, "NotARequest": NotARequest}
_MAX_TEXT = 1000
"""Characters of one argument of an error; gRPC allows its trailers 8 KiB."""


@dataclass(frozen=True)
class Packed:
    """A reply as it is stored and sent.

    Attributes:
        header: msgpack; see `pack`.
        payload: uint8 `N`; whoever owns the memory is its `base`.
    """

    header: bytes
    payload: npt.NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        """Bytes that keeping this reply costs."""
        return len(self.header) + self.payload.nbytes

    def copied(self) -> Packed:
        """The same reply in memory of its own, read-only: fit to be kept and shared."""
        payload = self.payload.copy()
        payload.flags.writeable = False
        return Packed(self.header, payload)


def renamed(packed: Packed, video_id: str) -> Packed:
    """The same reply for one who asked by another id of the same video."""
    # The id comes first (see `layout`): nothing is unpacked where it is the right one.
    if packed.header.startswith(packb({"id": video_id})[1:], 1):
        return packed
    plain = unpackb(packed.header)
    return Packed(packb({**plain, "id": video_id}), packed.payload)


def layout(reply: Reply) -> tuple[bytes, int]:
    """Header of `reply` and the bytes that its payload takes."""
    entries: list[list[Any]] = []
    offset = 0
    for section in SECTIONS:
        for name, array in getattr(reply, section).items():
            if array.dtype.kind not in _PLAIN_DTYPES:
                raise ServiceError(f"{reply.video_id}: array {name!r} has dtype {array.dtype}")
            entries.append([section, name, array.dtype.str, list(array.shape), offset])
            offset += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    plain = {
        "id": reply.video_id,
        "entries": entries,
        "cost": list(dataclasses.astuple(reply.cost)),
        "size": offset,
    }
    return packb(plain), offset


def pack_into(reply: Reply, payload: npt.NDArray[np.uint8]) -> None:
    """Copy the arrays of `reply` to where `layout` says they lie in `payload`."""
    offset = 0
    for section in SECTIONS:
        for array in getattr(reply, section).values():
            place = payload[offset : offset + array.nbytes].view(array.dtype)
            np.copyto(place.reshape(array.shape), array)
            offset += -(-array.nbytes // ALIGNMENT) * ALIGNMENT


def pack(reply: Reply) -> Packed:
    """`reply` in memory of its own."""
    header, size = layout(reply)
    payload = np.zeros(size, np.uint8)
    pack_into(reply, payload)
    return Packed(header, payload)


def unpack(packed: Packed) -> Reply:
    """The reply whose arrays are views of `packed.payload`; raises `ServiceError` if torn."""
    try:
        plain = _unpacked(packed.header)
        sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        for section, name, dtype, shape, offset in plain["entries"]:
            sections[section][name] = _view(packed.payload, dtype, shape, offset)
        return Reply(plain["id"], cost=Cost(*plain["cost"]), **sections)
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        raise ServiceError(f"a reply of {packed.nbytes} bytes is torn: {error}") from error


def _view(
    payload: npt.NDArray[np.uint8], dtype: str, shape: list[int], offset: int
) -> npt.NDArray[np.generic]:
    kind = np.dtype(dtype)
    if kind.kind not in _PLAIN_DTYPES or offset < 0 or any(side < 0 for side in shape):
        raise ValueError(f"array of {dtype} {shape} at {offset}")
    size = math.prod(shape) * kind.itemsize
    if offset + size > payload.nbytes:
        raise ValueError(f"array ends at {offset + size}, payload at {payload.nbytes}")
    array = payload[offset : offset + size].view(kind).reshape(shape)
    return array if array.flags.aligned else array.copy()


def encode_request(request: Request) -> dict[str, Any]:
    """Plain values for msgpack; every float keeps all its bits."""
    outputs = []
    for output in request.outputs:
        kind = next(name for name, cls in _KINDS.items() if isinstance(output, cls))
        fields = {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
        outputs.append({"kind": kind, **fields})
    return {
        "id": request.video_id,
        "outputs": outputs,
        "policy": request.policy,
        "deadline": request.deadline,
        "fixed": request.fixed,
    }


def decode_request(plain: Any) -> Request:
    """The request that `encode_request` wrote; raises `NotARequest` for anything else."""
    try:
        _exactly(plain, {"id", "outputs", "policy", "deadline", "fixed"}, "a request")
        policy, deadline, fixed = plain["policy"], plain["deadline"], plain["fixed"]
        if not isinstance(fixed, bool):
            raise TypeError(f"fixed is {type(fixed).__name__}, expected bool")
        if policy not in get_args(Policy):
            raise ValueError(f"policy {policy!r}; known: {get_args(Policy)}")
        return Request(
            _text(plain["id"]),
            tuple(_decode_output(output) for output in plain["outputs"]),
            policy,
            None if deadline is None else float(deadline),
            fixed,
        )
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise NotARequest(f"not a request: {error}") from error


def _decode_output(plain: Any) -> Output:
    fields = dict(plain)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"output kind {kind!r}; known: {sorted(_KINDS)}")
    _exactly(fields, {f.name for f in dataclasses.fields(_KINDS[kind])}, kind)
    name = _text(fields["name"])
    if kind == "frames":
        size, crop, resample = fields["size"], fields["crop"], fields["resample"]
        if resample not in get_args(Resample):
            raise ValueError(f"resample {resample!r}; known: {get_args(Resample)}")
        return Frames(
            tuple(float(time) for time in fields["times"]),
            None if size is None else Size(*map(int, size)),
            None if crop is None else Box(*map(int, crop)),
            resample,
            name,
        )
    start, end = float(fields["start"]), float(fields["end"])
    if kind == "audio":
        return Audio(start, end, int(fields["rate"]), name)
    return Features(_text(fields["track"]), start, end, name)


def _exactly(plain: Any, keys: set[str], what: str) -> None:
    if not isinstance(plain, Mapping) or set(plain) != keys:
        found = sorted(map(str, plain)) if isinstance(plain, Mapping) else type(plain).__name__
        raise ValueError(f"{what} has the keys {sorted(keys)}, found {found}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, found {type(value).__name__}")
    return value


def encode_error(error: RushesError) -> dict[str, Any]:
    """Class name and arguments of one of our own errors."""
    return {"type": type(error).__name__, "args": [_plain(arg) for arg in error.__reduce__()[1]]}


def _plain(argument: Any) -> Any:
    """An argument of an error as msgpack takes it; an error must never be what cannot be told."""
    if isinstance(argument, tuple | list):
        return [_plain(part) for part in argument]
    if argument is None or isinstance(argument, bool | int | float):
        return argument
    return str(argument)[:_MAX_TEXT]


def decode_error(plain: Mapping[str, Any]) -> RushesError:
    """The error that `encode_error` wrote; an unknown class becomes a `ServiceError`."""
    try:
        name = str(plain["type"])
        cls = _OWN.get(name) or getattr(errors, name, None)
        args = [tuple(arg) if isinstance(arg, list) else arg for arg in plain["args"]]
        if isinstance(cls, type) and issubclass(cls, RushesError):
            return cls(*args)
    except (KeyError, TypeError) as error:
        return ServiceError(f"an error that cannot be told: {error}")
    return ServiceError(f"{name}: {args}")


def encode_info(info: VideoInfo) -> bytes:
    """A `VideoInfo` as msgpack."""
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(info):
        value = getattr(info, field.name)
        if isinstance(value, np.ndarray):
            value = {"dtype": value.dtype.str, "bytes": value.tobytes()}
        elif field.name in ("audio", "subtitles"):
            value = [dataclasses.asdict(track) for track in value]
        plain[field.name] = value
    return packb(plain)


def decode_info(data: bytes) -> VideoInfo:
    """The `VideoInfo` that `encode_info` wrote; raises `ServiceError` for anything else."""
    try:
        plain = _unpacked(data)
        for name in ("frame_times", "keyframes", "full_size_times"):
            if plain[name] is not None:
                plain[name] = np.frombuffer(plain[name]["bytes"], plain[name]["dtype"])
        plain["audio"] = tuple(AudioTrack(**track) for track in plain["audio"])
        plain["subtitles"] = tuple(SubtitleTrack(**track) for track in plain["subtitles"])
        plain["features"] = tuple(plain["features"])
        return VideoInfo(**plain)
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        raise ServiceError(f"not a video info: {error}") from error


def packb(plain: Any) -> bytes:
    """Plain values -> msgpack.

    File names that are no UTF-8 reach Python as texts with surrogates, which must come out on the
    other side as they are.
    """
    data: bytes = msgpack.packb(plain, unicode_errors="surrogatepass")
    return data


def _unpacked(data: bytes) -> Any:
    return msgpack.unpackb(data, unicode_errors="surrogatepass")


def unpackb(data: bytes) -> Any:
    """What `packb` wrote -> plain values; raises `ServiceError` for other bytes."""
    try:
        return _unpacked(data)
    except (ValueError, msgpack.UnpackException) as error:
        raise ServiceError(f"{len(data)} bytes that are no msgpack: {error}") from error


def mapping(data: bytes) -> dict[str, Any]:
    """msgpack -> the mapping that it must be; raises `ServiceError` for anything else."""
    plain = unpackb(data)
    if not isinstance(plain, dict) or not all(isinstance(key, str) for key in plain):
        raise ServiceError(f"expected named values, found {type(plain).__name__}")
    return plain
