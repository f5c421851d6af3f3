"""Environment variables that must stand before the libraries load: opt-outs, and how idle threads wait."""

import os

DEFAULTS = {
    # No dependency reports home unless the user asks for it.
    "DO_NOT_TRACK": "1",  # Prefect client, Hugging Face hub
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "false",
    "WANDB_MODE": "disabled",
    "DASK_LOGGING__DISTRIBUTED": "error",  # a cluster that comes and goes with a run is no news
    # GNU OpenMP's idle threads spin. When anything else wants a core they take the time of those that work:
    # on two cores beside one busy process, a training step of a small GPT-2 took .35 s spinning, .15 s waiting.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def prepare() -> None:
    """Set every default that the user has not set."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
