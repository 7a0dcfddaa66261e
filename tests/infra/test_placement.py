"""A placement is right or it is refused with the key, the value and what is allowed; it says what a cluster lacks."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from infra.errors import UserError
from infra.placement import Placement, shortage

TPU: dict[str, Any] = {"kind": "tpu", "resources": {"TPU": 4}, "topology": "4x8x8", "accelerator": "v4"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hosts": 0}, "placement.hosts=0: allowed is a whole number, 1 or more"),
        ({"hosts": True}, "placement.hosts=True"),
        ({"hosts": 2.0}, "placement.hosts=2.0"),
        ({"resources": {}}, "placement.resources={}"),
        ({"resources": {"CPU": 0}}, "placement.resources.CPU=0: allowed is a number above 0"),
        ({"resources": {"CPU": float("nan")}}, "placement.resources.CPU=nan"),
        ({"resources": "CPU"}, "placement.resources='CPU': allowed is a mapping"),
        ({"kind": "npu"}, "placement.kind='npu': allowed is cpu, gpu or tpu"),
        ({"kind": "gpu"}, "GPU for kind=gpu"),
        ({"topology": "2x2"}, "placement.topology='2x2': allowed is nothing for kind=cpu"),
        ({"slices": 2, "hosts": 2}, "placement.slices=2: allowed is 1 for kind=cpu"),
        ({**TPU, "topology": "4x"}, "placement.topology='4x'"),
        ({**TPU, "topology": None}, "placement.topology=None"),
        ({**TPU, "accelerator": None}, "placement.accelerator=None"),
        ({**TPU, "hosts": 3, "slices": 2}, "placement.hosts=3: allowed is a multiple of slices=2"),
        ({"env": {"A B": "1"}}, "placement.env='A B'"),
        ({"env": {"A": 1}}, "placement.env.A=1: allowed is a text"),
        ({"env": {"MEGASCALE_NUM_SLICES": "2"}}, "the gang sets them"),
        ({"env": {"RAY_AUTH_TOKEN": "x"}}, "the gang sets them"),
        ({"options": {"keep": [1]}}, "placement.options.keep=[1]"),
        ({"wait_seconds": -1}, "placement.wait_seconds=-1"),
        ({"mesh": ""}, "placement.mesh=''"),
    ],
)
def test_what_is_wrong_is_named_with_its_value_and_what_is_allowed(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        Placement(**wrong)
    assert message in str(error.value)


def test_placements_are_values() -> None:
    env = {"A": "1"}
    placement = Placement(hosts=2, env=env)
    env["A"] = "2"
    assert placement.env == {"A": "1"}
    assert pickle.loads(pickle.dumps(placement)) == placement
    assert placement.request() == "CPU: 2 x 1"
    assert Placement(hosts=64, **TPU).request() == "TPU: 64 x 4"


GPU = Placement(hosts=2, kind="gpu", resources={"GPU": 4, "CPU": 8})


@pytest.mark.parametrize(
    ("placement", "nodes", "lack"),
    [
        (Placement(hosts=2), [{"CPU": 2.0}], None),
        (Placement(hosts=3), [{"CPU": 2.0}], "room for 2 of 3 hosts (in all) of CPU 1"),
        (Placement(hosts=3, resources={"CPU": 0.1}), [{"CPU": 0.3}], None),
        (Placement(), [], "no node has CPU 1 (the largest has 0)"),
        (GPU, [{"GPU": 8, "CPU": 64}], "room for 1 of 2 hosts (one per node)"),
        (GPU, [{"GPU": 4, "CPU": 8}, {"GPU": 8, "CPU": 64}], None),
        (GPU, [{"GPU": 8, "CPU": 4}, {"CPU": 64}], "room for 0 of 2 hosts"),
        (
            Placement(resources={"memory": 2**34}),
            [{"memory": 2**33}],
            "no node has memory 16 GiB (the largest has 8 GiB)",
        ),
    ],
)
def test_a_shortage_names_the_resource(placement: Placement, nodes: list[dict[str, float]], lack: str | None) -> None:
    found = shortage(placement, nodes)
    assert found == lack if lack is None else lack in (found or "")
