"""Licences of a pretraining's images that the user declares where dataset.json does not."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from samunet.errors import SamunetError
from samunet.preprocessing.slices import NOT_DECLARED, Cutting
from samunet.workspace import Workspace

logger = logging.getLogger(__name__)

MARK = "(declared with --licence)"


def declared_licences(
    workspace: Workspace, given: Sequence[tuple[str, str]], cuttings: Iterable[Cutting]
) -> dict[str, str]:
    """Licence by source, as the card says it; a source that dataset.json declares otherwise is warned of.

    Args:
        workspace: knows datasets by id.
        given: dataset or folder of images as the user wrote it, and the licence of its images.
        cuttings: the sources.

    Raises:
        SamunetError: something else than a source of this pretraining, or a source twice.
    """
    sources = {cutting.source: cutting for cutting in cuttings}
    declared: dict[str, str] = {}
    for word, licence in given:
        source = _source(workspace, word, sources)
        if source is None:
            raise SamunetError(
                f"--licence {word}={licence}: {word} is no source of this pretraining. Its sources of images "
                f"are {', '.join(sources) or 'none (give -d or --images)'}; generated pictures have their "
                "own licence."
            )
        if source in declared:
            raise SamunetError(f"--licence names {source} twice; keep one.")
        said = sources[source].licence
        if not said.startswith(NOT_DECLARED) and said != licence:
            logger.warning("%s: --licence %s goes before %s of its dataset.json.", source, licence, said)
        declared[source] = f"{licence} {MARK}"
    return declared


def _source(workspace: Workspace, word: str, sources: Mapping[str, Cutting]) -> str | None:
    """The source that a word means: a folder of --images as it was given, or a dataset by id or name."""
    for source in sources:
        if word == source or Path(word) == Path(source):
            return source
    try:
        name = workspace.dataset_name(word)
    except SamunetError:
        return None
    return name if name in sources else None
