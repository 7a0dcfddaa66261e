"""Meshes: what a text means, and which ones are refused."""

import jax
import pytest

from ringworld.errors import UserError
from ringworld.mesh import MeshSpec, make_mesh, parse_mesh


def test_one_axis_takes_what_is_left():
    assert parse_mesh("fsdp=-1,tensor=2").resolved(8) == MeshSpec(1, 4, 2, 1, 1)
    assert parse_mesh("ring=-1").resolved(8) == MeshSpec(1, 1, 1, 1, 8)
    assert parse_mesh("").resolved(3) == MeshSpec(1, 3, 1, 1, 1)


def test_a_mesh_reads_back_as_it_is_written():
    spec = MeshSpec(2, -1, 4, 1, 2)
    assert parse_mesh(str(spec)) == spec


def test_neighbours_on_the_ring_are_neighbours_among_devices():
    mesh = make_mesh(parse_mesh("fsdp=2,ring=4"), jax.devices()[:8])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "tensor": 1, "ulysses": 1, "ring": 4}
    assert [device.id for device in mesh.devices[0, 0, 0, 0]] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("text", "devices", "said"),
    [
        ("ring=6", 8, ["ring=6", "8 devices", "[1, 2, 4, 8]"]),
        ("fsdp=2", 8, ["multiply to 2", "8"]),
        ("fsdp=-1,ring=-1", 8, ["only one axis"]),
        ("rings=2", 8, ["'rings'", "ring"]),
        ("ring=two", 8, ["'two'"]),
        ("ring=0", 8, ["ring=0"]),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(text, devices, said):
    with pytest.raises(UserError) as error:
        parse_mesh(text).resolved(devices)
    for part in said:
        assert part in str(error.value)
