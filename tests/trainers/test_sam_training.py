"""Training the heads on a SAM encoder: weights, checkpoints without the encoder, and the embedding cache."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import (
    CHANNELS,
    NAMES,
    PATCH_2D,
    REGIONS,
    WEIGHTS_FILE,
    Listener,
    SilentReporter,
    make_configuration,
    make_request,
    publish_weights,
    write_weights,
)
from torch import Tensor

from samunet.data.splits import Split
from samunet.errors import SamunetError
from samunet.inference.files import FileOptions
from samunet.inference.predictor import Predictor, arguments_of
from samunet.networks.sam_slices import SamSliceNetwork
from samunet.planning.sam_options import ENCODE_BATCH
from samunet.preprocessing.embedding_build import Unit
from samunet.preprocessing.embeddings import CacheIdentity, EmbeddingCache
from samunet.records import read_record, to_data
from samunet.trainers import cache_setup, get_trainer
from samunet.trainers.base import config_of
from samunet.trainers.batches import PatchSource
from samunet.trainers.cached import EmbeddingSource, item_chances
from samunet.trainers.checkpoint import load_checkpoint, network_from_checkpoint
from samunet.trainers.entry import train_fold
from samunet.trainers.identity import read_run
from samunet.trainers.run import RunRequest, source_settings
from samunet.trainers.sam_heads import SamHeadModule
from samunet.trainers.sampling import TRAIN, VAL, SampleKey
from samunet.trainers.settings import apply_overrides
from samunet.workspace import FINAL

SHORT = {"epochs": 1, "iterations": 2, "val_iterations": 1}


def request_on_weights(root: Path, kind: str, method: str = "2d_cnn") -> RunRequest:
    write_weights(root / "weights")
    changes = {"encoder_weights": kind, "settings": {"encoder_weights": None, **SHORT}}
    return make_request(root, method, configuration_changes=changes, weights_folder=root / "weights")


@pytest.fixture
def pretrained(tmp_path: Path) -> RunRequest:
    """`2d_cnn` on a frozen encoder whose weights lie in the weights folder."""
    return request_on_weights(tmp_path, "file")


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunRequest:
    """The same, where the file is the published one of its variant."""
    request = request_on_weights(tmp_path, "official")
    publish_weights(monkeypatch, tmp_path / "weights")
    return request


def logits(network: torch.nn.Module) -> Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        return network(torch.randn(1, CHANNELS, *PATCH_2D))


def test_a_published_frozen_encoder_is_left_out_of_checkpoints(published: RunRequest, tmp_path: Path) -> None:
    folder = train_fold(published, SilentReporter()).folder
    stored = load_checkpoint(folder / FINAL)
    assert stored.base_weights is not None
    assert stored.base_weights.file == WEIGHTS_FILE
    assert not any(name.startswith("encoder.") for name in stored.network)
    record = read_run(folder)
    assert record is not None
    assert record.weights is not None
    assert record.weights.sha256 == stored.base_weights.sha256
    first = logits(network_from_checkpoint(stored, tmp_path / "weights"))
    shutil.move(tmp_path / "weights", tmp_path / "elsewhere")
    assert torch.equal(first, logits(network_from_checkpoint(stored, tmp_path / "elsewhere")))
    with pytest.raises(SamunetError, match=f"{WEIGHTS_FILE}.*not in it and not in"):
        network_from_checkpoint(stored, tmp_path / "weights")
    write_weights(tmp_path / "weights", seed=1)
    with pytest.raises(SamunetError, match="not the file that this checkpoint was trained on"):
        network_from_checkpoint(stored, tmp_path / "weights")


def test_an_encoder_of_unknown_origin_is_kept(pretrained: RunRequest, tmp_path: Path) -> None:
    own = tmp_path / "my_vit_micro.pth"
    shutil.copy(tmp_path / "weights" / WEIGHTS_FILE, own)
    shutil.rmtree(tmp_path / "weights")
    folder = train_fold(replace(pretrained, weights=own), SilentReporter()).folder
    stored = load_checkpoint(folder / FINAL)
    assert stored.base_weights is None
    record = read_run(folder)
    assert record is not None
    predictor = Predictor.load(folder.parent, device="cpu")
    assert record.weights is not None
    assert f"file weights {own.name} ({record.weights.sha256[:12]}...)" in predictor.describe()
    assert arguments_of([predictor], FileOptions())["models"][0]["weights"] == to_data(record.weights)
    (folder / "run.json").unlink()  # as in a model that was passed on
    assert Predictor.load(folder.parent, device="cpu").weights == record.weights
    assert stored.plan.configuration("2d_cnn").encoder_weights == "file"
    own.unlink()
    assert torch.isfinite(logits(network_from_checkpoint(stored))).all()


def test_folds_of_a_model_start_from_the_same_weights(pretrained: RunRequest, tmp_path: Path) -> None:
    write_weights(tmp_path / "other", seed=1)
    other = tmp_path / "other" / WEIGHTS_FILE
    train_fold(pretrained, SilentReporter())
    beside = replace(pretrained, fold=1, folder=pretrained.folder.with_name("fold_1"))
    told = f"Fold 0 of .* the weights {WEIGHTS_FILE} .* from {WEIGHTS_FILE} .*--tag"
    with pytest.raises(SamunetError, match=told):
        train_fold(replace(beside, weights=other), SilentReporter())
    replacing = replace(pretrained, weights=other, overwrite=True)
    assert train_fold(replacing, SilentReporter()).status == "finished"  # what it replaces does not count
    with pytest.raises(SamunetError, match=told):
        train_fold(beside, SilentReporter())
    together = replace(beside, overwrite=True, replaced=(0,))
    assert train_fold(together, SilentReporter()).status == "finished"


def test_an_encoder_that_the_user_may_pretrain_again_is_kept(pretrained: RunRequest, tmp_path: Path) -> None:
    """Its file has the name under which `vit_tiny` is looked for, and another content tomorrow."""
    folder = train_fold(pretrained, SilentReporter()).folder
    stored = load_checkpoint(folder / FINAL)
    assert stored.base_weights is None
    before = logits(network_from_checkpoint(stored, tmp_path / "weights"))
    write_weights(tmp_path / "weights", seed=1)
    assert torch.equal(before, logits(network_from_checkpoint(stored, tmp_path / "weights")))


def test_missing_weights_say_what_to_do(pretrained: RunRequest, tmp_path: Path) -> None:
    (tmp_path / "weights" / WEIGHTS_FILE).unlink()
    with pytest.raises(SamunetError, match=r"starts from a user's weights.*samunet_download_weights"):
        train_fold(pretrained, SilentReporter())
    with pytest.raises(SamunetError, match="no such file"):
        train_fold(replace(pretrained, weights=tmp_path / "none.pth"), SilentReporter())
    assert not pretrained.folder.exists()


def test_a_frozen_random_encoder_needs_to_be_asked_for(tmp_path: Path) -> None:
    request = make_request(tmp_path, "2d_linear", settings={**SHORT, "encoder_weights": "none"})
    with pytest.raises(SamunetError, match="frozen random encoder"):
        train_fold(request, SilentReporter())


def test_continuing_with_other_weights_is_refused(pretrained: RunRequest, tmp_path: Path) -> None:
    folder = train_fold(pretrained, SilentReporter()).folder
    (folder / FINAL).unlink()
    write_weights(tmp_path / "weights", seed=1)
    with pytest.raises(SamunetError, match="other encoder weights"):
        train_fold(replace(pretrained, resume=True), SilentReporter())


def test_cache_is_shared_and_can_be_switched_off(pretrained: RunRequest, tmp_path: Path) -> None:
    listener = Listener()
    train_fold(pretrained, listener)
    assert any("Building the embedding cache" in text for text in listener.messages)
    record = read_run(pretrained.folder)
    assert record is not None
    assert (record.cache.mode, record.cache.views) == ("cached", 2)
    # Another head on the same encoder needs nothing new.
    again = Listener()
    linear = request_on_weights(tmp_path, "file", "2d_linear")
    train_fold(replace(linear, folder=tmp_path / "linear"), again)
    assert not any("Building" in text for text in again.messages)
    fresh = Listener()
    train_fold(replace(pretrained, settings={"cache": False}, folder=tmp_path / "fresh"), fresh)
    assert not any("embedding" in text for text in fresh.messages)


@pytest.mark.parametrize(
    ("settings", "axes"),
    [
        ({"views": 2}, (0, 1)),
        ({"views": 1}, ()),
        ({"augmentation": "none"}, ()),
        ({"cache": False, "augmentation": "none"}, ()),
        ({"cache": False, "augmentation": "light"}, (0, 1)),
    ],
)
def test_prediction_mirrors_what_training_mirrored(
    settings: dict[str, Any], axes: tuple[int, ...], tmp_path: Path
) -> None:
    request = make_request(tmp_path, "2d_linear", settings={**SHORT, **settings})
    assert request.plan.configuration("2d_linear").mirror_axes == (0, 1)
    train_fold(request, SilentReporter())
    assert load_checkpoint(request.folder / FINAL).mirror_axes == axes


def test_a_cache_is_of_one_number_format(pretrained: RunRequest, tmp_path: Path) -> None:
    train_fold(pretrained, SilentReporter())
    listener = Listener()
    settings = {**pretrained.settings, "precision": "bf16"}
    train_fold(replace(pretrained, settings=settings, folder=tmp_path / "half"), listener)
    assert any("Building the embedding cache" in text for text in listener.messages)


def test_a_budget_is_not_blamed_for_what_was_asked_for(pretrained: RunRequest) -> None:
    listener = Listener()
    settings = {**pretrained.settings, "augmentation": "none"}
    train_fold(replace(pretrained, settings=settings, time_budget_minutes=5), listener)
    assert not any("time budget allows" in text for text in listener.messages)


@pytest.mark.parametrize("method", ["2d_cnn", "2d_autosam"])
def test_an_image_skip_on_a_frozen_encoder_goes_through_the_cache(method: str, tmp_path: Path) -> None:
    request = replace(request_on_weights(tmp_path, "file", method), settings={"image_skip": True, **SHORT})
    folder = train_fold(request, SilentReporter()).folder
    network = network_from_checkpoint(load_checkpoint(folder / FINAL), tmp_path / "weights")
    assert network.head.uses_image
    (cache_folder,) = (tmp_path / "embeddings").iterdir()
    cache = EmbeddingCache(cache_folder, read_record(CacheIdentity, cache_folder / "identity.json"))
    assert "image_skip" in cache.array_names
    assert all(parameter.requires_grad for _, parameter in network.head.detail.named_parameters())


def test_on_a_full_disk_it_encodes_on_the_fly_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samunet.trainers.cache_setup.room_bytes", lambda _: 1000)
    request = make_request(tmp_path, "2d_linear", settings=SHORT)
    listener = Listener()
    train_fold(request, listener)
    assert any("on the fly: the embedding cache needs" in text for text in listener.messages)
    assert not (tmp_path / "embeddings").exists()
    record = read_run(request.folder)
    assert record is not None
    assert record.cache.mode == "on the fly"


def test_a_time_budget_shrinks_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samunet.trainers.cache_setup.time_encoding", lambda *a: 0.2)
    request = make_request(tmp_path, "2d_linear", settings={"views": 6}, time_budget_minutes=0.15)
    listener = Listener()
    train_fold(request, listener)
    record = read_run(request.folder)
    assert record is not None
    assert record.cache.views == 2
    assert record.cache.items_per_case is not None
    assert any("slices of each case" in text for text in listener.messages)
    # A continued run keeps to what was decided, however fast the machine is now.
    monkeypatch.undo()
    (request.folder / FINAL).unlink()
    train_fold(replace(request, resume=True, settings={}), listener)
    assert len(list((tmp_path / "embeddings").iterdir())) == 1


def test_folds_under_a_time_budget_share_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No two timings are the same: another number of slices would be another cache, and nothing be shared."""
    passes, share = 2 * 3 + 1, 5 * 60 * cache_setup.BUDGET_SHARE
    held = []
    for fold, affordable in enumerate((3.2, 2.85, 3.3, 5.2)):
        monkeypatch.setattr(cache_setup, "time_encoding", lambda *a, n=affordable: share / passes / n)
        request = make_request(
            tmp_path, "2d_linear", settings={**SHORT, "views": 2}, time_budget_minutes=5, fold=fold
        )
        names = [*NAMES[fold:], *NAMES[:fold]]
        split = Split(train=tuple(names[:3]), val=tuple(names[3:]))
        train_fold(replace(request, split=split, folder=tmp_path / f"fold_{fold}"), SilentReporter())
        record = read_run(tmp_path / f"fold_{fold}")
        assert record is not None
        held.append(record.cache.items_per_case)
    assert held == [3, 3, 3, 5]
    assert len(list((tmp_path / "embeddings").iterdir())) == 2


