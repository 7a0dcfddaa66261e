"""The promises of a gang, with real processes under a real Ray: together, judged as one, and nothing left behind."""

from __future__ import annotations

import os
import signal
import textwrap
import threading
import time

import psutil
import pytest
import ray

from actors.gang import Gang
from actors.gang_run import GangView
from infra.errors import UserError
from infra.placement import Placement
from tests.actors.conftest import Stand, gone

SLEEP_FOR_EVER = "time.sleep(600)\n"
IGNORE_TERM = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
LEAVE_PID = "leave(f'pid{rank}', os.getpid())\n"


def pids(stand: Stand, *names: str) -> list[int]:
    return [int(stand.read(name)) for name in names]


def test_a_gang_that_finishes_is_done_and_may_run_again_on_the_same_hosts(stand: Stand) -> None:
    with stand.gang() as gang:
        first = stand.run(gang, "print('hello from', rank); leave(f'a{rank}', os.environ['RINGWORLD_PARENT_PID'])\n")
        second = stand.run(gang, "leave(f'b{rank}', os.environ['RINGWORLD_PARENT_PID'])\n")
    assert (first.kind, first.codes, first.log_tail) == ("done", (0, 0), "")
    assert second.kind == "done"
    assert [stand.read(f"a{rank}") for rank in (0, 1)] == [stand.read(f"b{rank}") for rank in (0, 1)]
    assert stand.read("logs/trainer-1.log") == "hello from 1\n"
    assert {view.phase for view in stand.views} >= {"starting", "running"}


def test_ranks_are_told_apart_and_share_one_coordinator(stand: Stand) -> None:
    with stand.gang() as gang:
        assert stand.run(gang, "leave(f'argv{rank}', ' '.join(sys.argv[1:]))\n").kind == "done"
    ranks = [stand.read(f"argv{rank}").split() for rank in (0, 1)]
    assert ranks[0][0::2] == ["--coordinator", "--num-processes", "--process-id"]
    assert ranks[0][1] == ranks[1][1]
    assert [rank[3:6:2] for rank in ranks] == [["2", "0"], ["2", "1"]]
    host, port = ranks[0][1].rsplit(":", 1)
    assert host
    assert 20000 <= int(port) < 32768


def test_a_gang_of_one_gets_no_coordinator(stand: Stand) -> None:
    with stand.gang(hosts=1) as gang:
        assert stand.run(gang, "leave('argv', len(sys.argv))\n").kind == "done"
    assert stand.read("argv") == "1"


@pytest.mark.parametrize(("code", "kind"), [(64, "user"), (75, "preempted"), (124, "stalled"), (1, "crashed")])
def test_an_exit_code_of_one_rank_decides_for_the_gang(stand: Stand, code: int, kind: str) -> None:
    with stand.gang() as gang:
        ended = stand.run(gang, f"print('reason', rank)\nif rank == 1: sys.exit({code})\n" + SLEEP_FOR_EVER)
    assert (ended.kind, ended.codes[1]) == (kind, code)
    assert f"rank 1 of 2 on {ray.util.get_node_ip_address()} exited with code {code}" in ended.message
    assert ended.log_tail == "reason 1"


def test_one_death_stops_the_others_at_once_with_their_children(stand: Stand) -> None:
    # Rank 0 ignores TERM and has a child that ignores it too, and one that has left its session.
    script = LEAVE_PID + textwrap.dedent(f"""
        if rank == 0:
            {IGNORE_TERM.strip()}
            code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
            leave('child', subprocess.Popen([sys.executable, '-c', code]).pid)
            leave('daemon', subprocess.Popen([sys.executable, '-c', code], start_new_session=True).pid)
            leave('ready', 'yes')
        else:
            while not os.path.exists(f'{{folder}}/ready'): time.sleep(0.01)
            leave('died', time.time())
            os.kill(os.getpid(), signal.SIGKILL)
        """)
    with stand.gang() as gang:
        ended = stand.run(gang, script + SLEEP_FOR_EVER)
        seconds = time.time() - float(stand.read("died"))
        assert gone(pids(stand, "pid0", "pid1", "child", "daemon"), seconds=0.5)
    assert (ended.kind, ended.codes) == ("crashed", (-9, -9))
    assert "rank 1" in ended.message
    assert "SIGKILL" in ended.message
    assert seconds < 5, "3 s of grace, and next to nothing for noticing and sweeping"


def test_children_of_a_trainer_that_finished_are_ended_too(stand: Stand) -> None:
    with stand.gang(hosts=1) as gang:
        script = "leave('child', subprocess.Popen(['sleep', '600'], start_new_session=True).pid)\n"
        assert stand.run(gang, script).kind == "done"
        assert gone(pids(stand, "child"), seconds=0.5)


