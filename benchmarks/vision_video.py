"""Video: how fast it decodes, how much memory that takes by its length, and whether who encodes ever waits for it.

    python benchmarks/vision_video.py [--seconds 10 600] [--json FILE]

- Memory: the peak of a process of its own that reads all frames of a film at 1 a second, squares of 256 pixels, for a
  film of each length; the films are made here, of one moving picture.
- Speed: frames decoded a second of the longest film, by processor time; and those given.
- Waiting: a film decoded ahead, 4 frames a second in chunks of 8, while what takes the chunks is busy: an encoder that
  is given, or a stand-in for one on a device of its own, `--work` milliseconds a frame. The share of its time in which
  the decoder was busy, and the share in which the encoder waited for frames.

`benchmarks/vision.py` asks `figures` for these.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 256
_WIDTH, _HEIGHT, _RATE = 640, 360, 25


def make_film(place: str, seconds: int) -> None:
    """H.264 in mp4, a coloured pattern that moves; its index is in front."""
    import av

    across = np.linspace(0, 6 * np.pi, _WIDTH)[None, :, None]
    down = np.linspace(0, 4 * np.pi, _HEIGHT)[:, None, None]
    hue = np.array([0.0, 2.0, 4.0])
    # The pattern repeats, so that a long film takes no longer to paint than a short one.
    painted = [
        (127.5 + 127.5 * np.sin(across + down * np.cos(step / 16 * np.pi) + hue)).astype(np.uint8) for step in range(32)
    ]
    with av.open(place, "w", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=_RATE)
        stream.width, stream.height, stream.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
        stream.codec_context.options = {"preset": "ultrafast", "g": "250"}
        for number in range(seconds * _RATE):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(painted[number % 32], format="rgb24")))
        container.mux(stream.encode(None))


def read_film(place: str) -> dict[str, float]:
    """In this process: all frames at 1 a second; what that took."""
    from ringworld.vision.video import at_rate

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    given = sum(1 for _ in at_rate(place, 1.0, side=SIDE))
    return {
        "frames": given,
        "cpu_seconds": time.process_time() - began,
        "start_mib": before / 1024,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def encode_film(
    place: str, encode: Callable[[np.ndarray], object], rate: float = 4.0, chunk: int = 8
) -> dict[str, float]:
    """Decode ahead of `encode`, which takes uint8 [n, 256, 256, 3]. Seconds of the clock."""
    from ringworld.vision.ahead import Ahead
    from ringworld.vision.video import at_rate

    began, frames = time.perf_counter(), 0
    with Ahead(at_rate(place, rate, side=SIDE), chunk) as ahead:
        for found in ahead:
            frames += len(found.times)
            encode(found.pixels)
    seconds = time.perf_counter() - began
    usage = ahead.usage
    return {
        "frames": frames,
        "seconds": seconds,
        "decoder_utilisation": usage.utilisation,
        "encoder_waited": usage.no_frames / seconds,
    }


def figures(lengths: Sequence[int] = (10, 600), encode: Callable[[np.ndarray], object] | None = None) -> dict[str, Any]:
    """All of it: memory for each length, in seconds of film; speed of the longest; waiting over the shortest."""
    with tempfile.TemporaryDirectory() as folder:
        places = {seconds: os.path.join(folder, f"{seconds}.mp4") for seconds in lengths}
        for seconds, place in places.items():
            make_film(place, seconds)
        memory = {seconds: _apart(place) for seconds, place in places.items()}
        waiting = encode_film(places[min(lengths)], encode or stand_in(0.02))
    longest = max(lengths)
    return {
        "film": f"{_WIDTH} x {_HEIGHT}, {_RATE} frames/s, H.264",
        "memory": memory,
        "decoded_frames_per_cpu_second": longest * _RATE / memory[longest]["cpu_seconds"],
        "waiting": waiting,
    }


def stand_in(seconds: float) -> Callable[[np.ndarray], object]:
    """An encoder on a device of its own: the host only waits, `seconds` for each frame."""
    return lambda pixels: time.sleep(seconds * len(pixels))


def _apart(place: str) -> dict[str, float]:
    """`read_film` in a process of its own, whose peak is nobody else's."""
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, __file__, "--read", place],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=int, nargs="+", default=[10, 600], help="lengths of the films")
    parser.add_argument("--work", type=float, default=20.0, help="milliseconds that the encoder takes for a frame")
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read:
        print(json.dumps(read_film(given.read)))
        return
    found = figures(given.seconds, stand_in(given.work / 1000))
    print(f"{found['film']}\n\n| film | frames given | processor s | peak MiB |\n|---|---|---|---|")
    for seconds, row in found["memory"].items():
        print(f"| {seconds} s | {row['frames']} | {row['cpu_seconds']:.2f} | {row['peak_mib']:.0f} |")
    waiting = found["waiting"]
    print(
        f"\ndecoded: {found['decoded_frames_per_cpu_second']:.0f} frames per processor second\n"
        f"decoding ahead: decoder busy {waiting['decoder_utilisation']:.0%} of its time, encoder waited "
        f"{waiting['encoder_waited']:.1%} of {waiting['seconds']:.1f} s"
    )
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