def test_folds_begin_a_cache_in_different_places(tmp_path: Path) -> None:
    units = [Unit(case=str(i), view=0, key="", items=(), plane=()) for i in range(100)]
    orders = [cache_setup._begun_elsewhere(units, fold) for fold in range(5)]
    assert all(sorted(order, key=lambda u: int(u.case)) == units for order in orders)
    starts = sorted(int(order[0].case) for order in orders)
    assert min(np.diff([*starts, 100 + starts[0]])) >= 14
    assert cache_setup._begun_elsewhere(units, "all") == units


def test_slices_are_encoded_by_as_many_as_the_plan_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, encode = [], SamSliceNetwork.encode

    def counted(self: SamSliceNetwork, slices: Tensor) -> Any:
        sizes.append(len(slices))
        return encode(self, slices)

    monkeypatch.setattr(SamSliceNetwork, "encode", counted)
    train_fold(make_request(tmp_path, "2d_linear", settings={**SHORT, "batch_size": 16}), SilentReporter())
    assert max(sizes) == ENCODE_BATCH


def test_views_beyond_the_usual_ones_take_less_of_a_time_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half_the_budget(_network: Any, _source: Any, units: list[Any], *_: Any) -> float:
        return 0.45 * 60 * 5 / cache_setup._count(units)

    monkeypatch.setattr(cache_setup, "time_encoding", half_the_budget)
    for views, kept in ((6, {6}), (24, set(range(7, 13)))):
        settings = {**SHORT, "views": views}
        request = make_request(tmp_path / str(views), "2d_linear", settings=settings, time_budget_minutes=5)
        record = read_run(train_fold(request, SilentReporter()).folder)
        assert record is not None
        assert record.cache.views in kept


