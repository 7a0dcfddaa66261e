"""progress.jsonl: every step once, whatever died while writing it."""

import dataclasses

import pytest

from ringworld.train.progress import ProgressLog, Record, read_progress


def record(step, loss=1 / 3):
    return Record(step, step * 10, loss, 0.5, 1e-3, 0.1, 100.0, 0.2, 0.0)


def test_a_resumed_log_forgets_what_no_checkpoint_holds(tmp_path):
    path = tmp_path / "progress.jsonl"
    log = ProgressLog(path, 0)
    for step in range(1, 6):
        log.append(record(step))
    log = ProgressLog(path, 3)
    log.append(record(4, loss=2.0))
    assert [item.step for item in read_progress(path)] == [1, 2, 3, 4]
    assert read_progress(path)[-1].loss == 2.0


def test_a_line_cut_short_by_a_crash_is_dropped_and_a_broken_one_elsewhere_is_not(tmp_path):
    path = tmp_path / "progress.jsonl"
    ProgressLog(path, 0).append(record(1))
    whole = path.read_text()
    path.write_text(whole + whole[:20])
    assert [item.step for item in read_progress(path)] == [1]
    path.write_text(whole[:20] + "\n" + whole)
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        read_progress(path)


def test_a_loss_keeps_every_digit(tmp_path):
    loss = 7.643028736114502
    ProgressLog(tmp_path / "p", 0).append(record(1, loss))
    assert read_progress(tmp_path / "p")[0] == dataclasses.replace(record(1), loss=loss)
