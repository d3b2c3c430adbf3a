"""Batches made ahead by worker processes."""

from __future__ import annotations

import pytest
import torch

from samunet.errors import SamunetError
from samunet.preprocessing.streams import BatchStream, Sample


class Source:
    """Twice its key; key 3 is a mistake of the user's."""

    def sample(self, key: int) -> Sample:
        if key == 3:
            raise SamunetError("Case 3 is cut off. Preprocess it again.")
        return {"value": torch.tensor([2.0 * key])}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_met_by_a_worker_is_told_without_its_traceback(workers: int) -> None:
    stream = BatchStream(Source(), iter([[0, 1], [2, 3]]), workers, torch.device("cpu"))
    try:
        assert next(stream)["value"].tolist() == [[0.0], [2.0]]
        with pytest.raises(SamunetError, match=r"^Case 3 is cut off\. Preprocess it again\.$"):
            next(stream)
    finally:
        stream.close()