def test_cached_and_uncached_validation_agree(tmp_path: Path) -> None:
    """View 0 is the plain slice: its losses are those of the image up to half precision."""
    request = make_request(tmp_path, "2d_cnn", labels=REGIONS, settings=SHORT)
    folder = train_fold(request, SilentReporter()).folder
    stored = load_checkpoint(folder / FINAL)
    trainer = get_trainer("2d_cnn")
    network = network_from_checkpoint(stored)
    module = trainer.build_training(network, stored.plan, stored.plan.configuration("2d_cnn")).eval()
    assert isinstance(module, SamHeadModule)
    image = torch.randn(2, CHANNELS, *PATCH_2D)
    target = torch.rand(2, 3, *PATCH_2D) > 0.5
    with torch.no_grad():
        level = network.encode(image).levels[0].half()
        cached = module({"level_0": level, "target": target.to(torch.uint8)})
        plain = module({"image": image, "target": target})
    assert cached["loss"].item() == pytest.approx(plain["loss"].item(), abs=2e-3)


def test_sources_can_be_sent_to_spawned_workers(pretrained: RunRequest, tmp_path: Path) -> None:
    """What workers hold is picklable, and gives the same sample there."""
    key = SampleKey(TRAIN, 3, 1, True)
    configuration = pretrained.plan.configuration("2d_cnn")
    patches = PatchSource(
        source_settings(pretrained, pretrained.plan, configuration, config_of(configuration), 0)
    )
    folder = train_fold(pretrained, SilentReporter()).folder
    record = read_run(folder)
    assert record is not None
    (cache_folder,) = (tmp_path / "embeddings").iterdir()
    cache = EmbeddingCache(cache_folder, read_record(CacheIdentity, cache_folder / "identity.json"))
    for source in (patches, EmbeddingSource(cache, patches.settings, record.cache.views)):
        first, second = source.sample(key), pickle.loads(pickle.dumps(source)).sample(key)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("storage", ["int8", "pca:4"])
