"""NIfTI files whose axes are not quite at right angles, as rounding and registrations leave them.

SimpleITK refuses them, and nnU-Net goes on with nibabel. Here they get the nearest right-angled grid, as long
as that is where the file has it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from samunet.errors import SamunetError

PERMISSIVE = "ITK_NIFTI_SFORM_PERMISSIVE"
"""Variable by which ITK takes the nearest right-angled axes."""
MOST_VOXELS = 0.5
"""Distance between a corner of that grid and the file's, in its finest voxels."""
LPS = np.array([-1.0, -1.0, 1.0])
"""NIfTI's axes point right, anterior, superior; SimpleITK's first two the other way."""

_lock = threading.Lock()


def is_shear(error: RuntimeError) -> bool:
    """Whether SimpleITK has refused a file for its axes."""
    return "orthonormal" in str(error)


@contextmanager
def permissive() -> Iterator[None]:
    """Have SimpleITK read such files, without its remarks on each."""
    with _lock:
        loud = sitk.ProcessObject.GetGlobalWarningDisplay()
        before = os.environ.get(PERMISSIVE)
        os.environ[PERMISSIVE] = "1"
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        try:
            yield
        finally:
            sitk.ProcessObject.SetGlobalWarningDisplay(loud)
            if before is None:
                del os.environ[PERMISSIVE]
            else:
                os.environ[PERMISSIVE] = before


def check_shear(path: Path, reader: Any) -> None:
    """Refuse a file whose grid is not nearly that of a reader that was permissive.

    Raises:
        SamunetError: a corner lies elsewhere, or the file does not say where; says how far.
    """
    remedy = "Resample it to a right-angled grid, or correct the sform/qform of its header."
    try:
        rows = [[float(n) for n in reader.GetMetaData(f"srow_{axis}").split()] for axis in "xyz"]
    except RuntimeError as error:
        raise SamunetError(f"{path} has a sheared direction matrix. {remedy}") from error
    stated = np.array(rows) * LPS[:, None]
    used = min(3, reader.GetDimension())
    spacing = np.array(reader.GetSpacing()[:used])
    direction = np.array(reader.GetDirection()).reshape([reader.GetDimension()] * 2)[:used, :used]
    corners = np.array(list(product(*((0, n - 1) for n in reader.GetSize()[:used]))), np.float64)
    taken = corners @ (direction * spacing).T + np.array(reader.GetOrigin()[:used])
    given = corners @ stated[:used, :used].T + stated[:used, 3]
    apart = float(np.linalg.norm(taken - given, axis=1).max())
    if not apart <= MOST_VOXELS * spacing.min():
        raise SamunetError(
            f"{path} has a sheared direction matrix: a right-angled grid has a corner {apart:.2g} mm beside "
            f"the file's. {remedy}"
        )
