"""Facts for the screen that a command comes upon several times and says once."""

from __future__ import annotations

import logging
from collections.abc import Callable

logger = logging.getLogger(__name__)

Say = Callable[[str], object]
"""Tells the user a fact."""


class SaidOnce:
    """Logs each text the first time that it is said. A command that trains several folds has one of them."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.info("%s", text)
