"""A finished vision stage's folder is enough to draw, and to be asked about images and videos."""

import dataclasses
import io
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from ringworld.data.conversations import Turn
from ringworld.data.templates import PlainTemplate
from ringworld.data.tokenizers import ByteTokenizer
from ringworld.generate.__main__ import main
from ringworld.generate.drawing import Drawer, Guidance
from ringworld.strict import to_mapping
from ringworld.train.checkpoint import save_params
from ringworld.vision.pixels import to_square
from ringworld.vision.stream import VisionIds, clip_ids
from ringworld.vision.video import at_rate
from ringworld.vision.video_reader import Probe, probe
from ringworld.vision.vqgan import init_params
from ringworld.vision.vqgan_import import write_vqgan
from tests.ringworld.generate.conftest import VQGAN
from tests.ringworld.generate.test_command import write_manifest
from tests.ringworld.vision.films import film, noise

BYTES, IDS = ByteTokenizer(), VisionIds(272, 16)


@pytest.fixture(scope="module")
def run(tmp_path_factory, seeing, model, vqgan):
    """vqgan -> codes -> examples -> pack -> vision-300, as the flow leaves them; of chat, chat-300; and text-300."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    write_manifest(run / "tokenizer", "tokenizer", {}, {})
    BYTES.save(str(run / "tokenizer" / "attempt-1" / "tokenizer"))
    write_manifest(run / "vqgan", "vqgan", {}, {}, attempt=2)
    shutil.copytree(vqgan, run / "vqgan" / "attempt-2" / "vqgan")
    write_manifest(run / "codes", "codes", {"side": 0, "rate": 2.0}, {"vqgan": "vqgan"}, values={"codebook": 16})
    for stage, form in (("vision-300", "pairs"), ("chat-300", "chat")):
        inputs = {"codes": "codes", "tokenizer": "tokenizer"}
        write_manifest(run / f"examples-{stage}", "vision-examples", {"how": {"form": form}}, inputs)
        write_manifest(run / f"pack-{stage}", "pack-vision", {}, {"vision": f"examples-{stage}"})
        recipe = {"model": to_mapping(seeing.config), "sequence": 300, "dtype": "float32"}
        inputs = {"plan": f"pack-{stage}", "vision": f"examples-{stage}"}
        inputs |= {"params": "vision-300"} if form == "chat" else {}
        write_manifest(run / stage, "train", recipe, inputs)
        save_params(str(run / stage / "attempt-1" / "params"), seeing.params)
    recipe = {"model": to_mapping(model.config), "sequence": 300, "dtype": "float32"}
    write_manifest(run / "text-300", "train", recipe, {"tokens": "tokenizer"})
    return run


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    """3 seconds."""
    return str(film(tmp_path_factory.mktemp("clips") / "clip.mp4", 15, rate=5, paint=noise))


@pytest.fixture
def drawn(monkeypatch) -> list:
    """What `Drawer.draw` was given, and what it gave, each time."""
    calls, draw = [], Drawer.draw

    def told(self, *given):
        found = list(draw(self, *given))
        calls.append((given, [codes for _, codes in found]))
        return iter(found)

    monkeypatch.setattr(Drawer, "draw", told)
    return calls


def answer(seeing, ids, count: int) -> str:
    tokens = seeing.greedy(ids, count)
    return BYTES.decode(tokens[: tokens.index(BYTES.eos_id)] if BYTES.eos_id in tokens else tokens)


def test_captions_are_drawn_together_each_into_its_file(run, codec, tmp_path, capsys, drawn):
    flags = ["--checkpoint", str(run / "vision-300"), "--draw", "a cat", "--draw", "a dog"]
    how = ["--temperature", "2", "--top-k", "5", "--scale", "3"]
    assert main([*flags, *how, "--out", str(tmp_path / "pet.png")]) == 0
    [((drawings, frames, first, _, _), found)] = drawn
    assert (frames, first) == (1, Guidance(3.0, 5, 2.0))
    assert [one.ids.tolist() for one in drawings] == [[*b"a cat<vision>"], [*b"a dog<vision>"]]
    assert [one.without.tolist() for one in drawings] == [[*b"<vision>"]] * 2
    assert drawings[0].seed != drawings[1].seed
    for n, codes in enumerate(found, start=1):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"pet-{n}.png")), codec.decode(codes)[0])
    assert found[0].tolist() != found[1].tolist()
    said = capsys.readouterr()
    assert said.out == ""
    assert "pet-2.png: 16 x 16" in said.err


def test_a_model_of_chat_is_asked_to_draw_a_video(run, codec, tmp_path, capsys, monkeypatch):
    codes, calls = np.repeat([2, 9, 14], 16).reshape(3, 4, 4), []

    def draw(self, *given):
        calls.append(given)
        return iter([(0, codes)])

    monkeypatch.setattr(Drawer, "draw", draw)
    path, flags = str(tmp_path / "cat.mp4"), ["--draw", "a cat", "--frames", "3"]
    assert main(["--checkpoint", str(run / "chat-300"), *flags, "--out", path]) == 0
    [([drawing], frames, first, following, _)] = calls
    request = b"Generate a video of the following. a cat"
    assert drawing.ids.tolist() == [*b"You are a helpful assistant. USER: " + request + b" ASSISTANT: <vision>"]
    assert drawing.without.tolist() == [*b"<vision>"]
    assert (frames, first, following) == (3, Guidance(5.0, 8192, 1.0), Guidance(1.0, 1000, 1.0))
    known = probe(path)
    assert isinstance(known, Probe)
    assert (known.frames, known.seconds, known.codec) == (3, 1.5, "h264")  # at the rate that it was shown videos at
    found = np.stack([frame.pixels for frame in at_rate(path, 2.0)]).astype(int)
    expected = codec.decode(codes).astype(int)
    near, far = (np.abs(found - other).mean() for other in (expected, expected[[1, 2, 0]]))
    assert near < far / 2
    assert "3 frames of 16 x 16, 2 a second, by libx264" in capsys.readouterr().err


def test_who_interrupts_keeps_what_is_written(run, tmp_path, capsys, monkeypatch):
    def draw(*_):
        yield 0, np.zeros((1, 4, 4), np.int32)
        raise KeyboardInterrupt

    monkeypatch.setattr(Drawer, "draw", draw)
    flags = ["--draw", "a", "--draw", "b", "--out", str(tmp_path / "x.png")]
    assert main(["--checkpoint", str(run / "vision-300"), *flags]) == 64
    assert "interrupted: 1 of 2 are written" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["x-1.png"]


def with_clip(turns, pixels: np.ndarray, codec) -> np.ndarray:
    """The prompt of turns in which `|` stands for a clip of these pictures."""
    text = PlainTemplate(BYTES).prompt(turns)
    [at] = np.flatnonzero(text == ord("|"))
    return np.concatenate([text[:at], clip_ids(codec.encode(pixels), IDS), text[at + 1 :]])


def test_a_question_about_an_image_is_asked_as_the_examples_ask(run, seeing, codec, tmp_path, capsys):
    Image.fromarray(noise(3)).save(tmp_path / "a.png")
    flags = ["--checkpoint", str(run / "chat-300"), "--image", str(tmp_path / "a.png"), "--question", "What is it?"]
    assert main([*flags, "--max-tokens", "8", "--chunk", "64"]) == 0
    ids = with_clip([Turn("user", "<vision>|</vision>\nWhat is it?")], to_square(noise(3), 16)[None], codec)
    assert capsys.readouterr().out == answer(seeing, ids, 8) + "\n"


def test_a_chat_about_a_video_remembers_it(run, seeing, codec, clip, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is it?\nWhy?\n"))
    flags = ["--checkpoint", str(run / "chat-300"), "--video", clip, "--chat", "--chunk", "64"]
    assert main([*flags, "--max-tokens", "6"]) == 0
    said = capsys.readouterr()
    assert "[6 frames, 102 tokens]" in said.err  # of 3 seconds, at the rate of the codes
    shown = np.stack([frame.pixels for frame in at_rate(clip, 2.0, side=16)])
    turns = [Turn("user", "<vision>|</vision>\nWhat is it?")]
    first = answer(seeing, with_clip(turns, shown, codec), 6)
    turns += [Turn("assistant", first.strip()), Turn("user", "Why?")]
    assert said.out == f"{first}\n{answer(seeing, with_clip(turns, shown, codec), 6)}\n"


def test_wrong_words_end_with_64_and_a_line(run, seeing, clip, tmp_path, capsys):
    def refused(*flags, stage="vision-300") -> str:
        assert main(["--checkpoint", str(run / stage), *flags]) == 64
        said = capsys.readouterr().err.strip()
        assert said.startswith("error: ")
        assert "\n" not in said
        return said

    out = ["--out", str(tmp_path / "a.png")]
    assert "text model" in refused("--draw", "a cat", *out, stage="text-300")
    assert "text model" in refused("--video", clip, "--question", "?", stage="text-300")
    assert "--frames 0" in refused("--draw", "a cat", "--frames", "0", *out)
    assert "3 frames are a video" in refused("--draw", "a cat", "--frames", "3", *out)
    assert "'.gif'" in refused("--draw", "a cat", "--out", str(tmp_path / "a.gif"))
    assert "needs --out" in refused("--draw", "a cat")
    assert "say what" in refused("--draw", " ", *out)
    assert "--draw and --question" in refused("--draw", "a cat", "--question", "?", *out)
    assert "are for text" in refused("--draw", "a cat", "--top-p", "0.9", *out)
    assert "--out is for" in refused("--question", "?", *out)
    assert "give --question or --chat" in refused("--image", clip)
    assert "--frames and --rate" in refused("--question", "?", "--frames", "3")
    assert "--rate 0" in refused("--video", clip, "--question", "?", "--rate", "0")
    assert "scale=-1" in refused("--draw", "a cat", "--scale", "-1", *out)
    assert "fit" in refused("--draw", "a cat", "--frames", "99", "--out", str(tmp_path / "a.mp4"))
    assert "--image" in refused("--image", clip, "--question", "?")
    assert not list(tmp_path.iterdir())


def test_a_vqgan_that_is_not_the_models_is_refused_by_name(run, seeing, tmp_path, capsys):
    def refused(stage: str, *flags) -> str:
        flags = ("--draw", "a cat", "--out", str(tmp_path / "a.png"), *flags)
        assert main(["--checkpoint", str(run / stage), *flags]) == 64
        return capsys.readouterr().err.strip()

    larger = dataclasses.replace(VQGAN, codebook=32)
    folder = str(tmp_path / "larger")
    write_vqgan(folder, larger, init_params(larger, 0))
    found = refused("vision-300", "--vqgan", folder)
    assert f"{folder} has a codebook of 32, and the model was trained with one of 16" in found
    assert f"{tmp_path}: no config.json" in refused("vision-300", "--vqgan", str(tmp_path))
    # A stage of which no manifest says more than that it sees.
    recipe = {"model": to_mapping(seeing.config), "sequence": 300, "dtype": "float32"}
    write_manifest(run / "lost", "train", recipe, {"tokens": "tokenizer"})
    assert "give its folder as --vqgan" in refused("lost")
    assert f"{folder} has a codebook of 32, which needs 34 vision ids" in refused("lost", "--vqgan", folder)
