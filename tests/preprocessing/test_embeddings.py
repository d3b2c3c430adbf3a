from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import CLASSES, NAMES, PATCH_2D, REGIONS, SHAPE, write_cases
from torch import Tensor, nn

from samunet.data.labels import LabelSet
from samunet.errors import SamunetError
from samunet.networks.features import Features
from samunet.preprocessing import embeddings
from samunet.preprocessing.embedding_build import (
    MEASURED_EVERY,
    BuildOptions,
    ItemKey,
    ViewSource,
    build_cache,
    bytes_per_item,
    cached_features,
    missing_units,
)
from samunet.preprocessing.embeddings import CacheIdentity, EmbeddingCache, case_items, view_seed
from samunet.preprocessing.store import CaseStore
from samunet.trainers.augmentation import Augmentation, AugmentationSettings

IDENTITY = CacheIdentity(
    encoder_sha256="a" * 64,
    variant="vit_micro",
    input_size=64,
    patch_size=PATCH_2D,
    slice_context=0,
    channel_map="fixed",
    paper_compat=False,
    with_image=True,
    display_window=((-2.0, 2.0),),
    augmentation={"preset": "full"},
    seed=1,
    items_per_case=None,
    data_hash="d",
)
VIEWS = {"case_0": 3, "case_1": 3, "case_3": 1}
Build = Callable[..., int]


