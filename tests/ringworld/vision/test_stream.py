"""The stream of codes: one grammar, written and read back, in conversations too; whatever is not it is refused."""

from __future__ import annotations

import numpy as np
import pytest

from ringworld.data.conversations import Turn
from ringworld.data.templates import Encoded, Template, template_of, with_template
from ringworld.data.tokenizers import ByteTokenizer, Tokenizer, from_huggingface, train_bpe
from ringworld.errors import UserError
from ringworld.vision.stream import (
    CLIP,
    VisionIds,
    VisionTemplate,
    clip_ids,
    frames_of,
    spans_of,
    spliced,
    vision_span,
    without_clips,
)
from tests.ringworld.data.test_templates import LLAMA3, MODELS, saved

BYTES = ByteTokenizer()
IDS = VisionIds(offset=300, codebook=8)
TWO = np.array([[[0, 1], [2, 3]], [[4, 5], [6, 7]]])
FAR = VisionIds(offset=1000, codebook=8)


@pytest.fixture(scope="module", params=["bytes", "bpe", *MODELS])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """LWM's template on two tokenizers, and a template of Hugging Face's kind on several."""
    if request.param == "bytes":
        return BYTES
    bpe = train_bpe(["USER: what is it? ASSISTANT: <vision> a red cat </vision>"] * 4, 290)
    if request.param == "bpe":
        return bpe
    folder = tmp_path_factory.mktemp("tokenizer")
    saved(MODELS[request.param](), str(folder))
    (folder / "llama3.jinja").write_text(LLAMA3)
    return with_template(from_huggingface(str(folder)), str(folder / "llama3.jinja"))


def test_eof_ends_every_frame_but_the_last_and_eov_the_last() -> None:
    eof, eov = 308, 309
    assert clip_ids(TWO, IDS).tolist() == [300, 301, 302, 303, eof, 304, 305, 306, 307, eov]
    assert clip_ids(TWO[:1], IDS).tolist() == [300, 301, 302, 303, eov]
    assert (IDS.eof, IDS.eov, IDS.vocabulary) == (eof, eov, 10)
    assert clip_ids(np.zeros((1, 2, 3), np.int8), VisionIds(0, 8)).tolist() == [0] * 6 + [9]


def test_what_is_written_is_read_back() -> None:
    codes = np.random.default_rng(1).integers(0, 8192, (5, 16, 16))
    for ids in (VisionIds(0, 8192), VisionIds(32000, 8192)):
        stream = clip_ids(codes, ids)
        assert stream.dtype == np.int32
        assert len(stream) == 5 * 257
        np.testing.assert_array_equal(frames_of(stream, ids, 16), codes)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({4: 309}, "frame 1 of 2 .2 x 2 codes. ends with id 309, not with eof=308"),
        ({9: 308}, "frame 2 of 2 .2 x 2 codes. ends with id 308, not with eov=309"),
        ({5: 308}, "frame 2, place 1: id 308 is no code; those are 300..307"),
        ({2: 41}, "frame 1, place 3: id 41 is no code"),
        ({3: 310}, "frame 1, place 4: id 310"),
    ],
)
def test_a_malformed_clip_is_refused_with_its_place(change: dict[int, int], told: str) -> None:
    stream = clip_ids(TWO, IDS)
    for place, token in change.items():
        stream[place] = token
    with pytest.raises(UserError, match=told):
        frames_of(stream, IDS, 2)


def test_what_no_clip_can_be_is_refused() -> None:
    stream = clip_ids(TWO, IDS)
    for wrong in (stream[:-1], stream[:0], stream[None]):
        with pytest.raises(UserError, match="expected a multiple of 5"):
            frames_of(wrong, IDS, 2)
    with pytest.raises(UserError, match="frame 1, place 5: id 308 is no code"):
        frames_of(stream, IDS, 3)
    for wrong in (TWO[:0], TWO[0]):
        with pytest.raises(UserError, match="one frame or more"):
            clip_ids(wrong, IDS)
    for code in (-1, 8):
        with pytest.raises(UserError, match=f"code {code}: a codebook of 8"):
            clip_ids(np.full((1, 2, 2), code), IDS)
    with pytest.raises(UserError, match="2 codes or more"):
        VisionIds(0, 1)
    with pytest.raises(UserError, match="vision_vocabulary=9: 8 codes, eof and eov need 10"):
        IDS.check_fits(9)
    IDS.check_fits(10)


