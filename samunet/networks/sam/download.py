"""Fetching official weights: resumable, checked by SHA-256, complete or absent. No torch."""

from __future__ import annotations

import http.client
import logging
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from samunet.errors import SamunetError
from samunet.networks.sam.variants import VARIANTS, OfficialFile, get_variant
from samunet.networks.sam.weight_files import file_sha256
from samunet.progress import Progress

logger = logging.getLogger(__name__)


SCHEMES = ("https", "http", "ftp", "file")
_BLOCK = 1 << 20
_TIMEOUT_SECONDS = 30
_RANGE_BEYOND_END = 416


def download_weights(
    variant: str, folder: Path, *, url: str | None = None, progress: Progress | None = None
) -> Path:
    """Fetch the official weights of an encoder into a folder; a broken download is continued.

    Args:
        variant: `vit_b`, `vit_l` or `vit_h`.
        folder: made if absent.
        url: a mirror of the file; the hash is checked all the same.
        progress: told how far it is.

    Returns:
        path of the checked file.

    Raises:
        SamunetError: no such file is published, a mirror that is no URL, no network, too little disk, or not
            the official content.
    """
    official = _official_file(variant)
    target = Path(folder) / official.name
    source = official.url if url is None else _checked_url(url)
    if target.exists():
        if file_sha256(target) == official.sha256:
            logger.info("%s is already there and is the official file.", target)
            return target
        raise SamunetError(
            f"{target} exists but is not the official file (another SHA-256). Move it away and try again."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    _check_disk(partial, official)
    try:
        _fetch(source, partial, official, progress or (lambda done, total: None))
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise SamunetError(_offline_instructions(error, source, target, official)) from error
    _check_content(partial, official, source)
    os.replace(partial, target)
    return target


def _official_file(variant: str) -> OfficialFile:
    official = get_variant(variant).official
    if official is None:
        published = ", ".join(name for name, other in VARIANTS.items() if other.official)
        raise SamunetError(
            f"There are no published weights of {variant}; it is trained along. Published: {published}."
        )
    return official


def _checked_url(url: str) -> str:
    try:
        scheme = urllib.parse.urlsplit(url).scheme
    except ValueError:
        scheme = ""
    if scheme in SCHEMES:
        return url
    raise SamunetError(
        f"--url {url} is no URL: write https://..., or for a file on this machine "
        f"{Path(url).absolute().as_uri()}."
    )


def _check_disk(partial: Path, official: OfficialFile) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    free = shutil.disk_usage(partial.parent).free
    if free < official.size - have:
        raise SamunetError(
            f"{official.name} needs {official.size / 1e9:.2f} GB, {partial.parent} has {free / 1e9:.2f} GB. "
            "Choose another folder or free some space."
        )


def _fetch(source: str, partial: Path, official: OfficialFile, progress: Progress) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(source, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if have and error.code == _RANGE_BEYOND_END:
            return  # everything is there already; the hash decides
        raise
    with response:
        continued = response.status == http.client.PARTIAL_CONTENT
        if have and not continued:
            logger.info("The server does not continue downloads; starting again.")
        have = have if continued else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else official.size
        with open(partial, "ab" if continued else "wb") as file:
            while block := response.read(_BLOCK):
                file.write(block)
                have += len(block)
                progress(have, total)
        if length and have < total:
            raise ConnectionError(f"the connection ended after {have:,} of {total:,} bytes")


def _check_content(partial: Path, official: OfficialFile, source: str) -> None:
    found = file_sha256(partial)
    if found == official.sha256:
        return
    size = partial.stat().st_size
    partial.unlink()
    raise SamunetError(
        f"What {source} sent is not the official {official.name}: {size:,} bytes with SHA-256 {found} "
        f"instead of {official.sha256}. It was deleted; try again, from another network if a proxy answers."
    )


def _offline_instructions(error: Exception, source: str, target: Path, official: OfficialFile) -> str:
    reason = getattr(error, "reason", None) or error
    return (
        f"{official.name} could not be fetched: {reason}.\n"
        f"What arrived is kept; the same command continues. Without a network, on a machine that has one:\n"
        f"  1. download {source} ({official.size / 1e9:.2f} GB, licence {official.licence})\n"
        f"  2. check that its SHA-256 is {official.sha256}\n"
        f"  3. copy it to {target}"
    )