def test_training_on_a_compact_cache(storage: str, tmp_path: Path) -> None:
    settings = {**SHORT, "cache_storage": storage}
    request, listener = make_request(tmp_path, "2d_desam", settings=settings), Listener()
    assert train_fold(request, listener).status == "finished"
    assert any(f"Relative error of {storage}: level_0" in text for text in listener.messages)
    with pytest.raises(SamunetError, match="fp16, int8, or pca:N"):
        train_fold(replace(request, settings={"cache_storage": "zip"}, overwrite=True), listener)


def test_slice_context_and_stem(tmp_path: Path) -> None:
    for settings in ({"slice_context": 1}, {"channel_map": "stem"}, {"paper_compat": True}):
        request = make_request(tmp_path, "2d_cnn", settings={**SHORT, **settings}, overwrite=True)
        assert train_fold(request, SilentReporter()).status == "finished"


def test_neighbouring_slices_are_not_cut_to_the_outline_of_the_middle_one(tmp_path: Path) -> None:
    """What lies outside the patient is known of the middle slice; prediction cuts none."""
    request = make_request(tmp_path, "2d_cnn", settings={"slice_context": 1})
    plan = apply_overrides(request.plan, "2d_cnn", {"slice_context": 1})
    configuration = plan.configuration("2d_cnn")
    masked = replace(plan.data_of(configuration), use_mask_for_norm=(True, False, True))
    plan = replace(plan, data={**plan.data, configuration.data: masked})
    found = source_settings(request, plan, configuration, config_of(configuration), seed=0)
    assert found.augmentation.masked_channels == (1, 7)


