"""What slices for pretraining will take on the disk, as far as the headers of the files tell."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from samunet.data.cases import Case
from samunet.data.readers import file_kind, read_header
from samunet.preprocessing.slices import MOST_FRAMES, Cutting, cases_to_cut
from samunet.whole_files import check_room, shown_bytes

logger = logging.getLogger(__name__)

MOST_HEADERS = 100
"""Cases whose headers are read, evenly spread over a source; the others are taken to be like them."""
COLOURS = 3
LABEL_BYTES = 2


def check_slice_room(cuttings: Mapping[Path, Cutting]) -> None:
    """Say what is about to be cut, and refuse it where the disk has not the room; nothing is written.

    Args:
        cuttings: what is wanted, by the folder of its slices; complete folders are not counted.

    Raises:
        SamunetError: too little room, or a file whose header cannot be read; says what is needed and free.
    """
    needed = 0
    for folder, cutting in cuttings.items():
        cases = cases_to_cut(cutting, folder)
        if not cases:
            continue
        size = expected_bytes(cases, framed=cutting.framed)
        kept = len(cutting.cases) - len(cases)
        logger.info(
            "%s: %d cases are cut into slices, at most about %s, in %s%s",
            cutting.source,
            len(cases),
            shown_bytes(size),
            folder,
            f" ({kept} were cut before)" if kept else "",
        )
        needed += size
    if needed:
        advice = "Free some space, leave out a source, or set another --workspace."
        check_room(next(iter(cuttings)).parent, needed, "The slices need up to", advice)


def expected_bytes(cases: Sequence[Case], *, framed: bool) -> int:
    """Bytes of the slices of cases, at most: constant slices are dropped when they are cut."""
    chosen = cases[:: -(-len(cases) // MOST_HEADERS)]
    return round(sum(_case_bytes(case, framed) for case in chosen) * len(cases) / len(chosen))


def _case_bytes(case: Case, framed: bool) -> int:
    headers = [read_header(path) for path in case.images]
    channels = sum(header.num_channels for header in headers)
    kept = 1 if channels == 1 else COLOURS
    if framed and file_kind(case.images[0]) == "volume":
        kept = min(channels, MOST_FRAMES)
    return math.prod(headers[0].geometry.shape) * (kept + LABEL_BYTES * (case.label is not None))
