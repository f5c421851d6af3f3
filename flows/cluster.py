"""From a cluster's name to the workers that stages fan out over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

from distributed import Client, LocalCluster, Status, Worker, WorkerPlugin

from storage.checkpoints import device
from storage.digests import numerics
from storage.errors import InputError, MismatchError
from storage.settings import settings
from tasks.compute import processor
from tasks.fanout import Workers

CONNECT_SECONDS = 20
CPU = "headwater-cpu"  # resource of workers without a GPU, one job at a time
# Dask opens pages for every address of the machine, also without a dashboard, unless it is told where.
SCHEDULER = "dask scheduler --host 127.0.0.1 --dashboard-address 127.0.0.1:0"
WORKER = "dask worker ADDRESS --host 127.0.0.1 --nthreads 1 --dashboard-address 127.0.0.1:0"


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
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(
            f"Dask scheduler {address}",
            expected=f"an answer within {CONNECT_SECONDS} s",
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            remedy=f"Start it: {SCHEDULER}, and workers: {WORKER}",
        ) from error
    with client:
        yield client


def _remote_workers(client: Client) -> Workers:
    workers = client.scheduler_info(n_workers=-1)["workers"]
    if not workers:
        raise InputError(
            f"Dask scheduler {client.scheduler.address}",
            expected="workers",
            found="none",
            remedy=f"Start some: {WORKER}",
        )
    for address, worker in workers.items():
        if worker["nthreads"] > 1:  # its jobs would share one model, and see one another's passes through its hooks
            raise InputError(
                f"Dask worker {address}",
                expected="one thread",
                found=f"{worker['nthreads']}",
                remedy="Start workers with --nthreads 1, and more of them with --nworkers.",
            )
    _require_same_code(client)
    # Without a worker that has the resource, Dask would wait for ever; so it is asked for only where it is.
    gpus = {address for address, worker in workers.items() if worker.get("resources", {}).get("GPU")}
    if gpus and gpus != set(workers):
        client.register_plugin(OfferCpu())
    lexical = ((CPU, 1.0),) if gpus and gpus != set(workers) else ()
    processors = client.run(processor, workers=sorted(gpus or workers))
    return Workers(lambda: client, lambda: client, lexical, (("GPU", 1.0),) if gpus else (), processors)


class OfferCpu(WorkerPlugin):
    """Gives each worker without a GPU a resource, which keeps work for CPUs off the others.

    A worker that Dask starts in place of one that died is given it too; a list of addresses would not know it.
    """

    name = "headwater-cpu"

    async def setup(self, worker: Worker) -> None:
        """Called on every worker, present and future."""
        if not worker.state.total_resources.get("GPU"):
            await worker.set_resources(**{CPU: 1.0})
            # Dask offers waiting jobs to a worker that starts or resumes, not to one that gains a resource.
            worker.status = Status.paused
            worker.status = Status.running


def _require_same_code(client: Client) -> None:
    """Workers that compute with other code would give tables that no single version gives."""
    try:
        found = client.run(numerics)
    except ImportError as error:
        raise InputError(
            "Dask workers",
            expected="headwater, as it is here",
            found=str(error),
            remedy="Install it where they run, or start them from the same image.",
        ) from error
    for address, theirs in found.items():
        for name, ours in numerics().items():
            if theirs[name] != ours:
                raise MismatchError(
                    f"Dask worker {address}",
                    expected=f"{name} {ours}, as here",
                    found=theirs[name],
                    remedy="Install the same headwater there and start the worker again.",
                )
