"""Which pixels of a picture belong to which object, objects within objects included."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

UNKNOWN = -1
"""Number of a part for pixels that nobody has annotated."""


@dataclass(frozen=True, eq=False)
class Scene:
    """Objects of one picture.

    Attributes:
        labels: (H, W) int16, number of the part that is visible in each pixel; 0 belongs to nothing, UNKNOWN
            may belong to anything.
        parents: (N,) by part, the part that it lies in; 0 for none. A part's number is above its parent's.
        usable: (N,) by part, whether it is an object to be asked for; never true for part 0.
    """

    labels: np.ndarray
    parents: np.ndarray
    usable: np.ndarray

    def __post_init__(self) -> None:
        assert (self.parents < np.maximum(np.arange(len(self.parents)), 1)).all()
        self.usable[0] = False

    @property
    def count(self) -> int:
        """Objects that can be asked for."""
        return int(self.usable.sum())

    def mask(self, part: int, *, whole: bool = True) -> np.ndarray:
        """Pixels (H, W) of an object.

        Args:
            part: its number.
            whole: with everything that lies in it; else only what is visible of it (a wall, not its cavity).
        """
        if not whole:
            return self.labels == part
        belongs = np.zeros(len(self.parents) + 1, bool)  # the last is where UNKNOWN looks
        belongs[part] = True
        for number in range(part + 1, len(self.parents)):
            belongs[number] |= belongs[self.parents[number]]
        return belongs[self.labels]
