"""Frames by their timestamps, from every container; breaks named, memory bounded, decoding ahead measured."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ringworld.errors import UserError
from ringworld.vision.ahead import Ahead
from ringworld.vision.containers import missing_bytes
from ringworld.vision.pixels import Refused, to_square
from ringworld.vision.video import Frame, Frames, at_rate, spread
from ringworld.vision.video_reader import REASONS, Probe, Reader, VideoOptions, probe
from tests.ringworld.vision.films import film, grey, level, noise, sound

KINDS = ("mp4", "webm", "avi", "gif")


def shown(frames: Iterable[Frame]) -> list[tuple[float, int]]:
    """(time, which frame of a grey film it is)."""
    return [(round(frame.time, 6), round((frame.pixels.mean() - level(0)) / 8)) for frame in frames]


def probed(content: bytes | str, options: VideoOptions | None = None) -> Probe:
    found = probe(content, options)
    assert isinstance(found, Probe), found
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_frames_come_at_the_rate_asked_for_whatever_the_films_own(kind: str, tmp_path: Path) -> None:
    place = str(film(tmp_path / f"a.{kind}", frames=30, rate=10))
    found = probed(place)
    assert (found.width, found.height, found.frames, found.broken) == (64, 48, 30, None)
    assert (found.seconds, found.rate) == (pytest.approx(3, abs=0.02), pytest.approx(10, abs=0.1))
    for rate in (1, 4, 20):
        frames = at_rate(place, rate)
        expected = [(round(k / rate, 6), int(k / rate * 10 + 1e-9)) for k in range(3 * rate)]
        assert shown(frames) == expected
        assert frames.broken is None
    # The middles of five parts of 0.6 s; squares; the same from bytes.
    frames = spread(Path(place).read_bytes(), 5, side=16)
    assert shown(frames) == [(0.3, 3), (0.9, 9), (1.5, 15), (2.1, 21), (2.7, 27)]
    assert next(spread(place, 1, side=16)).pixels.shape == (16, 16, 3)


@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_a_variable_rate_goes_by_time_and_not_by_number(kind: str, tmp_path: Path) -> None:
    times = [0, 100, 200, 1000, 1100, 3000]
    place = str(film(tmp_path / f"a.{kind}", frames=6, times=times))
    expected = [(t / 2, max(n for n, begins in enumerate(times) if begins <= 500 * t)) for t in range(7)]
    assert shown(at_rate(place, 2)) == expected
    assert [which for _, which in shown(spread(place, 3))] == [2, 4, 4]  # about 0.5, 1.5 and 2.5 s
    standing = list(at_rate(place, 2))
    assert standing[3].pixels is standing[4].pixels  # 1.5 s and 2 s show one frame, made once


def test_timestamps_that_lack_or_run_backwards_become_the_expected_ones(tmp_path: Path, monkeypatch: Any) -> None:
    place, read = str(film(tmp_path / "a.mp4", frames=20, rate=10)), Reader._timed
    for stamp in (None, 0):

        def unstamped(self: Reader, frame: Any, stamp: int | None = stamp) -> Any:
            frame.pts = stamp
            return read(self, frame)

        monkeypatch.setattr(Reader, "_timed", unstamped)
        assert shown(at_rate(place, 5)) == [(k / 5, 2 * k) for k in range(10)]


def test_spread_frames_are_reached_by_seeking_and_are_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    place = str(film(tmp_path / "a.mp4", frames=60, rate=10, paint=noise, key_every=6))
    found = probed(place)
    assert len(found.keys) >= 10
    read, decoded = Reader._timed, []

    def counted(self: Reader, frame: Any) -> Any:
        decoded.append(frame.pts)
        return read(self, frame)

    monkeypatch.setattr(Reader, "_timed", counted)
    sought = list(spread(place, 3, found=found))
    fewer = len(decoded)
    straight = list(Frames(place, [frame.time for frame in sought], VideoOptions()))
    assert len(sought) == len(straight) == 3
    for one, other in zip(sought, straight, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
    assert fewer < (len(decoded) - fewer) / 2
    # An index that leads past the time asked for is not believed.
    late = found.keys[5]
    monkeypatch.setattr(Reader, "seek", lambda self, key, seek=Reader.seek: seek(self, late if key else None))
    times = [0.0, late - 0.1]
    wrong = list(Frames(place, times, VideoOptions(), keys=(0.0, late - 0.15)))
    assert [frame.time for frame in wrong] == times
    for one, other in zip(wrong, Frames(place, times, VideoOptions()), strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_film_gives_the_frames_before_the_break_and_says_so(kind: str, tmp_path: Path) -> None:
    whole = film(tmp_path / f"a.{kind}", frames=30, rate=10, paint=noise).read_bytes()
    expected = [frame.pixels for frame in at_rate(whole, 10)]
    cut = whole[: len(whole) * 6 // 10]
    frames = at_rate(cut, 10)
    seen = [frame.pixels for frame in frames]
    assert 8 <= len(seen) < 25
    np.testing.assert_array_equal(seen, expected[: len(seen)])
    assert frames.broken is not None
    assert frames.broken.reason == "truncated"
    found = probed(cut)
    assert found.broken == Refused("truncated", found.broken.detail if found.broken else "")
    assert found.seconds < 2.5
    last = spread(cut, 3)
    assert len(list(last)) >= 2
    assert last.broken is not None


def test_what_holds_no_frames_is_refused_by_reason(tmp_path: Path, monkeypatch: Any) -> None:
    whole = film(tmp_path / "a.mp4", paint=noise).read_bytes()
    index = whole.index(b"moov") - 4
    size = int.from_bytes(whole[index : index + 4], "big")
    monkeypatch.chdir(tmp_path)
    script = b"ffconcat version 1.0\nfile a.mp4\n"  # FFmpeg by itself would open that file
    for content, reason in (
        (b"", "empty"),
        (str(tmp_path / "nowhere.mp4"), "unreadable"),
        (str(sound(tmp_path / "b.mp4")), "no video"),
        (str(film(tmp_path / "c.mp4", frames=0)), "no video"),  # FFmpeg lists no stream of it
        (str(film(tmp_path / "d.webm", frames=0)), "no frames"),
        (str(film(tmp_path / "e.avi", frames=0)), "no frames"),
        (whole[:index] + whole[index + size :], "broken video"),  # frames and no index
        (whole[: index + size], "no frames|truncated"),  # an index and no frames
        (b"# A text that calls itself a film.\n" * 40, "broken video"),
        (script, "broken video"),
    ):
        found, frames = probe(content), at_rate(content, 1)
        assert isinstance(found, Refused), found
        assert found.reason in reason.split("|")
        assert list(frames) == []
        assert frames.broken is not None
        assert frames.broken.reason in reason.split("|")
        assert set(reason.split("|")) <= set(REASONS)


def test_damaged_bytes_end_in_frames_and_a_reason_and_never_raise(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    options = VideoOptions(max_seconds=30)
    for kind in KINDS:
        data = film(tmp_path / f"a.{kind}", frames=6, paint=noise).read_bytes()
        for _ in range(12):
            damaged = bytearray(data)
            for place in random.integers(0, len(data), 4):
                damaged[place] = random.integers(0, 256)
            frames = spread(bytes(damaged), 3, options, side=16)
            assert len(list(frames)) <= 3
            assert frames.broken is None or frames.broken.reason in REASONS


def test_a_file_that_ends_early_is_told_by_its_container(tmp_path: Path) -> None:
    import io

    for kind in ("webm", "avi", "gif"):
        data = film(tmp_path / f"a.{kind}", frames=3, paint=noise).read_bytes()
        assert missing_bytes(io.BytesIO(data)) == 0
        for end in (len(data) - 1, len(data) // 2, len(data) // 3):
            assert missing_bytes(io.BytesIO(data[:end])) > 0, (kind, end, len(data))
    assert missing_bytes(io.BytesIO(b"")) == missing_bytes(io.BytesIO(b"\x1a\x45\xdf\xa3")) == 0


def test_films_are_seen_turned_and_in_square_pixels(tmp_path: Path) -> None:
    scene = np.zeros((48, 64, 3), np.uint8)
    scene[:24, :32] = 200
    for degrees, turns in ((90, 1), (180, 2), (270, 3)):
        place = str(film(tmp_path / f"{degrees}.mp4", frames=2, paint=lambda _: scene, rotation=degrees))
        expected = np.rot90(scene, turns)
        pixels = next(at_rate(place, 1)).pixels
        assert (probed(place).height, probed(place).width) == pixels.shape[:2] == expected.shape[:2]
        rows, columns = (np.array(expected.shape[:2]) // 4).tolist()
        np.testing.assert_allclose(pixels[rows :: 2 * rows, columns :: 2 * columns].astype(int),
                                   expected[rows :: 2 * rows, columns :: 2 * columns], atol=6)  # fmt: skip
    wide = str(film(tmp_path / "wide.mp4", frames=2, paint=lambda _: scene, pixel=Fraction(2)))
    assert probed(wide).width == 128
    pixels = next(at_rate(wide, 1)).pixels
    assert pixels.shape == (48, 128, 3)
    square = next(at_rate(wide, 1, side=24)).pixels
    assert np.abs(square.astype(int) - to_square(pixels, 24)).mean() < 6


def test_transparent_frames_are_seen_over_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    clear.paste((200, 0, 0, 255), (0, 0, 10, 10))
    clear.save(tmp_path / "a.gif", save_all=True, append_images=[clear.transpose(Image.Transpose.ROTATE_180)])
    first = next(at_rate(str(tmp_path / "a.gif"), 1)).pixels
    assert first[:, 1:9].reshape(-1, 3).tolist() == [[200, 0, 0]] * 80
    assert (first[:, 11:] == 255).all()


def test_bounds_on_pixels_and_on_time(tmp_path: Path) -> None:
    place = str(film(tmp_path / "a.mp4", frames=30, rate=10))
    for kind in ("mp4", "webm", "gif"):
        content = str(film(tmp_path / f"b.{kind}", frames=2))
        frames = at_rate(content, 1, VideoOptions(max_pixels=1000))
        assert list(frames) == []
        for refused in (probe(content, VideoOptions(max_pixels=1000)), frames.broken):
            assert isinstance(refused, Refused)
            assert refused.reason == "too many pixels"
    frames = at_rate(place, 10, VideoOptions(max_seconds=1.0))
    assert len(list(frames)) == 11
    assert frames.broken is not None
    assert frames.broken.reason == "too long"
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"rate=.*frames a second"):
            at_rate(place, wrong)
    with pytest.raises(UserError, match="count=0"):
        spread(place, 0)


def test_threads_of_the_decoder_change_no_frame(tmp_path: Path) -> None:
    place = str(film(tmp_path / "a.mp4", frames=40, paint=noise))
    one, two = ([f.pixels for f in at_rate(place, 25, VideoOptions(threads=n))] for n in (1, 3))
    np.testing.assert_array_equal(one, two)


def test_few_frames_are_held_however_long_the_film_and_none_before_they_are_asked_for(
    tmp_path: Path, monkeypatch: Any
) -> None:
    place, read = str(film(tmp_path / "a.mp4", frames=200, paint=lambda k: grey(k % 30))), Reader._timed
    living: weakref.WeakSet[Any] = weakref.WeakSet()
    most = decoded = 0

    def watched(self: Reader, frame: Any) -> Any:
        nonlocal most, decoded
        made = read(self, frame)
        living.add(made)
        most, decoded = max(most, len(living)), decoded + 1
        return made

    monkeypatch.setattr(Reader, "_timed", watched)
    frames = at_rate(place, 5)
    assert decoded == 0
    list(itertools.islice(frames, 3))
    assert decoded < 20
    frames.close()
    assert sum(1 for _ in at_rate(place, 5)) == 40
    assert most <= 3


def test_decoding_ahead_gives_the_same_frames_and_says_who_waited(tmp_path: Path) -> None:
    place = str(film(tmp_path / "a.mp4", frames=50, rate=10, paint=noise))
    expected = list(at_rate(place, 10, side=16))
    with Ahead(at_rate(place, 10, side=16), chunk=8) as ahead:
        chunks = []
        for chunk in ahead:
            chunks.append(chunk)
            time.sleep(0.1)  # longer than decoding takes, also on a busy machine
        assert next(ahead, None) is None
    assert [len(chunk.times) for chunk in chunks] == [8] * 6 + [2]
    np.testing.assert_array_equal(np.concatenate([c.pixels for c in chunks]), [f.pixels for f in expected])
    np.testing.assert_array_equal(np.concatenate([c.times for c in chunks]), [f.time for f in expected])
    usage = ahead.usage
    assert usage.no_room > 0.02
    assert usage.utilisation == pytest.approx(usage.decoding / (usage.decoding + usage.no_room))

    def slow() -> Any:
        for frame in expected[:4]:
            time.sleep(0.02)
            yield frame

    class Given(Frames):
        def _run(self) -> Any:
            return slow()

    with Ahead(Given("", (), VideoOptions()), chunk=1) as ahead:
        assert sum(len(chunk.times) for chunk in ahead) == 4
    assert ahead.usage.no_frames > 0.06
    assert ahead.usage.utilisation > 0.8


def test_leaving_early_ends_the_thread_and_errors_reach_the_reader(tmp_path: Path) -> None:
    place = str(film(tmp_path / "a.mp4", frames=30, rate=10))
    before = threading.active_count()
    with Ahead(at_rate(place, 10), chunk=2, depth=1) as ahead:
        next(ahead)
    assert threading.active_count() == before

    class Failing(Frames):
        def _run(self) -> Any:
            yield Frame(0.0, grey(0))
            raise MemoryError("no room")

    with Ahead(Failing("", (), VideoOptions()), chunk=1) as ahead:
        next(ahead)
        for _ in range(2):
            with pytest.raises(MemoryError, match="no room"):
                next(ahead)
    with pytest.raises(UserError, match="chunk=0"):
        Ahead(at_rate(place, 10), chunk=0)