def test_stop_lets_a_trainer_save(stand: Stand) -> None:
    script = LEAVE_PID + textwrap.dedent("""
        def save(*_):
            time.sleep(1)
            leave(f'saved{rank}', 'yes')
            sys.exit(75)
        signal.signal(signal.SIGTERM, save)
        leave(f'ready{rank}', 'yes')
        """)

    def stop_when_ready(_: GangView) -> None:
        if stand.has("ready0", "ready1"):
            stand.stop.set()

    with stand.gang() as gang:
        ended = stand.run(gang, script + SLEEP_FOR_EVER, on_poll=stop_when_ready)
    assert (ended.kind, ended.codes) == ("preempted", (75, 75))
    assert stand.has("saved0", "saved1")


def test_stop_ends_trainers_that_ignore_it_within_nine_seconds(stand: Stand) -> None:
    asked: list[float] = []

    def stop_when_ready(_: GangView) -> None:
        if stand.has("pid0", "pid1") and not asked:
            asked.append(time.monotonic())
            stand.stop.set()

    with stand.gang() as gang:
        ended = stand.run(gang, IGNORE_TERM + LEAVE_PID + SLEEP_FOR_EVER, on_poll=stop_when_ready)
    assert time.monotonic() - asked[0] < 9
    assert (ended.kind, ended.codes) == ("preempted", (-9, -9))
    assert gone(pids(stand, "pid0", "pid1"), seconds=0.5)


def test_a_killed_host_takes_its_trainer_along_and_condemns_the_gang(stand: Stand) -> None:
    # This trainer does not look after its parent, and its child is out of reach of any group: the warden must do it.
    script = textwrap.dedent(f"""
        {IGNORE_TERM.strip()}
        leave(f'child{{rank}}', subprocess.Popen(['sleep', '600'], start_new_session=True).pid)
        leave(f'host{{rank}}', os.environ['RINGWORLD_PARENT_PID'])
        """)
    killed: list[float] = []

    def kill_host_1(_: GangView) -> None:
        if stand.has("pid0", "pid1") and not killed:
            killed.append(time.monotonic())
            os.kill(int(stand.read("host1")), signal.SIGKILL)

    with stand.gang() as gang:
        ended = stand.run(gang, script + "print('up')\n" + LEAVE_PID + SLEEP_FOR_EVER, on_poll=kill_host_1)
        assert time.monotonic() - killed[0] < 6
        assert gone(pids(stand, "pid0", "pid1", "child0", "child1"), seconds=1)
        assert (ended.kind, ended.codes[1], ended.log_tail) == ("crashed", None, "up")
        assert "rank 1" in ended.message
        assert "lost its host" in ended.message
        assert stand.run(gang, "pass\n").kind == "done", "a gang that lost a host builds itself anew"


def test_a_trainer_that_watches_its_parent_leaves_by_itself(stand: Stand) -> None:
    script = LEAVE_PID + textwrap.dedent("""
        parent = int(os.environ['RINGWORLD_PARENT_PID'])
        assert parent == os.getppid()
        leave('host', parent)
        """)

    def kill_host(_: GangView) -> None:
        if stand.has("host"):
            os.kill(int(stand.read("host")), signal.SIGKILL)
            (stand.folder / "host").unlink()

    with stand.gang(hosts=1) as gang:
        ended = stand.run(gang, script + "while os.getppid() == parent: time.sleep(0.05)\n", on_poll=kill_host)
        assert gone(pids(stand, "pid0"), seconds=1)
    assert ended.kind == "crashed"


@pytest.mark.parametrize("after", [0, 3], ids=["from its first moment", "later"])
def test_a_frozen_trainer_is_found_by_its_heartbeat(stand: Stand, after: int) -> None:
    script = textwrap.dedent(f"""
        beats = 0
        while True:
            beats += 1
            if rank == 1 and beats > {after}:
                os.kill(os.getpid(), signal.SIGSTOP)
            os.utime(os.environ['RINGWORLD_HEARTBEAT'])
            time.sleep(0.1)
        """)
    with stand.gang() as gang:
        ended = stand.run(gang, script, stall_seconds=1.5)
    assert (ended.kind, ended.codes[1]) == ("stalled", -9)
    assert "rank 1" in ended.message
    assert "no sign of life" in ended.message


