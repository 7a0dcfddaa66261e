"""A codec: any number of pictures, in batches of one size, as the network itself would encode and decode them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.vision.codec import Codec, to_uint8
from ringworld.vision.vqgan import bind
from tests.ringworld.vision.vqgans import SMALL, pictures, random_params

PARAMS = random_params()
CODES = Codec(SMALL, PARAMS, batch=3).encode(pictures(7))
MADE = Codec(SMALL, PARAMS, batch=3).decode(CODES)


@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_any_number_of_pictures_is_encoded_and_decoded(count):
    codec, given = Codec(SMALL, PARAMS, batch=3), pictures(7)[:count]
    codes = codec.encode(given)
    assert codes.shape == (count, 8, 8)
    made = codec.decode(codes)
    assert made.shape == given.shape
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(codes, CODES[:count])
    np.testing.assert_array_equal(made, MADE[:count])


def test_codes_and_pictures_are_those_of_the_network():
    @jax.jit
    def by_hand(params, pictures):
        model = bind(SMALL, params)
        codes = model.encode(pictures / 255.0)
        return codes, 255.0 * jnp.clip(model.decode(codes), 0.0, 1.0)

    codes, pixels = by_hand(PARAMS, pictures(7))
    np.testing.assert_array_equal(CODES, codes)
    np.testing.assert_allclose(MADE, pixels, atol=0.501)
    assert len(np.unique(CODES)) > 8
    assert len(np.unique(MADE)) > 100


def test_half_precision_makes_nearly_the_same():
    half = Codec(SMALL, PARAMS, batch=3, dtype="bfloat16").decode(CODES[:3])
    assert 0 < np.abs(MADE[:3].astype(int) - half).mean() < 8


def test_what_is_no_picture_and_no_code_is_refused():
    codec = Codec(SMALL, PARAMS, batch=3)
    with pytest.raises(UserError, match="expected uint8"):
        codec.encode(np.zeros((1, 16, 16, 3), np.float32))
    with pytest.raises(UserError, match="multiples of 2"):
        codec.encode(np.zeros((1, 16, 15, 3), np.uint8))
    with pytest.raises(UserError, match=r"code 32: the codes of this VQGAN are 0\.\.31"):
        codec.decode(np.full((1, 4, 4), 32))
    with pytest.raises(UserError, match="code -1"):
        codec.decode(np.full((1, 4, 4), -1))
    with pytest.raises(UserError, match="batch=0"):
        Codec(SMALL, PARAMS, batch=0)


def test_pixels_are_rounded_and_clipped():
    assert to_uint8(jnp.array([-0.1, 0.0, 0.5, 0.9999, 3.0])).tolist() == [0, 0, 128, 255, 255]
