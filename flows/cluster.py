"""From a cluster's name to the workers that stages fan out over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

from distributed import Client, LocalCluster

from storage.checkpoints import device
from storage.errors import InputError
from storage.settings import settings
from tasks.fanout import Workers

CONNECT_SECONDS = 20


@contextmanager
def open_workers(name: str, parts: int) -> Iterator[Workers]:
    """Workers of the cluster `name`; `auto` is a local cluster for a corpus of several parts, else this process."""
    if name == "auto":
        name = "local" if parts > 1 else "none"
    if name == "none":
        yield Workers()
        return
    with ExitStack() as stack:

        @cache
        def client() -> Client:
            return stack.enter_context(_local_client() if name == "local" else _remote_client(name))

        if name != "local":
            yield _remote_workers(client())
        else:
            # One process at a time drives a GPU, so a local cluster leaves the model to the flow's own process.
            yield Workers(client, None if device().type == "cuda" else client)


@contextmanager
def _local_client() -> Iterator[Client]:
    # Loopback only; a dashboard on a free port, because the usual one is taken when two runs share a machine.
    with (
        LocalCluster(
            n_workers=settings().workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=False,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def _remote_client(address: str) -> Iterator[Client]:
    if "://" not in address:
        raise InputError(
            f"cluster {address!r}",
            expected="auto, local, none or an address such as tcp://host:8786",
            found="something else",
            remedy="Correct --cluster or --scheduler.",
        )
    try:
        with Client(address, timeout=CONNECT_SECONDS) as client:
            yield client
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(
            f"Dask scheduler {address}",
            expected=f"an answer within {CONNECT_SECONDS} s",
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            remedy="Start it: dask scheduler, and workers: dask worker ADDRESS --nthreads 1",
        ) from error


def _remote_workers(client: Client) -> Workers:
    workers = client.scheduler_info(n_workers=-1)["workers"]
    for address, worker in workers.items():
        if worker["nthreads"] > 1:  # its jobs would share one model, and see one another's passes through its hooks
            raise InputError(
                f"Dask worker {address}",
                expected="one thread",
                found=f"{worker['nthreads']}",
                remedy="Start workers with --nthreads 1, and more of them with --nworkers.",
            )
    # Without a worker that has the resource, Dask would wait for ever; so it is asked for only where it is.
    has_gpu = any(worker.get("resources", {}).get("GPU") for worker in workers.values())
    return Workers(lambda: client, lambda: client, (("GPU", 1.0),) if has_gpu else ())