def test_leaving_the_block_leaves_nothing_behind(stand: Stand) -> None:
    class LeaseLost(Exception):
        pass

    def lose_the_lease(_: GangView) -> None:
        if stand.has("pid0", "pid1"):
            assert len(_wardens(stand)) == 2
            raise LeaseLost

    script = (
        "leave(f'host{rank}', os.environ['RINGWORLD_PARENT_PID'])\n"
        "leave(f'token{rank}', os.environ['RINGWORLD_HOST_TOKEN'])\n"
    )
    script += LEAVE_PID + SLEEP_FOR_EVER
    with pytest.raises(LeaseLost), stand.gang() as gang:
        stand.run(gang, script, on_poll=lose_the_lease)
    assert gone(pids(stand, "pid0", "pid1", "host0", "host1"))
    assert gone(_wardens(stand))
    table = ray.util.placement_group_table()
    assert {group["state"] for group in table.values()} <= {"REMOVED"}
    deadline = time.monotonic() + 5
    while ray.available_resources().get("CPU") != 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert ray.available_resources().get("CPU") == 2


def _wardens(stand: Stand) -> list[int]:
    tokens = {stand.read("token0"), stand.read("token1")}
    return [p.pid for p in psutil.process_iter(["cmdline"]) if tokens & set(p.info["cmdline"] or [])]


def test_busy_machines_are_awaited_and_stop_ends_the_wait(stand: Stand) -> None:
    with stand.gang() as first, stand.gang() as second:
        assert stand.run(first, "pass\n").kind == "done"
        began = time.monotonic()
        threading.Timer(1.5, stand.stop.set).start()
        stand.views.clear()
        ended = stand.run(second, "pass\n")
    assert (ended.kind, ended.codes) == ("preempted", ())
    assert time.monotonic() - began < 4
    assert stand.views[0].note == "waiting for CPU: 2 x 1"


@pytest.mark.parametrize(
    ("placement", "lack"),
    [
        (Placement(hosts=3, wait_seconds=0), "room for 2 of 3 hosts"),
        (Placement(hosts=1, kind="gpu", resources={"GPU": 8}, wait_seconds=1), "no node has GPU 8 (the largest has 0)"),
        (
            Placement(4, {"TPU": 4}, "tpu", topology="2x2x4", accelerator="v4", wait_seconds=0),
            "no node has TPU 4 (the largest has 0)",
        ),
    ],
)
def test_what_can_never_fit_is_refused_by_the_resource_it_lacks(stand: Stand, placement: Placement, lack: str) -> None:
    began = time.monotonic()
    with Gang(placement, "text-8k") as gang, pytest.raises(UserError, match="text-8k needs") as error:
        gang.run(["-c", "pass"], log_dir=str(stand.folder), stop=threading.Event())
    assert lack in str(error.value)
    assert time.monotonic() - began < 4


def test_the_trainer_sees_no_secret_and_no_stale_variable(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    token = os.environ["RAY_AUTH_TOKEN"]
    placement = Placement(hosts=1, env={"JAX_COMPILATION_CACHE_DIR": "/cache"})
    with Gang(placement, "test") as gang:
        stand.run(gang, "leave('environ', '\\n'.join(f'{k}={v}' for k, v in os.environ.items()))\n")
    environ = dict(line.split("=", 1) for line in stand.read("environ").splitlines() if "=" in line)
    assert token not in stand.read("environ")
    assert not [name for name in environ if name.startswith(("RAY_", "MEGASCALE_", "TPU_", "XLA_", "OMP_"))]
    assert environ["JAX_PLATFORMS"] == "cpu"
    assert environ["JAX_COMPILATION_CACHE_DIR"] == "/cache"


def test_a_log_that_cannot_be_written_fails_the_gang_with_the_reason(stand: Stand) -> None:
    (stand.folder / "logs").write_text("a file where the folder should be")
    with stand.gang() as gang:
        ended = stand.run(gang, "pass\n")
    assert ended.kind == "crashed"
    assert "could not start its trainer" in ended.message


def test_two_ranks_pass_data_around_a_ring_with_jax(stand: Stand) -> None:
    script = textwrap.dedent("""
        import jax, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec as P
        coordinator = sys.argv[sys.argv.index('--coordinator') + 1]
        jax.distributed.initialize(coordinator, 2, rank)
        mesh = jax.make_mesh((2,), ('ring',))
        x = jax.make_array_from_callback((2,), NamedSharding(mesh, P('ring')), lambda i: np.arange(2.0)[i])
        hop = lambda v: jax.lax.ppermute(v, 'ring', [(0, 1), (1, 0)])
        y = jax.jit(jax.shard_map(hop, mesh=mesh, in_specs=P('ring'), out_specs=P('ring')))(x)
        leave(f'got{rank}', float(y.addressable_shards[0].data[0]))
        jax.distributed.shutdown()
        """)
    with stand.gang() as gang:
        ended = stand.run(gang, script)
    assert ended.kind == "done", ended.log_tail
    assert [stand.read(f"got{rank}") for rank in (0, 1)] == ["1.0", "0.0"]
