"""The words of the command line that are about pictures: what to draw and where to, and what a question is about."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ringworld.errors import UserError
from ringworld.exits import DONE
from ringworld.generate.meter import Meter

if TYPE_CHECKING:
    import numpy as np

    from ringworld.data.conversations import Turn
    from ringworld.generate.chat import Prompts
    from ringworld.generate.checkpoint import Checkpoint
    from ringworld.generate.drawing import Drawing, Guidance
    from ringworld.generate.sight import Shown, Sight

_AT_ONCE = 8  # clips that are drawn together


def add_vision_flags(parser: argparse.ArgumentParser) -> None:
    pictures = parser.add_argument_group("pictures, of a model that sees")
    pictures.add_argument("--draw", action="append", metavar="TEXT", help="what the picture shows; may be repeated")
    pictures.add_argument("--out", metavar="FILE", help=".png, or .mp4; of several, a number is put before the suffix")
    seen = pictures.add_mutually_exclusive_group()
    seen.add_argument("--image", metavar="FILE", help="what a question or chat is about")
    seen.add_argument("--video", metavar="FILE")
    pictures.add_argument("--frames", type=int, help="to draw, 1 if left out; of --video: so many, evenly spread")
    pictures.add_argument("--rate", type=float, help="frames a second: of the video drawn; of --video, those looked at")
    pictures.add_argument("--scale", type=float, default=5.0, help="of guidance, of an image and a video's first frame")
    pictures.add_argument("--video-scale", type=float, default=1.0, help="of the frames after it; 1: no guidance")
    pictures.add_argument("--vqgan", metavar="DIR", help="another VQGAN than the one that the model's run has")


def draw(options: argparse.Namespace) -> int:
    """Draw what --draw says, and write it. Returns the exit code."""
    paths, (first, following) = _paths(options), _guidance(options)
    # Imported here: a wrong word is answered without waiting for JAX.
    from ringworld.generate.chat import Prompts
    from ringworld.generate.checkpoint import open_checkpoint
    from ringworld.generate.drawing import Drawer
    from ringworld.generate.sampler import open_programs
    from ringworld.mesh import make_mesh, parse_mesh

    checkpoint = open_checkpoint(options.checkpoint, options.tokenizer)
    shown, sight = _sight(options, checkpoint)
    frames = options.frames or 1
    drawings = list(_drawings(options, Prompts(checkpoint), shown.asked, frames))
    mesh = make_mesh(parse_mesh(options.mesh))
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    drawer = Drawer(
        open_programs(checkpoint, mesh, options.dtype),
        sight.ids,
        sight.grid,
        context=options.context or checkpoint.context,
        at_once=-(-min(_AT_ONCE, len(drawings)) // shards) * shards,
        chunk=options.chunk,
    )
    meter, written = Meter("drawing", "codes"), 0
    try:
        for index, codes in drawer.draw(drawings, frames, first, following, meter.advance):
            meter.end()
            how = _save(paths[index], codes, sight, options.rate or shown.rate)
            print(f"[{paths[index]}: {how}, {frames * (sight.grid**2 + 1)} tokens]", file=sys.stderr)
            written += 1
    except KeyboardInterrupt:
        meter.end()
        raise UserError(f"interrupted: {written} of {len(paths)} are written") from None
    return DONE


def look(options: argparse.Namespace, checkpoint: Checkpoint, room: int) -> np.ndarray:
    """The ids of the clip that --image or --video names, in at most `room` tokens."""
    from ringworld.generate.seeing import see_image, see_video
    from ringworld.vision.stream import clip_ids

    shown, sight = _sight(options, checkpoint)
    if options.image is not None:
        return clip_ids(see_image(options.image, sight), sight.ids)
    meter, fits = Meter("looking at", "frames"), room // (sight.grid**2 + 1)
    codes = see_video(options.video, sight, fits, shown.rate, options.rate, options.frames, meter.advance)
    meter.end()
    print(f"[{len(codes)} frames, {len(codes) * (sight.grid**2 + 1)} tokens]", file=sys.stderr)
    return clip_ids(codes, sight.ids)


def check_words(options: argparse.Namespace) -> None:
    """UserError for words that do not go together."""
    if options.draw:
        with_it = [
            flag for flag in ("prompt", "prompt_file", "question", "chat", "image", "video") if _given(options, flag)
        ]
        if with_it:
            raise UserError(
                f"--draw and --{with_it[0].replace('_', '-')}: a picture is drawn from --draw's words alone"
            )
        if options.top_p != 1 or options.min_p != 0:
            raise UserError("--top-p and --min-p are for text; pictures are drawn by --temperature and --top-k")
        if options.out is None:
            raise UserError("--draw needs --out, the file to write: .png for an image, .mp4 for a video")
    elif options.out is not None:
        raise UserError("--out is for what --draw draws; an answer goes to stdout")
    elif _sees(options) and options.question is None and not options.chat:
        raise UserError(f"--{'image' if options.image is not None else 'video'}: give --question or --chat with it")
    elif (options.frames is not None or options.rate is not None) and options.video is None:
        raise UserError("--frames and --rate are for --draw and --video")
    if options.frames is not None and options.frames < 1:
        raise UserError(f"--frames {options.frames}: 1 (an image) or more")
    if options.rate is not None and not 0 < options.rate <= 1000:
        raise UserError(f"--rate {options.rate:g}: frames a second, more than 0 and at most 1000")
    if options.video is not None and options.frames is not None and options.rate is not None:
        raise UserError("--frames and --rate: so many frames of a video, or so many a second; give one of them")


def _given(options: argparse.Namespace, name: str) -> bool:
    return getattr(options, name) not in (None, False)


def _sees(options: argparse.Namespace) -> bool:
    return options.image is not None or options.video is not None


def _sight(options: argparse.Namespace, checkpoint: Checkpoint) -> tuple[Shown, Sight]:
    from ringworld.generate.sight import check_sees, open_sight, shown_to

    check_sees(checkpoint.config)
    shown = shown_to(options.checkpoint)
    return shown, open_sight(checkpoint.config, shown, options.vqgan)


def _paths(options: argparse.Namespace) -> list[str]:
    """Where each clip goes."""
    from ringworld.generate.saving import kind_of

    kind_of(options.out, options.frames or 1)
    out = Path(options.out)
    if len(options.draw) == 1:
        return [options.out]
    return [str(out.with_name(f"{out.stem}-{number}{out.suffix}")) for number in range(1, len(options.draw) + 1)]


def _guidance(options: argparse.Namespace) -> tuple[Guidance, Guidance]:
    from ringworld.generate.drawing import IMAGE, VIDEO, Guidance

    temperature = 1.0 if options.temperature is None else options.temperature
    scales = (options.scale, IMAGE), (options.video_scale, VIDEO)
    first, following = (
        Guidance(scale, usual.top_k if options.top_k is None else options.top_k, temperature) for scale, usual in scales
    )
    return first, following


def _drawings(options: argparse.Namespace, prompts: Prompts, asked: bool, frames: int) -> Iterator[Drawing]:
    from ringworld.data.conversations import Turn
    from ringworld.generate.drawing import Drawing
    from ringworld.vision.examples import REQUESTS
    from ringworld.vision.stream import without_clips

    for number, caption in enumerate(options.draw):
        if not caption.strip():
            raise UserError("--draw: say what the picture shows")
        if asked:
            wish = REQUESTS["image" if frames == 1 else "video"][0].replace("{caption}", without_clips(caption).strip())
            system: Sequence[Turn] = [Turn("system", options.system)] if options.system else []
            ids = prompts.of_picture([*system, Turn("user", wish)], options.plain)
        else:
            ids = prompts.of_caption(caption.strip())
        # Pictures of one command differ, also where their captions do not.
        yield Drawing(ids, prompts.of_caption(""), options.seed + number)


def _save(path: str, codes: np.ndarray, sight: Sight, rate: float) -> str:
    """Write a clip; what was written, in words."""
    from ringworld.generate.saving import kind_of, save_image, save_video

    size = f"{sight.side} x {sight.side}"
    if kind_of(path, len(codes)) == "image":
        save_image(path, sight.codec.decode(codes)[0])
        return size
    batches = range(0, len(codes), sight.codec.batch)
    decoded = (pixels for start in batches for pixels in sight.codec.decode(codes[start : start + sight.codec.batch]))
    encoder = save_video(path, decoded, rate)
    return f"{len(codes)} frames of {size}, {rate:g} a second, by {encoder}"