def test_a_span_stands_between_its_words_and_is_found_again() -> None:
    span = vision_span(TWO, IDS, BYTES)
    text = BYTES.encode("two pictures:")
    stream = np.concatenate([text, span, BYTES.encode("and"), span, clip_ids(TWO[:1], IDS)])
    assert BYTES.decode(span[:8]) == "<vision>"
    assert BYTES.decode(span[-9:]) == "</vision>"
    spans = spans_of(stream, IDS)
    assert [end - begin for begin, end in spans] == [10, 10, 5]
    assert [len(frames_of(stream[begin:end], IDS, 2)) for begin, end in spans] == [2, 2, 1]
    assert spans_of(text, IDS) == []
    assert len(spans_of(np.concatenate([span[8:18], span[8:18]]), IDS)) == 2
    with pytest.raises(UserError, match="has no eov=309 at its end"):
        spans_of(stream[: len(text) + 8 + 7], IDS)
    with pytest.raises(UserError, match="place 1: id 310 is neither"):
        spans_of(np.array([5, 310]), IDS)
    with pytest.raises(UserError, match="offset=200: the tokenizer has 258 ids"):
        vision_span(TWO, VisionIds(200, 8), BYTES)


def test_a_clip_in_a_turn_stands_where_the_text_had_its_place(tokenizer: Tokenizer) -> None:
    template = VisionTemplate(template_of(tokenizer), tokenizer)
    clip = clip_ids(TWO, FAR)
    asked = [Turn("user", f"Look: {CLIP}\nwhat is it?"), Turn("assistant", "A red cat.")]
    [encoded] = template.encode([asked])
    assert isinstance(encoded, Encoded)
    whole = spliced(encoded, [clip])
    [(begin, end)] = spans_of(whole.ids, FAR)
    np.testing.assert_array_equal(whole.ids[begin:end], clip)
    before, after = tokenizer.decode(whole.ids[:begin]), tokenizer.decode(whole.ids[end:])
    assert before.endswith("Look: <vision>")
    assert after.lstrip().startswith("</vision>\nwhat is it?")
    answered = whole.ids[whole.answer]
    assert tokenizer.decode(answered).strip() == "A red cat."
    assert answered[-1] in template.ends()


def test_a_clip_that_answers_is_an_answer_to_its_last_id(tokenizer: Tokenizer) -> None:
    template = VisionTemplate(template_of(tokenizer), tokenizer)
    turns = [Turn("user", "Draw a red cat."), Turn("assistant", CLIP)]
    [encoded] = template.encode([turns])
    assert isinstance(encoded, Encoded)
    whole = spliced(encoded, [clip_ids(TWO, FAR)])
    [(begin, end)] = spans_of(whole.ids, FAR)
    assert whole.answer[begin:end].all()
    answered = whole.ids[whole.answer]
    assert tokenizer.decode(answered[answered < FAR.offset]).replace(" ", "") == "<vision></vision>"
    assert answered[-1] in template.ends()
    # What a model is asked to draw by is what it was trained on, token by token.
    np.testing.assert_array_equal(template.drawing(turns[:1]), whole.ids[:begin])
    np.testing.assert_array_equal(template.prompt(turns[:1]), whole.ids[: int(np.argmax(whole.answer))])


def test_turns_without_clips_are_written_as_ever(tokenizer: Tokenizer) -> None:
    plain = template_of(tokenizer)
    template: Template = VisionTemplate(plain, tokenizer)
    turns = [Turn("user", "what?"), Turn("assistant", "A cat.")]
    for found, wanted in zip(template.encode([turns]), plain.encode([turns]), strict=True):
        assert isinstance(found, Encoded)
        assert isinstance(wanted, Encoded)
        np.testing.assert_array_equal(found.ids, wanted.ids)
        np.testing.assert_array_equal(found.answer, wanted.answer)
    assert template.ends() == plain.ends()
    assert template.hash == plain.hash
    assert without_clips(f"a{CLIP}b") == "ab"
    [encoded] = template.encode([turns])
    assert isinstance(encoded, Encoded)
    with pytest.raises(ValueError, match="1 clips for 0 places"):
        spliced(encoded, [clip_ids(TWO, IDS)])
