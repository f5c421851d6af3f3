"""No dependency of headwater reports home unless the user asks for it."""

import os

SILENT = {
    "DO_NOT_TRACK": "1",  # Prefect client, Hugging Face hub
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "false",
    "WANDB_MODE": "disabled",
}


def silence() -> None:
    """Set every opt-out that the user has not set; must run before the libraries are imported."""
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
