"""The same promises on gs://: conditional writes reach the server as conditions, and a whole run lives in a bucket."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import fsspec.config
import fsspec.core
import pytest

from infra import manifest as manifests
from infra.errors import UserError
from infra.lease import acquire
from infra.runner import run
from infra.stage import Result, StageContext
from infra.storage import Store
from tests.infra.gcs import Cloud, serve
from tests.infra.tiny import Number, stage


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[Cloud, str]]:
    # One address for all tests here: both clients keep what they have connected to.
    cloud = Cloud()
    with serve(cloud) as url:
        yield cloud, url


@pytest.fixture
def cloud(address: tuple[Cloud, str], monkeypatch: pytest.MonkeyPatch) -> Cloud:
    cloud, url = address
    for name, value in {
        "STORAGE_EMULATOR_HOST": url,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    cloud.objects.clear()
    cloud.writes.clear()
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
