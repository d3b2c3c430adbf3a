"""What a compact embedding cache saves and costs: bytes, error, and Dice of the same trained head, in pairs.

    python benchmarks/compact_cache.py --data FOLDER --work FOLDER --weights sam_vit_b_01ec64.pth --minutes 60
    python benchmarks/compact_cache.py --data FOLDER --work FOLDER --random --cases 4 --minutes 2

`2d_desam` is trained on a half-precision cache (Dataset008: fold 0 of single_source:RUNMC; others: fold 0 of
the default split). Then its head sees the plain slices of the validation cases twice: in half precision, and
as each compact kind gives them back (components fitted to slices of the training cases). Dice is that of the
slices pooled over each case, at the network's spacing; differences are paired by case, with bootstrap
intervals.
`--retrain` also trains a head on each compact cache and compares whole-case Dice: such a head is trained on
compact and predicts on full embeddings, as users' do.

With `--random` the encoder is random: sizes and times count, a Dice says little. Finished steps are in
WORK/compact_cache.json; start again to go on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measured_commands import ResultsFile, hardware, run_facts
from real_runs import Bench
from subsets import make_training_dataset

from samunet.evaluation.bootstrap import mean_interval
from samunet.planning.cache_storage import Storage
from samunet.preprocessing.compact import LEVEL, Codec, fit_bases
from samunet.preprocessing.embedding_build import cached_features
from samunet.preprocessing.embeddings import IDENTITY_FILE, CacheIdentity, EmbeddingCache
from samunet.records import read_record
from samunet.trainers.checkpoint import load_checkpoint, network_from_checkpoint
from samunet.trainers.identity import read_run
from samunet.workspace import FINAL, Workspace

METHOD, FITTED_SLICES = "2d_desam", 64
BAR_POINTS, BAR_GB = 0.3, 2.0


def prepare(bench: Bench, arguments: argparse.Namespace) -> None:
    """Raw cases (the first of each group with --cases), plan, preprocessing."""
    source = arguments.data / arguments.dataset
    ending = json.loads((source / "dataset.json").read_text())["file_ending"]
    names = sorted(file.name.removesuffix(ending) for file in (source / "labelsTr").glob(f"*{ending}"))
    if arguments.cases is not None:
        names = names[: arguments.cases] + names[-arguments.cases :]
    make_training_dataset(source, bench.workspace() / "raw" / arguments.dataset, names)
    planning = ["-d", bench.number(arguments.dataset), "-c", METHOD, "-device", bench.device]
    bench.measure("plan", "samunet_plan_and_preprocess", *planning, *encoder_words(arguments))


def encoder_words(arguments: argparse.Namespace) -> list[str]:
    words = ["-encoder", arguments.encoder, "--set", "encoder=frozen"]
    return words + (
        ["--set", "encoder_weights=random"] if arguments.random else ["-w", str(arguments.weights)]
    )


def train(bench: Bench, arguments: argparse.Namespace, kind: str) -> Path:
    """A head on a cache of one kind; its fold's folder."""
    tag = kind.replace(":", "")
    words = ["--tag", tag, "--overwrite", "--set", f"cache_storage={kind}", "-device", bench.device]
    words += ["--set", f"views={arguments.views}"]
    if arguments.input_size is not None:
        words += ["--set", f"input_size={arguments.input_size}"]
    if arguments.dataset.startswith("Dataset008"):
        words += ["--splits", "single_source:RUNMC"]
    budget = ["--time_budget", f"{arguments.minutes:g}"]
    number = bench.number(arguments.dataset)
    which = [*words, *encoder_words(arguments), *budget]
    bench.measure(f"train {kind}", "samunet_train", number, METHOD, "0", *which)
    return Workspace.find(bench.workspace()).model_folder(arguments.dataset, METHOD, tag=tag) / "fold_0"


