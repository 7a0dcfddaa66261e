"""A model that sees reads prompts with codes as the whole model does, and a text model refuses them by name."""

import numpy as np
import pytest

from ringworld.data.tokenizers import ByteTokenizer
from ringworld.errors import UserError
from ringworld.generate.engine import Request
from ringworld.generate.programs import Chunk
from ringworld.generate.sampler import Prompt
from ringworld.vision.stream import VisionIds, clip_ids
from tests.ringworld.generate.test_engine import drain, prompt

IDS = VisionIds(272, 16)
MESH = "tensor=2,ulysses=2,ring=2"


def shown(frames: int, seed: int = 0) -> np.ndarray:
    """Text, a clip of so many frames of 3 x 3 codes, text."""
    codes = np.random.default_rng(seed).integers(0, IDS.codebook, (frames, 3, 3))
    return np.concatenate([prompt(9, seed), clip_ids(codes, IDS), prompt(7, seed + 1)])


def test_what_is_read_with_codes_in_it_is_answered_as_the_whole_model_answers(seeing):
    asked = [shown(1), shown(12, 5), prompt(40)]  # the second one in three chunks
    engine = seeing.engine(MESH)
    tickets = [engine.submit(Request(ids, 10)) for ids in asked]
    found = drain(engine)
    for ticket, ids in zip(tickets, asked, strict=True):
        assert found[ticket] == seeing.greedy(ids, 10)


def test_the_logits_after_codes_are_those_of_the_whole_model(seeing):
    ids = shown(5)[:59]  # ends inside of the clip
    programs = seeing.programs(MESH)
    tokens = np.zeros((1, 64), np.int32)
    tokens[0, : len(ids)] = ids
    row = np.zeros(1, np.int32)
    # As many slots and as long as the engine's, so that nothing new is compiled.
    engine = seeing.engine(MESH)
    _, logits = programs.chunk(
        programs.make_cache(engine.slots, engine.length), Chunk(tokens, tokens, row, row, row + len(ids))
    )
    expected = seeing.logits(ids)[-1]
    np.testing.assert_allclose(np.asarray(logits)[0], expected, atol=2e-4 * np.abs(expected).max())
    # Were codes looked up as nothing, it would be others.
    assert np.abs(seeing.logits(np.where(ids < 272, ids, 0))[-1] - expected).max() > 0.1


def test_a_scored_prompt_is_scored_by_the_vocabulary_of_each_token(seeing):
    ids = shown(12, 2)
    engine = seeing.engine(MESH)
    engine.submit(Request(ids, 0, most=3, score=True))
    [event] = [event for _ in range(3) for event in engine.step() if event.finish]
    assert event.prompt is not None
    assert len(event.prompt) == len(ids) - 1
    of = {}
    for vocabulary in (0, 1):
        logits = seeing.logits(ids, vocabulary).astype(np.float64)
        of[vocabulary] = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for n, told in enumerate(event.prompt):
        seen = int(ids[n + 1] >= IDS.offset)
        logprobs = of[seen][n]
        assert told.logprob == pytest.approx(logprobs[ids[n + 1] - seen * IDS.offset], abs=1e-3)
        assert [token - seen * IDS.offset for token, _ in told.top] == np.argsort(-logprobs)[:3].tolist()


def test_a_text_model_refuses_codes_by_name(model, seeing):
    with pytest.raises(UserError, match="text model, and cannot be given pictures"):
        model.engine().submit(Request(shown(1), 5))
    with pytest.raises(UserError, match="vocabulary of 272 and 24 vision ids, 0 to 296"):
        seeing.engine().submit(Request(np.array([0, 296]), 5))


class Strict(ByteTokenizer):
    """Decodes no id that it does not have, as SentencePiece."""

    def _decode(self, ids: list[int]) -> str:
        assert max(ids, default=0) < self.vocabulary_size
        return super()._decode(ids)


def test_text_after_codes_begins_without_them(seeing):
    sampler = seeing.sampler(mesh=MESH)
    sampler.tokenizer = Strict()
    [(_, reply)] = sampler.run([Prompt(shown(2)[:-7], 6)])  # the clip is the prompt's end
    expected = seeing.greedy(shown(2)[:-7], 6)
    ended = expected.index(257) + 1 if 257 in expected else 6
    assert list(reply.tokens) == expected[:ended]
