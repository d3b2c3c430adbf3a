"""Facts for the screen that a command comes upon several times and says once."""

from __future__ import annotations

import logging
from typing import Protocol

logger = logging.getLogger(__name__)


class Say(Protocol):
    """Tells the user a fact, at one of logging's levels."""

    def __call__(self, text: str, level: int = logging.INFO) -> object: ...


class SaidOnce:
    """Logs each text the first time that it is said. A command that trains several folds has one of them."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, text: str, level: int = logging.INFO) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.log(level, "%s", text)
