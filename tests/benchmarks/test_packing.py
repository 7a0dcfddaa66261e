"""The benchmark's peers do what their names say, on sizes checked by hand."""

import numpy as np

from benchmarks.packing import first_fit_decreasing, lengths_of, peers, plan, rests


def test_first_fit_decreasing_is_the_textbooks():
    random = np.random.default_rng(0)
    for _ in range(50):
        sizes = random.integers(1, 20, 60)
        rooms: list[int] = []
        for size in sorted(sizes.tolist(), reverse=True):
            row = next((row for row, room in enumerate(rooms) if room >= size), len(rooms))
            if row == len(rooms):
                rooms.append(20)
            rooms[row] -= size
        assert first_fit_decreasing(sizes, 20)[0] == len(rooms)


def test_rests_are_what_long_documents_leave_and_short_ones_whole():
    assert rests(np.array([5, 9, 17, 18]), 8).tolist() == [4, 1]


def test_a_plan_and_its_peers_are_of_the_same_corpus():
    made, peer = plan("web-like", 3000), peers("web-like", 3000)
    assert made["tokens"] == lengths_of("web-like", 3000).sum()
    assert made["cut_that_fit"] == 0
    assert made["fill"] == peer["best_fit_fill"] >= peer["first_fit_fill"] > 0.99
    assert 0.05 < peer["naive_cut_that_fit"] < 0.4
