"""A placement's words as a machine, and what is said where they do not agree."""

import pytest

from ringworld.errors import UserError
from ringworld.planning.hardware import CHIPS, gpu_machine, known_chip, tpu_machine


def test_a_v4_512_is_256_chips_in_64_hosts():
    machine = tpu_machine("v4", "4x8x8", hosts=64, chips_per_host=4)
    assert (machine.chips, machine.joined, machine.chips_per_host) == (256, 256, 4)
    assert machine.topology is not None
    assert (machine.topology.name, machine.topology.host_shape) == ("v4:4x8x8", (2, 2, 1))


def test_slices_are_joined_by_the_network_alone():
    machine = tpu_machine("v5p", "2x2x2", hosts=4, chips_per_host=4, slices=2)
    assert (machine.chips, machine.joined) == (16, 8)


def test_a_host_of_gpus_is_joined_inside():
    machine = gpu_machine("H100", hosts=4, chips_per_host=8)
    assert (machine.chips, machine.joined) == (32, 8)
    assert machine.host_bytes == pytest.approx(8 * CHIPS["H100"].host_bytes)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("v4", "4x8x9", 64, 4), "has 288 chips, but hosts=64 with 4 each have 256; use hosts=72"),
        (("v5", "2x2x2", 2, 4), r"chip 'v5': no such chip \(did you mean v5"),
        (("v6e", "2x2x2", 2, 4), "has 2 dimensions, as in 4x8"),
        (("v4", "0x2x2", 1, 4), "has 3 dimensions"),
        (("v4", "1x4x4", 4, 4), "hosts of 2x2x1 chips do not tile it; the nearest is 2x4x4"),
        (("v4", "3x3x3", 9, 3), "a TPU host has 1, 2, 4 or 8 chips"),
    ],
)
def test_words_that_do_not_agree_are_refused_with_what_would(words, said):
    with pytest.raises(UserError, match=said):
        tpu_machine(*words)


def test_an_unknown_gpu_is_named_with_those_that_are_known():
    with pytest.raises(UserError, match="H100, H200, A100"):
        known_chip("RTX", "gpu")
