"""A model is asked about pictures, and for pictures, by the very ids that it was trained on."""

import numpy as np
import pytest

from ringworld.data.conversations import Turn
from ringworld.data.tokenizers import ByteTokenizer
from ringworld.vision.examples import QUESTIONS, REQUESTS, CodedClip, Example, ExampleOptions, Maker
from ringworld.vision.stream import CLIP, VisionIds, clip_ids
from tests.ringworld.generate.test_chat import CHATML, made, prompts_of  # noqa: F401 (a fixture)

BYTES, IDS = ByteTokenizer(), VisionIds(1000, 16)
CODES = np.random.default_rng(0).integers(0, 16, (3, 4, 4))


def examples(tokenizer, form: str) -> list[Example]:
    """One of each corpus and, of pairs, order."""
    maker = Maker(ExampleOptions(form, 5000), tokenizer, IDS)  # type: ignore[arg-type]
    clips = [CodedClip(f"{n}", "video", f"{n:064x}", "a cat that sleeps", rate=4.0) for n in range(8)]
    found = [example for clip in clips for example in maker.make(clip, CODES)]
    assert all(isinstance(example, Example) for example in found)
    return found  # type: ignore[return-value]


def test_a_caption_is_gone_on_from_as_pairs_go_on():
    prompts = prompts_of(BYTES)
    first = {example.how: example.ids for example in examples(BYTES, "pairs")}
    assert set(first) == {"text first", "vision first"}
    for how, caption in (("text first", "a cat that sleeps"), ("vision first", "")):
        ids = prompts.of_caption(caption)
        np.testing.assert_array_equal(first[how][: len(ids)], ids)
        assert first[how][len(ids)] == IDS.offset + CODES[0, 0, 0]  # what is drawn is what came next
    begun = prompts_of(BYTES, begin=256)
    assert begun.of_caption("").tolist() == [256, *b"<vision>"]
    assert begun.of_picture([Turn("user", "Draw")]).tolist()[:4] == [256, *b"You"]


@pytest.mark.parametrize("template", [None, CHATML])
def test_chats_ask_as_the_examples_of_chat_ask(made, template):  # noqa: F811
    prompts = made(template)[1] if template else prompts_of(BYTES)
    tokenizer = prompts._tokenizer
    for example in examples(tokenizer, "chat"):
        given = example.ids[: np.flatnonzero(example.answer)[0]]
        if example.corpus == "video-question":
            clip = clip_ids(CODES, IDS)
            asked = (Turn("user", f"{CLIP}\n{question}") for question in QUESTIONS["video"])
            assert given.tolist() in [prompts.of_turns([turn], clips=[clip]).tolist() for turn in asked]
        else:
            texts = [request.replace("{caption}", "a cat that sleeps") for request in REQUESTS["video"]]
            ids = [prompts.of_picture([Turn("user", text)]) for text in texts]
            [ids] = [one for one in ids if np.array_equal(example.ids[: len(one)], one)]
            assert example.ids[len(ids)] == IDS.offset + CODES[0, 0, 0]
