"""Settings as a user types them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def setting_flags(settings: Mapping[str, Any]) -> list[str]:
    """`--set KEY=VALUE` for each."""
    return [word for key, value in settings.items() for word in ("--set", f"{key}={setting_text(value)}")]


def setting_text(value: Any) -> str:
    """A setting's value as it is written after `--set KEY=`."""
    return value if isinstance(value, str) else json.dumps(value)