@pytest.mark.parametrize(("context", "known"), [(0, set()), (1, {"slice_context"})])
def test_caches_of_single_slices_keep_their_names(tmp_path: Path, context: int, known: set[str]) -> None:
    """Those with neighbours from before these were augmented as one image have other views."""
    settings = {**SHORT, "views": 1, "slice_context": context}
    train_fold(make_request(tmp_path, "2d_cnn", settings=settings), SilentReporter())
    (file,) = tmp_path.rglob("identity.json")
    earlier = {"patch_size", "mirror_axes", "preset", "masked_channels", "regions", "ignore_index"}
    assert set(json.loads(file.read_text())["augmentation"]) == earlier | known


def test_paper_compat_uses_the_papers_optimizer() -> None:
    trainer = get_trainer("2d_autosam")
    config = config_of(make_configuration("2d_autosam", settings={"paper_compat": True}))
    (phase,) = trainer.phases(config)
    assert (phase.optimizer, phase.weight_decay, phase.schedule) == ("adam", 0.0, "constant")


class _WithIgnore:
    has_ignore = True


def test_item_chances() -> None:
    counts, annotated = np.array([[3.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), np.array([0.0, 5.0, 5.0])
    rng = np.random.default_rng(0)
    settings = _WithIgnore()
    forced = item_chances(counts, annotated, settings, SampleKey(TRAIN, 0, 0, True), rng)  # type: ignore[arg-type]
    assert forced.tolist() == [0.75, 0.25, 0.0]
    free = item_chances(counts, annotated, settings, SampleKey(VAL, 0, 0, False), rng)  # type: ignore[arg-type]
    assert free.tolist() == [0.0, 0.5, 0.5]
    settings.has_ignore = False
    uniform = item_chances(counts, annotated, settings, SampleKey(VAL, 0, 0, False), rng)  # type: ignore[arg-type]
    assert uniform.tolist() == pytest.approx([1 / 3] * 3)
