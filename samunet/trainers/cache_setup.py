"""Deciding on the embedding cache of a run, building it, and the samples that come from it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samunet.errors import SamunetError
from samunet.networks.sam.weights import tensors_sha256
from samunet.networks.sam_slices import ENCODER_PREFIX, SamSliceNetwork
from samunet.planning.sam_config import USUAL_VIEWS, SamHeadConfig
from samunet.planning.sam_options import ENCODE_BATCH
from samunet.preprocessing.embedding_build import (
    BuildOptions,
    Unit,
    ViewSource,
    build_cache,
    bytes_per_item,
    missing_units,
)
from samunet.preprocessing.embeddings import CacheIdentity, EmbeddingCache
from samunet.preprocessing.encoding_time import time_encoding
from samunet.preprocessing.store import CaseStore
from samunet.records import to_data
from samunet.trainers.augmentation import AugmentationSettings
from samunet.trainers.batches import PatchSource
from samunet.trainers.cached import EmbeddingSource
from samunet.trainers.generalizing import parts_of
from samunet.trainers.identity import CacheUse
from samunet.trainers.reporter import duration
from samunet.trainers.run import RunRequest, TrainingRun
from samunet.whole_files import room_bytes

logger = logging.getLogger(__name__)

CACHE_SEED = 20230613
"""Seed of the augmented views; one for all runs, so that folds and seeds share a cache."""
BUDGET_SHARE = 0.5
"""Part of a time budget that building the cache may take."""
MORE_VIEWS_SHARE = 0.2
"""The same for views beyond the usual ones."""
NEARLY = 0.85
"""Of what a budget allows; that much is as good as all of it, and all of it may be exceeded by as much."""
GOLDEN_SECTION = 0.618
"""Multiples of it, less their whole part, lie far apart, however many there are."""
LEAST_VIEWS = 2
TIMED_BATCHES = 3


def prepare_cache(
    request: RunRequest, run: TrainingRun, earlier: CacheUse | None, started: float
) -> CacheUse:
    """Build what is missing of the run's cache and take its samples from there, or say why not.

    Args:
        request: limits and folders.
        run: network and cases; its source is replaced when the cache is used.
        earlier: what a run to be continued did, which is repeated.
        started: time.monotonic() at which the time budget began.

    Raises:
        SamunetError: the cache of a run to be continued does not fit on the disk any more, or a method says
            that it can be cached and is of another kind.
    """
    if not run.trainer.cacheable(run.config):
        return CacheUse(mode="none")
    if not (isinstance(run.config, SamHeadConfig) and isinstance(run.module.network, SamSliceNetwork)):
        raise SamunetError(
            f"{run.method.name} says that its encoder's outputs can be cached, but only heads on "
            "SamSliceNetwork with settings of SamHeadConfig can be. Let cacheable() of its trainer return "
            "False."
        )
    if earlier is not None and earlier.mode != "cached":
        return earlier
    if request.embedding_folder is None:
        return CacheUse(mode="on the fly", reason="there is no folder for the cache")
    assert isinstance(run.source, PatchSource)
    run.module.to(run.device).eval()
    setup = _Setup(request, run, run.source)
    wanted = setup.wanted(started) if earlier is None else setup.repeated(earlier)
    needed, limit = setup.needed_gb(wanted), setup.limit_gb()
    if needed > limit:
        reason = f"the embedding cache needs {needed:.1f} GB, {limit:.1f} GB may be used"
        if earlier is not None:
            raise SamunetError(f"This run was trained from a cache, and {reason}. Make room to continue it.")
        run.reporter.message(
            f"Encoding on the fly: {reason}. Fewer views need less (--set views=N), and so does a compact "
            "cache (--set cache_storage=int8 or pca:N)."
        )
        return CacheUse(mode="on the fly", reason=reason)
    if wanted.units:
        setup.build(wanted, needed)
    if parts_of(run.config.augmentation):
        run.reporter.message(
            f"augmentation={run.config.augmentation}: each slice is encoded plain and in {wanted.views - 1} "
            "augmented view(s), and every step draws one of these. More of them: --set views=N; a new draw "
            "in every step: --set cache=false."
        )
    wanted.cache.pin(setup.per_case(wanted.views))
    run.source = EmbeddingSource(wanted.cache, run.source.settings, wanted.views)
    items = wanted.cache.identity.items_per_case
    return CacheUse(mode="cached", views=wanted.views, items_per_case=items)


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    cache: EmbeddingCache
    units: list[Unit]
    views: int


class _Setup:
    """The steps of `prepare_cache`."""

    def __init__(self, request: RunRequest, run: TrainingRun, source: PatchSource) -> None:
        assert isinstance(run.config, SamHeadConfig)
        assert request.embedding_folder is not None
        self.run, self.source, self.config = run, source, run.config
        self.folder, self.request = request.embedding_folder, request
        self.store = CaseStore(request.case_folder)
        self.network: Any = run.module.network
        encoder = {k: v for k, v in self.network.state_dict().items() if k.startswith(ENCODER_PREFIX)}
        self.encoder_sha256 = tensors_sha256(encoder)

    def cache(self, items_per_case: int | None) -> EmbeddingCache:
        configuration, plan = self.run.configuration, self.run.plan
        augmentation = self.source.settings.augmentation
        identity = CacheIdentity(
            encoder_sha256=self.encoder_sha256,
            variant=configuration.encoder or "",
            input_size=configuration.input_size or 0,
            patch_size=tuple(configuration.patch_size),
            slice_context=self.config.slice_context,
            channel_map=self.config.channel_map,
            paper_compat=self.config.as_published,
            with_image=self.network.head.uses_image,
            blocks=self.network.head.blocks,
            display_window=plan.data_of(configuration).display_window,
            augmentation=_recorded(augmentation),
            seed=CACHE_SEED,
            items_per_case=items_per_case,
            data_hash=plan.data_hash(configuration.data),
            storage=self.config.cache_storage,
            precision=self.run.precision.name,
        )
        return EmbeddingCache(self.folder(identity.signature), identity)

    def wanted(self, started: float) -> _Wanted:
        """All slices in all views; fewer where a time budget does not reach."""
        views = 1 if self.config.augmentation == "none" else self.config.views
        cache = self.cache(None)
        units = missing_units(cache, self.store, self.per_case(views))
        minutes = self.run.time_budget_minutes
        if minutes is None or not units:
            return _Wanted(cache=cache, units=units, views=views)
        left = 60 * minutes - (time.monotonic() - started)
        return self.reduced(cache, units, views, left / self.seconds_per_item(units))

    def repeated(self, earlier: CacheUse) -> _Wanted:
        """What an earlier run decided on."""
        cache = self.cache(earlier.items_per_case)
        units = missing_units(cache, self.store, self.per_case(earlier.views))
        return _Wanted(cache=cache, units=units, views=earlier.views)

    def reduced(self, cache: EmbeddingCache, units: list[Unit], views: int, in_budget: float) -> _Wanted:
        """Fewer views, then fewer slices of each case, so that building takes its share of the budget.

        Args:
            in_budget: items that could be encoded in the whole of it.
        """
        wanted = views
        while views > LEAST_VIEWS and _count(units) > _budget_share(views) * in_budget:
            views -= 1
            units = missing_units(cache, self.store, self.per_case(views))
        affordable = int(_budget_share(views) * in_budget)
        if _count(units) > affordable:
            cache, units = self.shortened(affordable, views)
            self.run.reporter.message(
                f"The time budget allows {affordable} encoded slices: the cache holds {views} "
                f"view{'s' * (views > 1)} of up to {cache.identity.items_per_case} slices of each case."
            )
        elif views < wanted:
            self.run.reporter.message(f"The time budget allows {views} views a slice in the cache.")
        return _Wanted(cache=cache, units=units, views=views)

    def shortened(self, affordable: int, views: int) -> tuple[EmbeddingCache, list[Unit]]:
        """A cache of as many slices a case as can be encoded, and what it lacks; about as many will do.

        No two timings are the same, and another number is another cache: folds would share nothing, and a
        build that was interrupted would begin anew. So one of nearly that number is gone on with.
        """
        wanted = self.per_case(views)
        each = affordable / sum(wanted.values())
        near = [known for known in self.cache(None).shortened_beside() if known + 1 > NEARLY * each]
        for known in reversed(near):
            cache = self.cache(known)
            units = missing_units(cache, self.store, wanted)
            if NEARLY * _count(units) <= affordable:
                return cache, units
        cache = self.cache(max(1, int(each)))
        return cache, missing_units(cache, self.store, wanted)

    def per_case(self, views: int) -> dict[str, int]:
        """Views wanted of every case: validation cases need the plain slices alone."""
        settings = self.source.settings
        return {**dict.fromkeys(settings.val, 1), **dict.fromkeys(settings.train, views)}

    def needed_gb(self, wanted: _Wanted) -> float:
        if not wanted.units:
            return 0.0
        channels = len(self.run.plan.channel_names) * (2 * self.config.slice_context + 1)
        patch = self.run.configuration.patch_size
        per_item = bytes_per_item(self.network, channels, patch, self.run.device, self.config.cache_storage)
        return _count(wanted.units) * per_item / 1e9

    def limit_gb(self) -> float:
        """What the cache may take of what is free on the disk."""
        return room_bytes(self.cache(None).folder) / 1e9

    def view_source(self) -> ViewSource:
        augmentation = self.source.settings.augmentation
        return ViewSource(
            case_folder=Path(self.request.case_folder),
            patch_size=tuple(augmentation.patch_size),
            load_size=tuple(augmentation.initial_size),
            slice_context=self.config.slice_context,
            seed=CACHE_SEED,
            augment=self.source.augment,
            finish=self.source.finish,
        )

    def options(self) -> BuildOptions:
        run, labels = self.run, self.run.plan.labels
        return BuildOptions(
            batch_size=min(ENCODE_BATCH, run.batch_size),
            workers=run.workers,
            device=run.device,
            autocast=lambda: run.precision.autocast(run.device),
            regions=labels.has_regions,
            ignore_index=labels.ignore_index,
            num_foreground=len(labels.foreground),
            fit_cases=frozenset(self.source.settings.train),
        )

    def seconds_per_item(self, units: list[Unit]) -> float:
        """Measured on the first few batches, which are not kept."""
        kind = self.config.cache_storage
        timed = time_encoding(self.network, self.view_source(), units, self.options(), kind, TIMED_BATCHES)
        return max(timed, 1e-6)

    def build(self, wanted: _Wanted, needed: float) -> None:
        cache, reporter = wanted.cache, self.run.reporter
        other = cache.closest_other()
        if other is not None and not cache.folder.exists():
            reporter.message(f"Another embedding cache cannot be used: {other}.")
        reporter.message(
            f"Building the embedding cache: {_count(wanted.units)} slices, {needed:.2f} GB in {cache.folder}"
        )
        started = time.monotonic()

        def progress(done: int, total: int) -> None:
            elapsed = time.monotonic() - started
            left = duration(elapsed / done * (total - done))
            reporter.status(f"embedding cache  {done}/{total} slices  {done / elapsed:.1f}/s  {left} left")

        units = _begun_elsewhere(wanted.units, self.run.fold)
        build_cache(cache, self.network, self.view_source(), units, self.options(), progress)
        reporter.message(f"Embedding cache built in {duration(time.monotonic() - started)}.")
        errors = cache.mean_errors([(unit.case, unit.view) for unit in wanted.units])
        if errors:
            told = ", ".join(f"{name} {error:.2%}" for name, error in errors.items())
            reporter.message(f"Relative error of {self.config.cache_storage}: {told}.")


def _recorded(augmentation: AugmentationSettings) -> dict[str, Any]:
    """What a cache knows of its views' augmentation.

    Of single slices as earlier commits wrote it, so that their caches are found. Neighbouring slices, which
    these changed one by one, are in a cache of another name, which is built anew.
    """
    data = dict(to_data(augmentation))
    if not augmentation.slice_context:
        del data["slice_context"]
    return data


def _begun_elsewhere(units: list[Unit], fold: int | str) -> list[Unit]:
    """The units from another place on for each fold, and round.

    Folds that are started side by side leave out what another one has finished: in one order all of them
    would encode everything at the same time.
    """
    start = 0 if fold == "all" else int(len(units) * (int(fold) * GOLDEN_SECTION % 1))
    return [*units[start:], *units[:start]]


def _budget_share(views: int) -> float:
    return BUDGET_SHARE if views <= USUAL_VIEWS else MORE_VIEWS_SHARE


def _count(units: list[Unit]) -> int:
    return sum(len(unit.items) for unit in units)