class Halving(nn.Module):
    """Stands for a network with an encoder: two levels and a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def encode(self, slices: Tensor) -> Features:
        self.seen += len(slices)
        levels = (slices[:, :, ::2, ::2], slices[:, :1, ::4, ::4])
        return Features(
            levels=levels, output_size=tuple(slices.shape[2:]), image=slices[:, :1].repeat(1, 3, 1, 1)
        )


@pytest.fixture
def store(tmp_path: Path) -> CaseStore:
    return write_cases(tmp_path / "cases")


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path / "embeddings" / IDENTITY.signature, IDENTITY)


def options(regions: bool = False, workers: int = 0) -> BuildOptions:
    return BuildOptions(
        batch_size=5,
        workers=workers,
        device=torch.device("cpu"),
        autocast=nullcontext,
        regions=regions,
        ignore_index=3 if regions else None,
        num_foreground=2,
    )


def source(store: CaseStore, settings: AugmentationSettings | None = None) -> ViewSource:
    settings = settings or AugmentationSettings(patch_size=PATCH_2D, mirror_axes=(0, 1))
    return ViewSource(
        case_folder=store.folder,
        patch_size=PATCH_2D,
        load_size=settings.initial_size,
        slice_context=0,
        seed=IDENTITY.seed,
        augment=Augmentation(settings),
        finish=Augmentation(replace(settings, preset="none")),
    )


def fill(cache: EmbeddingCache, store: CaseStore, views: dict[str, int] = VIEWS, workers: int = 0) -> int:
    """Encode what is missing; returns how many items went through the encoder."""
    network = Halving()
    build_cache(cache, network, source(store), missing_units(cache, store, views), options(workers=workers))
    return network.seen


def test_stored_features_are_the_encoders(cache: EmbeddingCache, store: CaseStore) -> None:
    fill(cache, store)
    views = source(store)
    for view in (0, 2):
        for index, item in enumerate(cache.entry("case_1", view).items):
            expected = views.sample(ItemKey("case_1", view, item))
            features = Halving().encode(expected["image"][None])
            found = cache.read("case_1", view, index)
            assert found.keys() == {"level_0", "level_1", "image_skip", "target"}
            assert torch.equal(found["level_0"], features.levels[0][0].half())
            assert torch.equal(found["target"].short(), expected["target"])
    rebuilt = cached_features({k: v[None] for k, v in found.items()}, PATCH_2D)
    assert rebuilt is not None
    assert rebuilt.output_size == PATCH_2D
    assert rebuilt.levels[1].shape == (1, 1, 4, 4)
    assert rebuilt.image is not None
    assert cached_features({"image": torch.zeros(1)}, PATCH_2D) is None


def test_views_differ_and_follow_from_their_number(
    cache: EmbeddingCache, store: CaseStore, tmp_path: Path
) -> None:
    fill(cache, store)
    assert not torch.equal(cache.read("case_0", 1, 2)["level_0"], cache.read("case_0", 2, 2)["level_0"])
    again = EmbeddingCache(tmp_path / "again", IDENTITY)
    fill(again, store, {"case_0": 3}, workers=2)
    assert torch.equal(cache.read("case_0", 2, 2)["level_0"], again.read("case_0", 2, 2)["level_0"])
    assert view_seed(1, "a", 1, (0, 0, 0)) != view_seed(1, "a", 1, (0, 0, -1))


def test_label_is_transformed_with_the_image(cache: EmbeddingCache, store: CaseStore) -> None:
    """The classes differ in intensity, so image and target of an augmented view must still agree."""
    settings = AugmentationSettings(patch_size=PATCH_2D, mirror_axes=(0, 1), preset="light")
    build_cache(
        cache, Halving(), source(store, settings), missing_units(cache, store, {"case_0": 4}), options()
    )
    for view in range(4):
        image, target = [], []
        for index in range(len(cache.entry("case_0", view).items)):
            sample = cache.read("case_0", view, index)
            image.append(sample["image_skip"][0].float())
            target.append(sample["target"][0])
        images, targets = torch.stack(image), torch.stack(target)
        assert images[targets == 1].mean() > 1.1
        assert images[targets == 2].mean() < -1.1


def test_only_missing_views_are_encoded(cache: EmbeddingCache, store: CaseStore) -> None:
    units = missing_units(cache, store, VIEWS)
    total = sum(len(unit.items) for unit in units)
    assert fill(cache, store) == total
    assert fill(cache, store) == 0
    assert fill(cache, store, {**VIEWS, "case_3": 2}) == len(cache.entry("case_3", 0).items)
    cache.view_file("case_1", 1, "json").unlink()  # an interrupted view
    assert fill(cache, store) == len(cache.entry("case_3", 0).items)


def test_a_changed_case_is_encoded_again(cache: EmbeddingCache, store: CaseStore) -> None:
    fill(cache, store)
    path = store.folder / "case_1.json"
    path.write_text(path.read_text().replace("key 1", "key changed"))
    units = missing_units(cache, store, VIEWS)
    assert {(unit.case, unit.view) for unit in units} == {("case_1", 0), ("case_1", 1), ("case_1", 2)}
    fill(cache, store)
    assert cache.entry("case_1", 2).key == "key changed"


@pytest.mark.parametrize("rebuilt", [False, True])
def test_views_made_anew_from_other_content_are_not_mixed_with_those_before(
    cache: EmbeddingCache, store: CaseStore, monkeypatch: pytest.MonkeyPatch, rebuilt: bool
) -> None:
    """A training reads for hours; meanwhile another one may find changed cases and encode them."""
    monkeypatch.setattr(embeddings, "OPEN_ARRAYS", 1)
    fill(cache, store)
    cache.pin(VIEWS)
    reader = pickle.loads(pickle.dumps(cache))
    reader.read("case_1", 1, 0)
    reader.tables("case_0")
    path = store.folder / "case_1.json"
    path.write_text(path.read_text().replace("key 1", "key changed"))
    if rebuilt:
        fill(EmbeddingCache(cache.folder, IDENTITY), store)
    else:
        EmbeddingCache(cache.folder, IDENTITY).forget_stale("case_1", 1, "key changed")
    told = r"View \d of case case_1 in the embedding cache .* made anew from other content .*Train again"
    with pytest.raises(SamunetError, match=told):
        reader.read("case_1", 1, 0)
    if rebuilt:
        with pytest.raises(SamunetError, match=told):
            reader.tables("case_1")
    reader.read("case_0", 2, 0)


def test_a_case_made_anew_while_the_cache_is_built_is_refused(
    cache: EmbeddingCache, store: CaseStore
) -> None:
    """Else its embeddings would be taken for those of the case before."""
    units = missing_units(cache, store, VIEWS)
    path = store.folder / "case_1.json"
    path.write_text(path.read_text().replace("key 1", "key changed"))
    with pytest.raises(SamunetError, match=r"case_1 in .* was made anew"):
        build_cache(cache, Halving(), source(store), units, options())
    assert not cache.has("case_1", 0, "key 1")


def test_two_processes_may_fill_one_cache(cache: EmbeddingCache, store: CaseStore) -> None:
    """While one encodes a view the other finishes the next one, and is not disturbed."""
    other = EmbeddingCache(cache.folder, IDENTITY)
    network, encode = Halving(), Halving.encode
    finished: dict[Path, int] = {}

    def meanwhile(slices: Tensor) -> Features:
        if not finished:
            fill(other, store, {"case_1": 2})
            finished.update({file: file.stat().st_mtime_ns for file in cache.folder.rglob("v*")})
        return encode(network, slices)

    network.encode = meanwhile  # type: ignore[method-assign]
    build_cache(cache, network, source(store), missing_units(cache, store, VIEWS), options())
    assert finished
    # Batches hold items of several views, so the first ones of case_1 may be on their way already.
    kept = [file for file, time in finished.items() if file.stat().st_mtime_ns == time]
    assert {file.name.split(".")[0] for file in kept} >= {"v1"}
    assert not missing_units(cache, store, VIEWS)
    assert not [file for file in cache.folder.rglob("*") if "partial" in file.name]
    for case, view in (("case_1", 0), ("case_1", 2), ("case_0", 1)):
        expected = source(store).sample(ItemKey(case, view, cache.entry(case, view).items[-1]))
        assert torch.equal(cache.read(case, view, -1)["level_0"], expected["image"][:, ::2, ::2].half())


def test_a_cache_keeps_no_more_files_open_than_a_process_may(
    cache: EmbeddingCache, store: CaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(cache, store)
    monkeypatch.setattr(embeddings, "most_open", lambda wanted, share: 2)
    first = cache.read("case_0", 0, 0)
    cache.read("case_1", 2, 0)
    assert len(cache._arrays) == 2
    for name, value in cache.read("case_0", 0, 0).items():
        assert torch.equal(value, first[name])


def test_an_interrupted_view_is_not_there(cache: EmbeddingCache, store: CaseStore) -> None:
    network, encode = Halving(), Halving.encode

    def stopped(slices: Tensor) -> Features:
        if network.seen:
            raise KeyboardInterrupt
        return encode(network, slices)

    network.encode = stopped  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        build_cache(cache, network, source(store), missing_units(cache, store, VIEWS), options())
    complete = {file.name.split(".")[0] for file in cache.folder.rglob("v*.json")}
    assert {file.name.split(".")[0] for file in cache.folder.rglob("*.npy")} == complete
    fill(cache, store)
    assert not missing_units(cache, store, VIEWS)


def test_a_mismatch_names_the_key(cache: EmbeddingCache, store: CaseStore) -> None:
    fill(cache, store)
    other = EmbeddingCache(cache.folder, replace(IDENTITY, input_size=128))
    with pytest.raises(SamunetError, match="input_size is 64 there, 128 now"):
        other.prepare()
    beside = EmbeddingCache(cache.folder.parent / "other", replace(IDENTITY, data_hash="e"))
    assert beside.closest_other() == "data_hash is 'd' there, 'e' now"
    assert cache.closest_other() is None
    assert other.identity.signature != IDENTITY.signature


@pytest.mark.parametrize("storage", ["fp16", "int8", "pca:1"])
def test_estimate_is_what_is_written(storage: str, tmp_path: Path, store: CaseStore) -> None:
    network, cache = Halving(), EmbeddingCache(tmp_path / "cache", replace(IDENTITY, storage=storage))
    per_item = bytes_per_item(network, 2, PATCH_2D, torch.device("cpu"), storage)
    items = sum(len(unit.items) for unit in missing_units(cache, store, VIEWS))
    fill(cache, store)
    written = sum(path.stat().st_size for path in cache.folder.rglob("*.npy"))
    assert written == pytest.approx(items * per_item, rel=0.2)


@pytest.mark.parametrize(("storage", "least", "most"), [("int8", 1e-4, 0.01), ("pca:1", 0.05, 0.9)])
def test_compact_kinds_keep_their_error(
    storage: str, least: float, most: float, tmp_path: Path, store: CaseStore
) -> None:
    """What is read differs from half precision by the error that was written down."""
    kinds = {}
    for kind in ("fp16", storage):
        kinds[kind] = EmbeddingCache(tmp_path / kind.replace(":", ""), replace(IDENTITY, storage=kind))
        fill(kinds[kind], store)
    entry = kinds[storage].entry("case_1", 1)
    assert least < entry.errors["level_0"] < most
    assert kinds[storage].mean_errors([("case_1", 1)]) == entry.errors
    assert kinds["fp16"].mean_errors([("case_1", 1)]) == {}
    measured = []
    for index in range(0, len(entry.items), MEASURED_EVERY):
        exact, found = (kinds[kind].read("case_1", 1, index) for kind in ("fp16", storage))
        assert exact.keys() == found.keys()
        assert torch.equal(exact["target"], found["target"])
        level, other = exact["level_0"].double(), found["level_0"].double()
        spread = (level - level.mean((1, 2), keepdim=True)).square().sum()
        measured.append(((level - other).square().sum() / spread).sqrt().item())
    assert np.mean(measured) == pytest.approx(entry.errors["level_0"], rel=0.1)  # half precision is coarse


def test_components_are_fitted_once_to_training_cases(tmp_path: Path, store: CaseStore) -> None:
    identity = replace(IDENTITY, storage="pca:1")
    first, second = (EmbeddingCache(tmp_path / name, identity) for name in "ab")
    chosen = replace(options(), fit_cases=frozenset({"case_0"}))
    for cache, views in ((first, {"case_0": 1}), (second, {"case_3": 2, "case_0": 1})):
        build_cache(cache, Halving(), source(store), missing_units(cache, store, views), chosen)
    assert first.bases_file.read_bytes() == second.bases_file.read_bytes()
    before = first.bases_file.read_bytes()
    fill(first, store)
    assert first.bases_file.read_bytes() == before
    first.bases_file.unlink()
    with pytest.raises(SamunetError, match="components"):
        EmbeddingCache(first.folder, identity).read("case_0", 0, 0)


def test_progress_and_counts(cache: EmbeddingCache, store: CaseStore) -> None:
    calls: list[tuple[int, int]] = []
    units = missing_units(cache, store, VIEWS)
    build_cache(cache, Halving(), source(store), units, options(), lambda *a: calls.append(a))
    assert calls[-1][0] == calls[-1][1] == sum(len(unit.items) for unit in units)
    counts, annotated = cache.tables("case_0")
    label = np.maximum(store.open("case_0").label[:], 0)
    # Tiles overlap along y, so that the sums over items are at least those of the case.
    assert (counts.sum(0) >= [(label == 1).sum(), (label == 2).sum()]).all()
    inside = [min(p, n) for p, n in zip(PATCH_2D, SHAPE[1:])]
    assert (annotated == inside[0] * inside[1]).all()


def test_regions_with_ignore(tmp_path: Path) -> None:
    store = write_cases(tmp_path / "cases", REGIONS)
    cache = EmbeddingCache(tmp_path / "cache", IDENTITY)
    settings = AugmentationSettings(
        patch_size=PATCH_2D, regions=tuple(REGIONS.foreground.values()), ignore_index=REGIONS.ignore_index
    )
    views = source(store, settings)
    build_cache(cache, Halving(), views, missing_units(cache, store, {"case_0": 2}), options(regions=True))
    counts, annotated = cache.tables("case_0")
    assert cache.read("case_0", 1, 0)["target"].shape == (3, *PATCH_2D)
    assert (counts[:, 0] >= counts[:, 1]).all()
    assert annotated.min() < annotated.max() <= PATCH_2D[0] * PATCH_2D[1]


def test_what_lies_beside_a_small_case_is_annotated_by_nobody(tmp_path: Path) -> None:
    """Else slices that nobody annotated are drawn as often as the one that somebody did."""
    labels = LabelSet(labels={"background": (0,), "organ": (1,), "lesion": (2,)}, ignore=3)
    store = write_cases(tmp_path / "cases", labels)
    patch = tuple(2 * n for n in SHAPE[1:])
    identity = replace(IDENTITY, patch_size=patch)
    cache = EmbeddingCache(tmp_path / "cache", identity)
    settings = AugmentationSettings(patch_size=patch, ignore_index=labels.ignore_index)
    chosen = replace(options(), ignore_index=labels.ignore_index)
    views = replace(source(store, settings), patch_size=patch)
    build_cache(cache, Halving(), views, missing_units(cache, store, {"case_0": 1}), chosen)
    _, annotated = cache.tables("case_0")
    stored = store.open("case_0").label[:]
    assert annotated.tolist() == (stored != labels.ignore_index).sum((1, 2)).tolist()


def test_limited_items_keep_foreground(store: CaseStore) -> None:
    case = store.open("case_0")
    shape = (40, 16, 16)
    locations = {"organ": np.array([[7, 3, 3], [9, 3, 3]]), "lesion": np.zeros((0, 3), int)}
    chosen = case_items(shape, PATCH_2D, locations, 6, 3)
    assert len(chosen) == len(set(chosen)) == 6
    assert {7, 9} <= {z for z, _, _ in chosen}
    assert chosen == case_items(shape, PATCH_2D, locations, 6, 3)
    assert len(case_items(shape, PATCH_2D, locations, None, 3)) == 40
    assert len(case_items(tuple(case.image.shape[1:]), PATCH_2D, case.locations, None, 3)) == 5 * 2


def test_identity_file_is_plain_json(cache: EmbeddingCache) -> None:
    cache.prepare()
    stored = json.loads((cache.folder / "identity.json").read_text())
    assert stored["patch_size"] == list(PATCH_2D)
    assert CLASSES.foreground.keys() == {"organ", "lesion"}
    assert len(NAMES) == 4
