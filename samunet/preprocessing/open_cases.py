"""Stored cases that are read for hours: they have to stay what they were when the reading began."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from samunet.data.open_files import most_open
from samunet.errors import SamunetError
from samunet.listing import listed
from samunet.preprocessing.store import MEMBERS, RUN_AGAIN, CaseEntry, CaseStore, StoredCase

OPEN_CASES = 64
"""Stored cases a process keeps open at most."""
SHARE_OF_FILES = 0.25
"""Of the files that a process may open; there may be cases without labels besides."""


class OpenCases:
    """The most recently used stored cases, opened once; opens its own in every process.

    Args:
        folder: stored cases.
        data_hash: of the data configuration that they have to be made by.
    """

    def __init__(self, folder: Path, data_hash: str) -> None:
        self.folder = folder
        self.data_hash = data_hash
        self._pinned: dict[str, str] = {}
        self._open: OrderedDict[str, StoredCase] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def pin(self, names: Iterable[str]) -> None:
        """See that these cases are made by the plan; from now on `get` refuses them made anew from others.

        Raises:
            SamunetError: they are absent or made by another plan.
        """
        store = CaseStore(self.folder)
        entries = {name: store.open(name).entry for name in names}
        foreign = [name for name, entry in entries.items() if not entry.may_be_of(self.data_hash)]
        if foreign:
            raise SamunetError(
                f"{len(foreign)} of {len(entries)} cases in {self.folder} were made by another plan "
                f"({listed(foreign)}). {RUN_AGAIN}"
            )
        self._pinned.update({name: entry.made_from for name, entry in entries.items()})

    def get(self, name: str) -> StoredCase:
        """The stored case of that name.

        Raises:
            SamunetError: it was made anew by another plan, or from other files than when it was pinned.
        """
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        case = CaseStore(self.folder).open_whole(name)
        self._check(name, case.entry)
        self._open[name] = case
        if len(self._open) > most_open(OPEN_CASES, SHARE_OF_FILES, len(MEMBERS)):
            self._open.popitem(last=False)
        return case

    def _check(self, name: str, entry: CaseEntry) -> None:
        if not entry.may_be_of(self.data_hash):
            raise made_anew(f"The preprocessed case {name} in {self.folder}", "by another plan")
        if entry.made_from != self._pinned.get(name, entry.made_from):
            raise made_anew(f"The preprocessed case {name} in {self.folder}", "from other files")


def made_anew(what: str, how: str) -> SamunetError:
    """The refusal to go on with data that changed while they were being read.

    Args:
        what: was made anew, and where it lies.
        how: by or from what.
    """
    return SamunetError(
        f"{what} was made anew {how} since this training began; going on would mix the two in one model. "
        "Train again (--overwrite). To keep two preprocessings beside each other, plan the second one under "
        "a name of its own (-p NAME)."
    )
