"""The benchmark of vision runs on small sizes, its sides compute the same, and its table tells what it found."""

from __future__ import annotations

import importlib.util
import json

import pytest

from benchmarks.vision import measure, table

PEER = all(importlib.util.find_spec(name) for name in ("torch", "diffusers"))


def test_it_measures_films_and_where_it_is_installed_the_peer() -> None:
    found = json.loads(json.dumps(measure(quick=True, runs=1, batch=2, peer=PEER)))
    memory = found["films"]["memory"]
    assert {name: row["frames"] for name, row in memory.items()} == {"1": 1, "3": 3}
    assert memory["3"]["peak_mib"] == pytest.approx(memory["1"]["peak_mib"], rel=0.1)
    waiting = found["films"]["waiting"]
    assert waiting["frames"] == 8
    assert 0 < waiting["decoder_utilisation"] <= 1
    assert found["films"]["decoded_frames_per_cpu_second"] > 10
    if PEER:
        assert found["speed"]["codes_equal"] == 1
        assert found["speed"]["pixels_apart"] <= 1
        assert found["speed"]["codes_used"] > 4


def test_the_table_is_of_ratios_to_the_faster_peer() -> None:
    times = {name: {"seconds": s, "cpu_seconds": 2 * s} for name, s in (("ours", 0.5), ("peer", 1.0))}
    film = {"frames": 9, "peak_mib": 700.2, "decoder_utilisation": 0.125, "encoder_waited": 0.01, "seconds": 8.0}
    text = table(
        {
            "speed": {
                "parameters": 2_500_000, "batch": 2, "threads": 2, "encode": times, "decode": times,
                "codes_equal": 1.0, "codes_used": 99, "pixels_apart": 1,
            },
            "films": {"memory": {"10": film}, "decoded_frames_per_cpu_second": 123.4, "waiting": film},
        }
    )  # fmt: skip
    assert "| encode, images/s | 2.00 (1.00) | 1.00 (0.50) | 2.00 (2.00) |" in text
    assert "10 s | 9 | 700" in text
    assert "decoder busy 12.5% of its time, encoder waited 1.0% of 8.0 s" in text
