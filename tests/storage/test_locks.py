"""Locks between real processes: exclusive, freed when the holder is killed, and honest about who holds them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
from upath import UPath

from storage.errors import StoreError
from storage.locks import lock_path, locked
from storage.store import Store, create_store

HOLD = """
import sys, storage
from storage.locks import locked
from storage.store import open_store
with locked(open_store(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path):
    return create_store(tmp_path / "s")


@pytest.fixture
def other_process(store):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.root), "corpus"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_held_lock_is_refused_after_the_timeout_and_names_its_holder(store, other_process):
    said = rf"lock corpus of .*held by process {other_process.pid} on .* since 20"
    with pytest.raises(StoreError, match=said), locked(store, "corpus", timeout=0.1):
        pass
    with locked(store, "compact", timeout=0.1):  # another name is another lock
        pass


def test_a_killed_holder_frees_the_lock_at_once(store, other_process):
    os.kill(other_process.pid, signal.SIGKILL)
    other_process.wait()
    with locked(store, "corpus", timeout=0.5):
        pass


def test_a_wait_is_told_in_the_log(store, other_process, monkeypatch, caplog):
    monkeypatch.setattr("storage.locks.PATIENCE", 0.05)
    threading.Timer(0.5, other_process.kill).start()
    with locked(store, "corpus"):
        assert f"held by process {other_process.pid} on " in caplog.text


def test_threads_of_one_process_exclude_one_another(store):
    inside, most = [], []

    def work():
        with locked(store, "clock"):
            inside.append(1)
            most.append(len(inside))
            threading.Event().wait(0.01)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_a_store_in_an_object_store_is_locked_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("storage.locks.scratch", lambda *names: tmp_path.joinpath(*names))
    one, other = (Store(UPath(f"memory://bucket/{name}")) for name in ("one", "other"))
    with locked(one, "corpus"):
        with locked(other, "corpus", timeout=0.1):
            pass
        with (
            pytest.raises(StoreError, match="held by process"),
            locked(Store(UPath("memory://bucket/one")), "corpus", 0.1),
        ):
            pass
    assert lock_path(one, "corpus").is_relative_to(tmp_path)


def test_a_lock_is_no_path(store):
    from storage.errors import InputError

    with pytest.raises(InputError), locked(store, "../corpus"):
        pass
