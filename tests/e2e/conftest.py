"""A running system, shared by the tests of this folder, and pages rendered by Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2e.systems import ROOT, System, running_system


@pytest.fixture(scope="package")
def system(tmp_path_factory, gpt2) -> Iterator[System]:
    """A running system, whose watched folder has been taken in."""
    with running_system(tmp_path_factory.mktemp("system"), gpt2) as system:
        yield system


@pytest.fixture
def page() -> Callable[[str, str], str]:
    """Render a page in Chromium, keep the picture under build/screenshots, return the text of the rendered DOM."""
    chromium = Path("/usr/bin/chromium")
    if not chromium.exists():
        pytest.skip("needs Chromium at /usr/bin/chromium (Debian: apt install chromium)")
    folder = ROOT / "build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)

    def render(url: str, name: str, *more: str) -> str:
        def chrome(*wanted: str) -> str:
            profile = folder / f".profile-{os.getpid()}-{time.time_ns()}"
            flags = [
                "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
                "--disable-background-networking", "--disable-component-update", "--window-size=1500,1500",
                "--virtual-time-budget=15000", f"--user-data-dir={profile}",
            ]  # fmt: skip
            try:
                return subprocess.run(
                    [str(chromium), *flags, *wanted, url], capture_output=True, text=True, timeout=120, check=True
                ).stdout
            finally:
                shutil.rmtree(profile, ignore_errors=True)

        chrome(f"--screenshot={folder / name}.png")
        return chrome("--dump-dom")

    return render
