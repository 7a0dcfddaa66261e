"""The same promises on gs://: conditional writes reach the server as conditions, and a whole run lives in a bucket."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec.config
import fsspec.core
import pytest

from infra import manifest as manifests
from infra.errors import UserError
from infra.lease import acquire
from infra.outline import Outline, Outlined, write_outline
from infra.runner import run
from infra.stage import Result, StageContext
from infra.status import read_status
from infra.storage import Store
from ringworld.data.files import list_files, list_folder, read_bytes, size_of, write_bytes
from tests.infra.gcs import serve, variables
from tests.infra.gcs_objects import PAGE, Cloud
from tests.infra.tiny import Number, stage


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cloud, str]]:
    # One address for all tests here: both clients keep what they have connected to.
    cloud = Cloud(tmp_path_factory.mktemp("cloud"))
    with serve(cloud) as url:
        yield cloud, url


@pytest.fixture
def cloud(address: tuple[Cloud, str], monkeypatch: pytest.MonkeyPatch) -> Cloud:
    cloud, url = address
    for name, value in variables(url).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    cloud.clear()
    return cloud


@pytest.fixture
def store(cloud: Cloud) -> Store:
    return Store("gs://bucket/runs", "tiny")


def put_bytes(context: StageContext, recipe: Number) -> Result:
    filesystem, path = fsspec.core.url_to_fs(f"{context.attempt_dir}/deep/out.bin")
    with filesystem.open(path, "wb") as file:
        file.write(bytes(recipe.value))
    return Result(("deep/out.bin",))


def test_exclusive_create_and_compare_and_swap_are_conditions_at_the_server(store: Store, cloud: Cloud):
    first = store.create("k", b"1")
    assert first is not None
    assert store.create("k", b"2") is None
    second = store.replace("k", b"3", first)
    assert second is not None
    assert store.replace("k", b"4", first) is None
    found = store.read("k")
    assert found is not None
    assert (found.data, found.version) == (b"3", second)
    assert [status for _, _, status in cloud.writes] == [200, 200, 412]
    conditions = [match for _, match, _ in cloud.writes]
    assert conditions[0] == "0", "an exclusive create demands that there is no generation"
    assert conditions[1] == conditions[2] not in (None, "0")


def test_a_write_whose_answer_is_lost_is_known_to_be_ours_and_that_of_another_is_not(store: Store, cloud: Cloud):
    cloud.coming[:] = ["", "lost"]  # it is read whether there is one, then written
    version = store.create("k", b"ours")
    assert [status for _, _, status in cloud.writes] == [200, 412], "written, and tried again"
    assert version is not None
    cloud.coming[:] = ["503", "429", "retry-after", "reset"]
    later = store.replace("k", b"later", version)
    assert later is not None
    cloud.coming[:] = ["lost"]
    assert store.replace("k", b"too late", version) is None
    found = store.read("k")
    assert found is not None
    assert found.data == b"later"


@pytest.mark.parametrize(("status", "remedy"), [("401", "credentials"), ("403", "role"), ("404", "bucket")])
def test_storage_that_refuses_is_an_error_that_says_what_to_do(store: Store, cloud: Cloud, status: str, remedy: str):
    cloud.coming[:] = ["", status]
    with pytest.raises(UserError, match=rf"gs://bucket/runs/tiny/k.*{status}.*{remedy}"):
        store.create("k", b"1")


def test_what_was_answered_is_there_when_the_server_comes_back(store: Store, cloud: Cloud, tmp_path: Path):
    kept = Cloud(tmp_path)
    kept.put("bucket/a/b", b"1", None)
    kept.put("bucket/a/b", b"22", "1001")
    upload = kept.begin_upload("bucket/c", None)
    assert kept.upload(upload, b"abc", "bytes 0-2/*")[0] == 308
    again = Cloud(tmp_path)
    found = again.read("bucket/a/b")
    assert found is not None
    assert (found[0].generation, found[1]) == (1002, b"22")
    assert again.upload(upload, b"cd", "bytes 2-3/4")[0] == 200, "a chunk that was sent twice counts once"
    assert again.read("bucket/c", "bytes=-2") == (again.objects["bucket/c"], b"cd", 2)


def test_a_long_listing_comes_in_pages_and_a_large_file_in_chunks(store: Store, cloud: Cloud):
    for number in range(PAGE + 5):
        cloud.put(f"bucket/many/{number:04d}/x", b"1", None)
    assert len(list_files("gs://bucket/many")) == PAGE + 5
    assert list_folder("gs://bucket/many")[-1] == f"{PAGE + 4:04d}"
    data = bytes(range(256)) * (11 * 2**12)  # 11 MiB
    write_bytes("gs://bucket/large", data)
    assert read_bytes("gs://bucket/large") == data
    assert (size_of("gs://bucket/large"), size_of("gs://bucket/none")) == (len(data), None)


def test_a_folder_is_moved_file_by_file(cloud: Cloud):
    for name in ("a", "b/c"):
        write_bytes(f"gs://bucket/checkpoints/8/{name}", name.encode())
    filesystem, root = fsspec.core.url_to_fs("gs://bucket/checkpoints")
    filesystem.mv(f"{root}/8", f"{root}/damaged/8", recursive=True)
    assert list_files("gs://bucket/checkpoints") == ["damaged/8/a", "damaged/8/b/c"]
    assert read_bytes("gs://bucket/checkpoints/damaged/8/b/c") == b"b/c"


def test_of_many_creators_in_the_cloud_one_wins(store: Store):
    barrier, won = threading.Barrier(6), []

    def contend(number: int) -> None:
        barrier.wait()
        if store.create("k", str(number).encode()) is not None:
            won.append(number)

    threads = [threading.Thread(target=contend, args=[number]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = store.read("k")
    assert found is not None
    assert [str(number).encode() for number in won] == [found.data]


def test_a_run_in_a_bucket_is_made_reused_and_forced(store: Store, cloud: Cloud):
    graph = [stage("b", 5, put_bytes, source=stage("a", 3, put_bytes))]
    assert run(graph, store).ok
    assert run(graph, store).ok
    assert store.attempts("b") == (1,)
    outcome = run(graph, store, force="b")
    assert outcome.ok
    assert outcome.artifacts["b"].path("deep/out.bin") == "gs://bucket/runs/tiny/b/attempt-2/deep/out.bin"
    found = manifests.load(store, "b")
    assert found is not None
    assert [(entry.path, entry.bytes) for entry in found[0].files] == [("deep/out.bin", 5)]
    assert found[0].series == 2
    assert store.series("b") == ((1, graph[0].fingerprint), (2, graph[0].fingerprint))
    assert store.files(store.attempt_url("b", 9)) == {}


def test_a_run_in_a_bucket_has_one_driver(store: Store):
    with acquire(store) as lease:
        with pytest.raises(UserError, match="one driver per run"):
            run([stage("a", 1, put_bytes)], store)
        lease.fence()
    assert run([stage("a", 1, put_bytes)], store).ok


def test_a_run_in_a_bucket_is_seen_from_anywhere(store: Store):
    """What status reads lies in folders and files that a bucket lists like a disk does."""
    write_outline(store, Outline("tiny", "tiny", "", 1.0, (Outlined("text", "train", "ab", steps=10, step_flops=1.0),)))
    series = store.claim_series("text", "ab")
    store.claim_attempt("text", {"series": series, "started": 1.0, "token": 1})
    step = {"step": 4, "tokens": 40, "loss": 2.0, "seconds": 1.0, "time": 9.0, "tokens_per_second": 10.0}
    write_bytes(f"{store.state_url('text', series)}/progress.jsonl", json.dumps(step).encode())
    gang = {"asked": 1.0, "granted": 3.0, "started": 3.0, "ended": 9.0, "kind": "crashed", "attempt": 1}
    write_bytes(f"{store.state_url('text', series)}/gangs/0001.json", json.dumps(gang).encode())
    write_bytes(f"{store.state_url('text', series)}/checkpoints/4/state/data", b"1")
    store.write_text("crashed: rank 0 lost its host: it died\n\nlast line\n", "text", "attempt-1", "error.txt")
    (found,) = read_status(store, 20.0).stages
    assert (found.state, found.step, found.checkpoint, found.checkpoint_age) == ("failed", 4, 4, 11.0)
    assert found.goodput is not None
    assert (found.goodput.productive, found.goodput.lost["waiting"]) == (1.0, 2.0)
    assert found.failures[0].tail == "last line"
