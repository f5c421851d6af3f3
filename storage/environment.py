"""Environment variables that must stand before the libraries load: opt-outs, and how idle threads wait."""

import ctypes
import os

DEFAULTS = {
    # No dependency reports home unless the user asks for it.
    "DO_NOT_TRACK": "1",  # Prefect client, Hugging Face hub
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # Without PREFECT_API_URL Prefect starts a server for the run and gives it 20 s, which a busy machine may not keep.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "false",
    "WANDB_MODE": "disabled",
    "DASK_LOGGING__DISTRIBUTED": "error",  # a cluster that comes and goes with a run is no news
    # GNU OpenMP's idle threads spin. When anything else wants a core they take the time of those that work:
    # on two cores beside one busy process, a training step of a small GPT-2 took .35 s spinning, .15 s waiting.
    "OMP_WAIT_POLICY": "PASSIVE",
}


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST, KEPT = 1 << 25, 1 << 30  # bytes: of one kept block, of all kept together


def prepare() -> None:
    """Set every default that the user has not set."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Let glibc keep what a pass of the model frees for the next one; false where the C library has no mallopt.

    A pass allocates and frees the same large blocks over and over. Given back to the system each time, their
    pages are faulted in anew: a fifth of a small model's training time was spent so.
    """
    library = ctypes.CDLL(None) if os.name == "posix" else None
    mallopt = getattr(library, "mallopt", None)
    return bool(mallopt and mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, KEPT))