def cache_of(bench: Bench, dataset: str, storage: str) -> EmbeddingCache:
    """The cache of a kind that the trainings have left."""
    for file in sorted(
        (bench.workspace() / "preprocessed" / dataset).glob(f"*_embeddings/*/{IDENTITY_FILE}")
    ):
        identity = read_record(CacheIdentity, file)
        if identity.storage == storage:
            return EmbeddingCache(file.parent, identity)
    raise SystemExit(f"no {storage} cache of {dataset}")


def items_of(cache: EmbeddingCache, case: str) -> Iterator[dict[str, np.ndarray]]:
    """Plain slices of a case: levels in single precision, as the encoder gave them up to half precision."""
    for index in range(len(cache.entry(case, 0).items)):
        arrays = {name: value.numpy() for name, value in cache.read(case, 0, index).items()}
        yield {k: v.astype(np.float32) if k.startswith(LEVEL) else v for k, v in arrays.items()}


def codecs(cache: EmbeddingCache, cases: tuple[str, ...], kinds: list[str]) -> dict[str, Codec]:
    """Components are fitted to about FITTED_SLICES plain slices of the training cases."""
    fitted = [item for case in cases for item in items_of(cache, case)]
    fitted = fitted[:: max(1, len(fitted) // FITTED_SLICES)]
    found = {}
    for kind in kinds:
        storage = Storage.parse(kind)
        bases = fit_bases(fitted, storage.components, seed=0) if storage.kind == "pca" else None
        found[kind] = Codec(storage, bases)
    return found


@torch.inference_mode()
def compare(
    network: Any, cache: EmbeddingCache, cases: tuple[str, ...], kinds: dict[str, Codec]
) -> dict[str, Any]:
    """Per kind: Dice of each case, errors, bytes and seconds an item."""
    found: dict[str, Any] = {
        kind: {"dice": {}, "errors": [], "bytes": [], "decode_seconds": []} for kind in kinds
    }
    for case in cases:
        counts = {kind: np.zeros((2, 0)) for kind in kinds}
        for item in items_of(cache, case):
            for kind, codec in kinds.items():
                stored, errors = codec.encode(item)
                started = time.perf_counter()
                arrays = codec.decode(stored)
                found[kind]["decode_seconds"].append(time.perf_counter() - started)
                found[kind]["errors"].append(errors)
                found[kind]["bytes"].append(sum(v.nbytes for k, v in stored.items() if k != "target"))
                counts[kind] = _added(counts[kind], *_predicted(network, arrays))
        for kind, (both, sizes) in counts.items():
            defined = sizes > 0
            found[kind]["dice"][case] = float(np.mean(2 * both[defined] / sizes[defined]))
    return found


def _predicted(network: Any, arrays: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Class indices (h, w) that the head gives, and those of the reference."""
    batch = {name: value[None] for name, value in arrays.items()}
    target = arrays["target"][0]
    features = cached_features(batch, target.shape)
    assert features is not None
    return network.decode(features)[0].argmax(0).numpy(), target.numpy()


def _added(counts: np.ndarray, found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Overlap and sizes of every class, rows 0 and 1, with those of one more slice."""
    highest = max(int(found.max()), int(wanted.max()), counts.shape[1])
    grown = np.zeros((2, highest))
    grown[:, : counts.shape[1]] = counts
    for label in range(1, highest + 1):
        a, b = found == label, wanted == label
        grown[:, label - 1] += (a & b).sum(), a.sum() + b.sum()
    return grown


def summary(found: dict[str, Any], slices: int, views: int) -> dict[str, Any]:
    """Per kind: size of the whole cache, mean error, Dice, and the paired difference to half precision."""
    exact = found["fp16"]["dice"]
    result = {}
    for kind, part in found.items():
        differences = np.array([100 * (part["dice"][case] - exact[case]) for case in exact])
        interval = mean_interval(differences[:, None], np.arange(len(differences)))
        names = part["errors"][0]
        result[kind] = {
            "mb_a_slice": float(np.mean(part["bytes"])) / 1e6,
            "gb_of_all_slices": float(np.mean(part["bytes"])) * slices * views / 1e9,
            "relative_error": {name: float(np.mean([e[name] for e in part["errors"]])) for name in names},
            "decode_ms": 1e3 * float(np.mean(part["decode_seconds"])),
            "dice": float(np.mean(list(part["dice"].values()))),
            "difference_points": float(differences.mean()),
            "interval_points": [interval.low, interval.high],
            "cases": part["dice"],
        }
    return result


def whole_cases(folder: Path) -> dict[str, Any]:
    """Whole-case scores that a training has left."""
    content = json.loads((folder / "validation" / "summary.json").read_text())
    cases = {e["case"]: {k: v["Dice"] for k, v in e["metrics"].items()} for e in content["metric_per_case"]}
    return {"dice": content["foreground_mean"]["Dice"], "cases": cases}


def report(steps: dict[str, Any]) -> None:
    head = f"{'kind':8} {'MB/slice':>9} {'all GB':>7} {'decode ms':>9} {'Dice':>6} {'points':>7}"
    print(f"{head} 95 % interval    errors")
    for kind, row in steps["pairs"].items():
        low, high = row["interval_points"]
        errors = " ".join(f"{value:.1%}" for value in row["relative_error"].values())
        print(
            f"{kind:8} {row['mb_a_slice']:9.3f} {row['gb_of_all_slices']:7.2f} {row['decode_ms']:9.2f} "
            f"{row['dice']:6.3f} {row['difference_points']:+7.2f} [{low:+.2f}, {high:+.2f}]  {errors}"
        )
    print(f"bars: under {BAR_GB:g} GB, and within {BAR_POINTS:g} points")
    for kind, row in steps.get("retrained", {}).items():
        print(f"trained on {kind}: whole-case Dice {row['dice']:.3f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compact embedding caches.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the DatasetXXX_Name folders")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder and results")
    parser.add_argument("--dataset", default="Dataset008_Prostate")
    parser.add_argument("--encoder", default="vit_b")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--weights", type=Path, help="weights file of the encoder")
    which.add_argument("--random", action="store_true", help="random encoder: for sizes and times")
    parser.add_argument("--cases", type=int, help="only the first and last N cases")
    parser.add_argument("--minutes", type=float, default=60.0, help="time budget of each training")
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--input-size", type=int, help="default: the plan's")
    parser.add_argument("--kinds", nargs="+", default=["int8", "pca:128", "pca:64", "pca:32", "pca:16"])
    parser.add_argument("--retrain", nargs="*", default=[], metavar="KIND", help="train heads on these too")
    parser.add_argument("--bin", type=Path, default=Bench.own_bin(), help="folder of samunet_train")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", type=Path, help="copy the results file into this folder at the end")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    work: Path = arguments.work.resolve()
    weights = "random" if arguments.random else arguments.weights.name
    header = {"hardware": hardware(), "encoder": arguments.encoder, "weights": weights}
    results = ResultsFile(work / "compact_cache.json", header)
    bench = Bench(arguments.data, work / "compact_cache", arguments.bin, arguments.device, results)
    prepare(bench, arguments)
    folder = train(bench, arguments, "fp16")
    results.save("facts fp16", run_facts(folder))
    if "pairs" not in results.steps:
        record, cache = read_run(folder), cache_of(bench, arguments.dataset, "fp16")
        assert record is not None
        if record.cache.mode != "cached":
            raise SystemExit(f"the head was not trained from a cache ({record.cache.reason})")
        network = network_from_checkpoint(load_checkpoint(folder / FINAL), bench.workspace() / "weights")
        kinds = codecs(cache, record.train, ["fp16", *arguments.kinds])
        found = compare(network, cache, record.val, kinds)
        slices = sum(len(cache.entry(case, 0).items) for case in (*record.train, *record.val))
        results.save("pairs", summary(found, slices, arguments.views))
    retrained = {kind: whole_cases(train(bench, arguments, kind)) for kind in arguments.retrain}
    if retrained:
        results.save("retrained", {"fp16": whole_cases(folder), **retrained})
    report(results.steps)
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(results.path, arguments.keep / "compact_cache.json")


if __name__ == "__main__":
    main()
