"""One open film: its header, its clock, and the frames picked from it by timestamps. `video.py` is the door
to it.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import BinaryIO

import av
import torch
from av.container import InputContainer
from av.error import InvalidDataError
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from torch import Tensor

from mcm.data.files import File, Stored, opened
from mcm.data.report import UnreadableError
from mcm.data.resize import fit

MAX_SIDE = 8192  # larger frames are refused before decoding: memory stays bounded whatever a header claims
_FASTEST = 480  # frames a second; a header that claims more (the tick of the clock, usually) is not believed
_LISTS = {"concat", "hls", "dash", "image2", "tty"}  # readers that open other files, or make films of text
_UNSEEKABLE = {"gif", "apng"}  # every frame builds on those before it: read from the start
_BACK = (0.0, 2.0, 10.0)  # seconds to step back when a seek lands behind its target (MPEG streams)
_ERRORS = (av.FFmpegError, OSError, ValueError, LookupError, EOFError, ArithmeticError, MemoryError)


class UnreadableVideo(UnreadableError):  # noqa: N818
    """A film that cannot be used; `reason` says why, in words for a person: "too short: 0.9 s, 2.0 s needed
    ...".
    """


@dataclass(frozen=True)
class VideoInfo:
    """What a film's header says (or, where it is silent, its packets).

    frames: estimated count. seconds: length. fps: mean frame rate. size: (H, W) as stored, before any
    rotation the file asks for. codec: FFmpeg's name, "h264".
    """

    frames: int
    seconds: float
    fps: float
    size: tuple[int, int]
    codec: str

    def step(self, stride: int | None = None, fps: float | None = None) -> float:
        """Seconds between two frames of a clip read every `stride` native frames (default 1), or at `fps`."""
        if stride is not None and fps is not None:
            raise ValueError("give stride (in native frames) or fps, not both")
        if (stride is not None and stride < 1) or (fps is not None and not 0 < fps < math.inf):
            raise ValueError(f"stride is {stride}, fps is {fps}: a stride must be >= 1 and fps positive")
        return 1 / fps if fps is not None else (stride or 1) / self.fps

    def clip_seconds(self, frames: int, stride: int | None = None, fps: float | None = None) -> float:
        """Seconds of film that a clip of `frames` frames needs, its last frame included."""
        return (frames - 1) * self.step(stride, fps) + 1 / self.fps

    def why_too_short(self, frames: int, stride: int | None = None, fps: float | None = None) -> str | None:
        """The reason why such a clip does not fit into the film; None where it does (to half a frame)."""
        if self.seconds + 0.5 / self.fps >= self.clip_seconds(frames, stride, fps):
            return None
        return self.too_short(self.seconds, frames, stride, fps)

    def too_short(self, seconds: float, frames: int, stride: int | None, fps: float | None) -> str:
        """The words where only `seconds` can be used: "too short: 0.9 s, 2.0 s needed (...)"."""
        needed = self.clip_seconds(frames, stride, fps)
        digits = 1 if abs(needed - seconds) >= 0.1 else 3
        how = f" at {fps:g} fps" if fps is not None else f", stride {stride or 1} at {self.fps:.4g} fps"
        return f"too short: {seconds:.{digits}f} s, {needed:.{digits}f} s needed ({frames} frames{how})"


class Film:
    """An open film (a context manager). Raises `UnreadableVideo` where there is none in the file.

    Its clock counts seconds from its first frame. With `count` the header is not believed: the packets are
    walked, which reads the whole file but decodes nothing.
    """

    def __init__(self, path: File, count: bool = False) -> None:
        self.path = path
        self._container: InputContainer | None = None
        self._stored: BinaryIO | None = None
        _check_file(path)
        try:
            with _translated():
                self._open()
                self.info = self._info(count)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Film:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None
        if self._stored is not None:
            self._stored.close()
            self._stored = None

    def recount(self) -> None:
        """Correct `info` by walking the packets, which MPEG program streams need: their headers guess."""
        with _translated():
            self.info = self._info(count=True)

    def upright(self) -> tuple[int, int]:
        """(H, W) of the first frame, turned upright and its pixels made square, as `collect` shows it uncut."""
        with _translated():
            frame = next(iter(self._input().decode(self.stream)), None)
        if frame is None:
            raise UnreadableVideo("no frame can be decoded")
        turns, aspect = self._turns_and_aspect(frame)
        height, width = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
        return height, max(1, round(width * aspect))

    def collect(
        self, targets: list[float], size: tuple[int, int], place: tuple[float, float]
    ) -> tuple[Tensor | None, float, str | None]:
        """The frames at or before `targets` (seconds, ascending), fitted: float (3, T, H, W) in [-1, 1].

        Where the film ends or breaks before that: None, the seconds up to which it is healthy, and why it
        broke (None where it simply ends).
        """
        end, why = 0.0, None
        for back in (*_BACK, None):
            try:
                at_start = self._seek(None if back is None else targets[0] - back)
            except _ERRORS as error:
                why = _reason(error)
                continue  # a file without an index cannot seek: step by step back to reading from its start
            picked, end, why = self._pick(targets, at_start, size, place)
            if len(picked) == len(targets):
                return torch.stack(picked, 1), end, None
            if picked or at_start:
                break
        return None, end, why

    def _open(self) -> None:
        self.close()
        if isinstance(self.path, Stored):
            self._stored = self.path.open()
            # no protocol is called so: a file in a tar or behind a URL may name no other at all
            place, options = self._stored, {"protocol_whitelist": "none"}
        else:
            # an absolute path is never taken for a protocol, and no file may name another over the network
            place, options = os.path.abspath(self.path), {"protocol_whitelist": "file"}
        container = av.open(place, "r", options=options, metadata_errors="replace")
        self._container, self._fresh = container, True
        if container.format.name.endswith("_pipe"):
            raise UnreadableVideo("a single picture, not a film")
        if container.format.name in _LISTS:
            raise UnreadableVideo(f"not a film but a list or text ({container.format.name})")
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise UnreadableVideo("no video stream")
        if streams[0].codec_context is None:  # whatever PyAV's types say
            raise UnreadableVideo("no decoder for its codec")
        self.stream: VideoStream = streams[0]
        _check_size(self.stream.codec_context.width, self.stream.codec_context.height)
        self.tick = self.stream.time_base or Fraction(1, 1000)
        self.zero = (self.stream.start_time or 0) * self.tick

    def _input(self) -> InputContainer:
        if self._container is None:
            raise RuntimeError(f"the film {self.path} is closed")
        return self._container

    def _info(self, count: bool) -> VideoInfo:
        stream, context = self.stream, self.stream.codec_context
        rates = [stream.average_rate, stream.guessed_rate, stream.base_rate]
        timeless = stream.start_time is None  # a bare stream: its duration is a guess from a bit rate
        if timeless:  # the guessed rate reads the codec's own header
            rates = [stream.guessed_rate, stream.average_rate, stream.base_rate]
        fps = next((float(r) for r in rates if r and 0 < r <= _FASTEST), 0.0)
        seconds = float(stream.duration * self.tick) if stream.duration else 0.0
        if seconds <= 0 and self._input().duration:
            seconds = (self._input().duration or 0) / av.time_base
        frames = stream.frames
        if self._input().format.name == "gif" and frames and seconds > 0:
            fps = frames / seconds  # FFmpeg's mean is the first delay, rounded to the clock of 1/100 s
        if count or timeless or not fps or seconds <= 0:
            frames, seconds = self._count(fps)
            fps = fps or (frames / seconds if seconds else 0.0)
        if not frames and seconds <= 0:
            raise UnreadableVideo("no frames in it")
        if not fps:
            raise UnreadableVideo("its frame rate is unknown")
        return VideoInfo(
            frames or max(1, round(seconds * fps)),
            seconds,
            fps,
            (context.height, context.width),
            context.name,
        )

    def _count(self, fps: float) -> tuple[int, float]:
        """Walk the packets, decoding none: (count, seconds)."""
        frames, end = 0, 0.0
        try:
            for packet in self._input().demux(self.stream):
                if packet.size:
                    frames += 1
                    time = packet.pts if packet.pts is not None else packet.dts
                    if time is not None:
                        held = packet.duration * self.tick if packet.duration else 0
                        end = max(end, float(time * self.tick - self.zero + held))
        except _ERRORS:
            if not frames:
                raise  # else cut off in the middle: what came before that counts
        self._open()
        return frames, end or (frames / fps if fps else 0.0)

    def _seek(self, seconds: float | None) -> bool:
        """Go to the keyframe before `seconds`, or to the start (None). True: this is the start."""
        plain = self.stream.start_time is None or self._input().format.name in _UNSEEKABLE
        if seconds is None or seconds <= 0 or plain:
            if not self._fresh:
                self._open()
            self._fresh = False
            return True
        self._fresh = False
        offset = int((Fraction(seconds) + self.zero) / self.tick)
        self._input().seek(offset, stream=self.stream, backward=True)
        return False

    def _pick(
        self, targets: list[float], at_start: bool, size: tuple[int, int], place: tuple[float, float]
    ) -> tuple[list[Tensor], float, str | None]:
        interval = 1 / self.info.fps
        # a clock that ticks in milliseconds rounds 33.33 to 33 or 34: that much does not make a frame late
        slack = min(max(float(self.tick), 1e-4), interval / 4)
        picked: list[Tensor] = []
        current: VideoFrame | None = None
        now, end, why, index = 0.0, 0.0, None, 0
        decoded = self._input().decode(self.stream)
        while len(picked) < len(targets):
            try:
                frame = next(decoded, None)
            except _ERRORS as error:
                why = _reason(error)
                break
            if frame is None:
                break
            time = frame.pts if frame.pts is not None else frame.dts
            if time is None and not at_start:
                return [], 0.0, None  # nothing says where the seek has landed
            seconds = float(time * self.tick - self.zero) if time is not None else index * interval
            index += 1
            if current is None and not at_start and seconds > targets[0] + slack:
                return [], 0.0, None  # the seek has landed too late
            if current is not None and seconds <= now:
                continue  # a clock that stands or runs backwards: keep to the order of time
            if current is not None:
                due = sum(t < seconds - slack for t in targets[len(picked) :])
                if due and current.is_corrupt:
                    return picked, now, "a corrupt frame"
                picked += [self._fitted(current, size, place)] * due if due else []
            current, now = frame, seconds
            end = now + (float(frame.duration * self.tick) if frame.duration else interval)
        due = sum(t < end - slack for t in targets[len(picked) :])  # the last frame stands until its own end
        if due and current is not None and why is None:
            if current.is_corrupt:
                return picked, now, "a corrupt frame"
            picked += [self._fitted(current, size, place)] * due
        return picked, end, why

    def _fitted(self, frame: VideoFrame, size: tuple[int, int], place: tuple[float, float]) -> Tensor:
        """One decoded frame as float (3, H, W) in [-1, 1], turned upright, its pixels made square."""
        _check_size(frame.width, frame.height)
        with _translated():
            pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))
        turns, aspect = self._turns_and_aspect(frame)
        return fit(torch.rot90(pixels, turns, (0, 1)) if turns else pixels, size, place, aspect)

    def _turns_and_aspect(self, frame: VideoFrame) -> tuple[int, float]:
        """Quarter turns, counter-clockwise, that put a frame upright, and then the width of its pixels by height."""
        stated = self.stream.sample_aspect_ratio
        aspect = float(stated) if stated and Fraction(1, 8) <= stated <= 8 else 1.0
        turns = round(frame.rotation / 90) % 4  # FFmpeg counts counter-clockwise, as rot90 does
        return turns, 1 / aspect if turns % 2 else aspect


def _check_file(path: File) -> None:
    try:
        # before open(): a pipe would block there
        mode = stat.S_IFREG if isinstance(path, Stored) else os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise UnreadableVideo("a folder, not a file")
        if not stat.S_ISREG(mode):
            raise UnreadableVideo("not a regular file")
        with opened(path) as file:
            head = file.read(16)
    except FileNotFoundError as error:
        raise UnreadableVideo("no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise UnreadableVideo(f"cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    except UnreadableError as error:
        raise UnreadableVideo(error.reason) from error
    if not head:
        raise UnreadableVideo("empty file")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        raise UnreadableVideo("FFmpeg cannot decode animated WebP: convert it to MP4 or GIF")


def _check_size(width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE:
        raise UnreadableVideo(f"its frames are {width} x {height}: at most {MAX_SIDE} a side are read")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:
        raise UnreadableVideo(f"damaged or not a film: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, InvalidDataError):
        return "invalid data"
    # FFmpeg gives damage the numbers of system errors too ("Operation not permitted"); the file itself has
    # been opened and read by then, so none of them is about the file system
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
