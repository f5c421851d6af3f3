"""The recipe for a cluster: its files parse, name what exists, listen on loopback, and its commands really run."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import psutil
import pytest
import yaml
from distributed import Client

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "deployments" / "cluster"
BIN = Path(sys.executable).parent
SRUN = """#!/bin/bash
# A stand-in on one machine: drops srun's own options and runs the command.
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""


@pytest.fixture(scope="module")
def services() -> dict:
    return yaml.safe_load((RECIPE / "compose.yaml").read_text())["services"]


def expanded(command: str | list[str], **values: str) -> list[str]:
    """A service's command as Compose hands it over: ${NAME:-default} filled in, $$ a dollar sign."""

    def fill(text: str) -> str:
        text = re.sub(r"(?<!\$)\$\{(\w+):-([^}]*)\}", lambda m: values.get(m[1], m[2]), text)
        return text.replace("$$", "$")

    return shlex.split(fill(command)) if isinstance(command, str) else [fill(word) for word in command]


def test_every_service_is_reached_at_the_host_s_addresses_and_listens_on_loopback_unless_told_otherwise(services):
    assert {service["network_mode"] for service in services.values()} == {"host"}
    assert [service for service in services.values() if "ports" in service] == []
    for name in ("server", "scheduler", "cpu-worker"):
        command = expanded(services[name]["command"])
        assert command[command.index("--host") + 1] == "127.0.0.1", name
    assert expanded(services["gpu-worker"]["environment"]["DASK_HOST"]) == ["127.0.0.1"]
    away = {"DASK_HOST": "10.0.0.2", "DASK_SCHEDULER": "tcp://10.0.0.1:8786"}
    worker = expanded(services["cpu-worker"]["command"], **away)
    assert worker[:5] == ["dask", "worker", "tcp://10.0.0.1:8786", "--host", "10.0.0.2"]


def test_every_dask_command_that_we_write_down_says_where_its_pages_are():
    """Without it Dask opens them to every network, with --no-dashboard too."""
    files = [RECIPE / "compose.yaml", RECIPE / "headwater.sbatch", ROOT / "README.md", ROOT / "flows" / "cluster.py"]
    found = []
    for file in files:
        text = re.sub(r"\\\n", " ", file.read_text(encoding="utf-8"))
        text = re.sub(r"(dask worker [^\n]*)\n *(--nthreads)", r"\1 \2", text)
        found += [(file.name, line) for line in text.splitlines() if re.search(r"dask (scheduler|worker) \S", line)]
    assert len(found) >= 11
    assert [pair for pair in found if "--dashboard-address 127.0.0.1:" not in pair[1]] == []


def test_the_image_has_the_server_s_directory_before_a_volume_is_mounted_over_it(services):
    """A volume takes the owner of what it covers."""
    lines = (RECIPE / "Dockerfile").read_text().splitlines()
    (where,) = [volume.split(":")[1] for volume in services["server"]["volumes"] if volume.startswith("prefect:")]
    assert lines.index(f"RUN mkdir {where}") > lines.index("USER headwater")


def test_every_command_of_the_services_exists(services):
    for name, service in services.items():
        program = service.get("entrypoint") or expanded(service["command"])[0]
        assert program == "sh" or (BIN / program).exists(), name


def test_the_image_copies_every_package_and_nothing_that_is_not_there():
    lines = (RECIPE / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
    allowed = [line[1:] for line in (RECIPE / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    assert sorted(copied) == sorted(allowed)
    assert [name for name in copied if not (ROOT / name).exists()] == []
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert {name.rstrip("*") for name in packages["include"]} <= set(copied)


@pytest.mark.e2e
def test_the_services_commands_make_a_cluster_of_both_kinds_of_workers(services, tmp_path):
    where = "tcp://127.0.0.1:8786"
    scheduler = expanded(services["scheduler"]["command"])
    scheduler[scheduler.index("8786")], scheduler[scheduler.index("127.0.0.1:8787")] = "0", "127.0.0.1:0"
    file = tmp_path / "scheduler.json"
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "GPUS": "0 1"}
    started = []

    def start(command: list[str], **more: str) -> None:
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment | more, start_new_session=True))

    try:
        start([*scheduler, "--scheduler-file", str(file)])
        while not file.exists() or not file.read_text().strip():
            time.sleep(0.1)
        where = json.loads(file.read_text())["address"]
        start(expanded(services["cpu-worker"]["command"], DASK_SCHEDULER=where, CPU_WORKERS="1"))
        start(expanded(services["gpu-worker"]["command"]), DASK_SCHEDULER=where, DASK_HOST="127.0.0.1")
        with Client(where, timeout=60) as client:
            client.wait_for_workers(3, timeout=120)
            workers = client.scheduler_info(n_workers=-1)["workers"].values()
            devices = client.run(lambda: os.environ.get("CUDA_VISIBLE_DEVICES"))
        family = [psutil.Process(process.pid) for process in started]
        family += [child for process in family for child in process.children(recursive=True)]
        listening = [c.laddr.ip for p in family for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
        assert len(listening) >= 4
        assert set(listening) == {"127.0.0.1"}
        assert sorted(worker["resources"].get("GPU", 0) for worker in workers) == [0, 1, 1]
        assert {worker["nthreads"] for worker in workers} == {1}
        assert set(devices.values()) == {None, "0", "1"}
    finally:
        for process in reversed(started):
            os.killpg(process.pid, 15)
        for process in started:
            process.wait(timeout=30)


@pytest.mark.e2e
def test_the_slurm_script_starts_its_cluster_runs_the_command_on_it_and_leaves_nothing(tmp_path):
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    for name, text in {
        "srun": SRUN,
        "headwater": '#!/bin/bash\necho "$@" > said\npython -c "import sys, distributed as d; '
        "print(sorted(w['resources'].get('GPU', 0) for w in d.Client(sys.argv[1])."
        'scheduler_info()[\'workers\'].values()))" "${@: -1}" > workers\n',
    }.items():
        path = stand_ins / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    environment = {
        **os.environ, "PATH": f"{stand_ins}:{BIN}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "CPU_WORKERS": "1",
        "DASK_HOST": "127.0.0.1",
    }  # fmt: skip
    script = RECIPE / "headwater.sbatch"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    done = subprocess.run(
        ["bash", str(script), "trace", "--store", "a store"], cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = (tmp_path / "said").read_text()
    assert re.fullmatch(r"trace --store a store --scheduler tcp://127\.0\.0\.1:\d+\n", said)
    assert (tmp_path / "workers").read_text().strip() == "[0, 1.0]"
    with pytest.raises(OSError, match="Timed out"):
        Client(said.split()[-1], timeout=2)
