"""Pictures to codes and back against diffusers' `VQModel` on torch, on this CPU, in one run; and films to codes.

    python benchmarks/vision.py [--quick] [--runs 3] [--batch 2] [--json FILE]

- Speed: the same random VQGAN of aMUSEd's sizes (256 pixels, factor 16, 8192 codes), float32, on both sides; from uint8
  pictures to codes, and from codes to uint8 pictures. Each side runs in a process of its own, the sides in turn,
  A B C A B C; the median of the runs after a warm-up counts, in seconds of the clock and, for a machine with other work
  on it, of the processor. The peer is asked with its numbers in two orders, contiguous and channels last; its faster
  answer counts. Also: how many codes of the two sides are equal, and how far pixels are apart.
- Films (see benchmarks/vision_video.py): the peak of a process that encodes a whole film at 1 frame a second, for films
  of two lengths, with the encoder of the tiny preset at 256 pixels; frames that are decoded a second; and whether the
  encoder of aMUSEd's sizes ever waits for frames at 4 a second.

Needs the `parity` extra for the peer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Run as a file, Python looks for imports beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.vision_video import SIDE, make_film
from benchmarks.worker import Worker
from ringworld.vision.config import PRESETS, VQConfig

OURS, PEER = "benchmarks.vision_ours", "benchmarks.vision_peer"
LAYOUTS = ("contiguous", "channels_last")
QUICK = VQConfig(32, (16, 32), blocks=1, latent=8, code_dim=8, codebook=64, groups=4)
LENGTHS, WATCHED = (10, 600), 4  # seconds of films


def speed(folder: str, config: VQConfig, batch: int, runs: int, threads: int) -> dict[str, Any]:
    """Both sides in turn: medians of seconds a picture, and how far the sides are apart."""
    random = np.random.default_rng(0)
    side = config.resolution
    coarse = random.integers(0, 200, (batch, side // 8, side // 8, 3)).repeat(8, axis=1).repeat(8, axis=2)
    np.save(f"{folder}/pictures.npy", (coarse + random.integers(0, 56, coarse.shape)).astype(np.uint8))
    python = Path(sys.executable)
    with Worker(python, PEER, 1) as peer, Worker(python, OURS, 1) as ours:
        sizes = asdict(config)
        made = peer.ask({"do": "make", "folder": f"{folder}/vqgan", **sizes})
        ours.ask({"do": "load", "folder": f"{folder}/vqgan", "batch": batch})
        found: dict[str, Any] = {"parameters": made["parameters"], "batch": batch, "threads": threads}
        given = {"encode": {"pictures": f"{folder}/pictures.npy"}, "decode": {"codes": f"{folder}/peer-encode.npy"}}
        for action, request in given.items():
            answers: dict[str, list[dict[str, float]]] = {"ours": [], **{layout: [] for layout in LAYOUTS}}
            for turn in range(runs + 1):
                for name, told in answers.items():
                    who = "ours" if name == "ours" else "peer"
                    if who == "peer":
                        peer.ask({"do": "settle", "threads": threads, "layout": name})
                    asked = {"do": action, "save": f"{folder}/{who}-{action}.npy" if turn == 0 else "", **request}
                    answer = (ours if who == "ours" else peer).ask(asked)
                    if turn:
                        told.append(answer)
            medians = {
                name: {key: statistics.median(answer[key] for answer in told) / batch for key in told[0]}
                for name, told in answers.items()
            }
            found[action] = medians | {
                "peer": {key: min(medians[layout][key] for layout in LAYOUTS) for key in medians["ours"]}
            }
        codes, pixels = ([np.load(f"{folder}/{who}-{action}.npy") for who in ("ours", "peer")] for action in given)
        found["codes_equal"] = float((codes[0] == codes[1]).mean())
        found["codes_used"] = len(np.unique(codes[1]))
        found["pixels_apart"] = int(np.abs(pixels[0].astype(int) - pixels[1]).max())
    return found


def films(folder: str, lengths: Sequence[int], watched: int, slow: str, batch: int) -> dict[str, Any]:
    """Memory by length with the tiny encoder, speed of decoding, and who waits with the encoder of preset `slow`."""
    python = Path(sys.executable)
    places = {seconds: f"{folder}/{seconds}.mp4" for seconds in {*lengths, watched}}
    for seconds, place in places.items():
        make_film(place, seconds)
    memory = {}
    for seconds in lengths:
        with Worker(python, OURS, 1) as worker:  # a process of its own, whose peak is nobody else's
            worker.ask({"do": "fresh", "preset": "tiny", "batch": 8})
            memory[seconds] = worker.ask({"do": "film", "place": places[seconds], "rate": 1.0})
    with Worker(python, OURS, 1) as worker:
        read = worker.ask({"do": "read", "place": places[max(lengths)]})
        worker.ask({"do": "fresh", "preset": slow, "batch": batch})
        waiting = worker.ask({"do": "film", "place": places[watched], "rate": 4.0})
    frames = max(lengths) * 25  # of the film
    return {"memory": memory, "decoded_frames_per_cpu_second": frames / read["cpu_seconds"], "waiting": waiting}


def table(found: dict[str, Any]) -> str:
    """What the program prints."""
    lines = []
    if "speed" in found:
        fast = found["speed"]
        lines += [
            f"{fast['parameters'] / 1e6:.1f} M parameters, float32, {fast['batch']} pictures at a time, "
            f"{fast['threads']} threads; pictures a second of the clock (of the processor)",
            "",
            "| | ringworld | diffusers | ratio (goal 1.3) |",
            "|---|---|---|---|",
        ]
        for action, unit in (("encode", "images/s"), ("decode", "frames/s")):
            ours, peer = fast[action]["ours"], fast[action]["peer"]
            rates = [f"{1 / side['seconds']:.2f} ({1 / side['cpu_seconds']:.2f})" for side in (ours, peer)]
            ratio, cpu = (peer[key] / ours[key] for key in ("seconds", "cpu_seconds"))
            lines.append(f"| {action}, {unit} | {rates[0]} | {rates[1]} | {ratio:.2f} ({cpu:.2f}) |")
        lines += [
            "",
            f"codes equal: {fast['codes_equal']:.2%}, of {fast['codes_used']} kinds; pixels of equal codes differ "
            f"by at most {fast['pixels_apart']} of 255",
            "",
        ]
    film = found["films"]
    lines += [f"film, 1 frame/s of {SIDE} pixels, tiny encoder | frames | peak MiB", "---|---|---"]
    lines += [f"{name} s | {row['frames']} | {row['peak_mib']:.0f}" for name, row in film["memory"].items()]
    waiting = film["waiting"]
    lines += [
        "",
        f"decoded: {film['decoded_frames_per_cpu_second']:.0f} frames per processor second",
        f"ahead of the encoder of aMUSEd's sizes, 4 frames/s: decoder busy {waiting['decoder_utilisation']:.1%} "
        f"of its time, encoder waited {waiting['encoder_waited']:.1%} of {waiting['seconds']:.1f} s",
    ]
    return "\n".join(lines)


def measure(quick: bool, runs: int, batch: int, peer: bool = True) -> dict[str, Any]:
    """All figures; `peer`: also those that diffusers is needed for."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if peer:
            config = QUICK if quick else PRESETS["amused"]
            found["speed"] = speed(folder, config, batch, runs, len(os.sched_getaffinity(0)))
        lengths, watched = ((1, 3), 2) if quick else (LENGTHS, WATCHED)
        found["films"] = films(folder, lengths, watched, "tiny" if quick else "amused", batch)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and short films: whether it runs")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    found = measure(options.quick, options.runs, options.batch)
    print(table(found))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
