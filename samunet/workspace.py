"""Where raw data, preprocessed data, results and weights lie, and file names that several parts know."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samunet.errors import SamunetError, unknown_name

Fold = int | str
"""A number, or `all`."""
DEFAULT_PLANS = "samunetPlans"
DEFAULT_FOLDER = "samunet_workspace"
ROOT_VARIABLE = "SAMUNET_WORKSPACE"
WEIGHTS_VARIABLE = "SAMUNET_WEIGHTS"
RAW_OF_NNUNET = "nnUNet_raw"
LONGEST_NAME = 100
"""Longest name of a folder that is put together from several names."""
DATASET_FILE = "dataset.json"
FINGERPRINT_FILE = "fingerprint.json"
ENVELOPE_FILE = "fingerprint_envelope.json"
PLAN_FILE = "plan.json"
"""The plan in a model's folder and beside predictions."""
SPLITS_FILE = "splits_final.json"
LATEST, BEST, FINAL = "checkpoint_latest.pth", "checkpoint_best.pth", "checkpoint_final.pth"
RUN_FILE = "run.json"
HISTORY_FILE = "history.jsonl"
PROGRESS_FILE = "progress.png"
SELECTION_FILE = "selection.json"
SUMMARY_FILE = "summary.json"
TABLE_FILE = "summary.csv"
PRETRAINING_FILE = "pretraining.json"
ARGUMENTS_FILE = "predict_args.json"
ENSEMBLE_ARGUMENTS_FILE = "ensemble_args.json"
POSTPROCESSING_FILE = "postprocessing.json"
POSTPROCESSING_UNFINISHED_FILE = "postprocessing_unfinished.json"
QC_FILE = "qc.json"
QC_FEATURES_FOLDER = "qc_features"
QC_MODEL_FILE = "qc_model.json"
"""Calibration of the predicted Dice per case."""
QC_MODEL_AFTER_RULES_FILE = "qc_model_postprocessed.json"
FOLD = "fold_"
"""What the name of a fold's folder begins with."""
DATASET_NAME = re.compile(r"Dataset(\d{3,})_(.+)")


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """The folders that samunet reads and writes. None of them is created by looking.

    Attributes:
        raw: raw datasets, one folder each.
        preprocessed: fingerprints, plans, splits, preprocessed cases and embedding caches.
        results: trained models.
        weights: official and own encoder weights.
        origin: in plain words, what decided the folders; shown on the screen.
        unread_raw: folder of nnUNet_raw where something else decided on `raw`; only named in messages.
    """

    raw: Path
    preprocessed: Path
    results: Path
    weights: Path
    origin: str
    unread_raw: Path | None = None

    @classmethod
    def find(cls, flag: Path | None = None, environment: Mapping[str, str] | None = None) -> Workspace:
        """Take the flag, else SAMUNET_WORKSPACE, else the three variables, else ./samunet_workspace.

        Args:
            flag: value of `--workspace`.
            environment: variables to read; those of the process by default.
        """
        env = os.environ if environment is None else environment
        found = cls._found(flag, env)
        theirs = _absolute(env[RAW_OF_NNUNET]) if env.get(RAW_OF_NNUNET) else None
        return found if theirs in (None, found.raw) else replace(found, unread_raw=theirs)

    @classmethod
    def _found(cls, flag: Path | None, env: Mapping[str, str]) -> Workspace:
        if flag is not None:
            return cls._at_root(
                Path(flag), f"{Path(flag)} (flag --workspace; commands named below need it too)", env
            )
        if env.get(ROOT_VARIABLE):
            root = env[ROOT_VARIABLE]
            return cls._at_root(Path(root), f"{root} (variable {ROOT_VARIABLE})", env)
        named = {
            "raw": "samunet_raw" if env.get("samunet_raw") else RAW_OF_NNUNET,
            "preprocessed": "samunet_preprocessed",
            "results": "samunet_results",
        }
        if any(env.get(variable) for variable in named.values()):
            return cls._from_variables(named, env)
        return cls._at_root(
            Path(DEFAULT_FOLDER),
            f"./{DEFAULT_FOLDER} (default; set {ROOT_VARIABLE} or use --workspace for another folder)",
            env,
        )

    @classmethod
    def _at_root(cls, root: Path, origin: str, env: Mapping[str, str]) -> Workspace:
        root = _absolute(root)
        return cls(
            raw=root / "raw",
            preprocessed=root / "preprocessed",
            results=root / "results",
            weights=_absolute(env.get(WEIGHTS_VARIABLE) or root / "weights"),
            origin=origin,
        )

    @classmethod
    def _from_variables(cls, named: Mapping[str, str], env: Mapping[str, str]) -> Workspace:
        folders, words = {}, []
        for part, variable in named.items():
            value = env.get(variable)
            folders[part] = _absolute(value or Path(DEFAULT_FOLDER) / part)
            source = f"variable {variable}" if value else f"default, {variable} is not set"
            words.append(f"{part} {value or f'./{DEFAULT_FOLDER}/{part}'} ({source})")
        return cls(**folders, weights=user_weights(env), origin=", ".join(words))

    def list_datasets(self) -> list[str]:
        """Names of all datasets in raw, preprocessed and results."""
        folders = (self.raw, self.preprocessed, self.results)
        return sorted({name for folder in folders for name in _datasets_in(folder)})

    def dataset_name(self, id_or_name: str | int) -> str:
        """Full folder name of a dataset given by number, full name, or the name after the number.

        Raises:
            SamunetError: no such dataset, or several that fit; lists what exists.
        """
        wanted = str(id_or_name).strip().rstrip("/\\")
        names = self.list_datasets()
        if wanted in names:
            return wanted
        matches = [name for name in names if _fits(name, wanted)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise SamunetError(
                f"{wanted} is ambiguous: {', '.join(matches)} exist in raw, preprocessed or results. "
                "Give the full name, or rename or remove one."
            )
        error = unknown_name("dataset", wanted, names)
        raise SamunetError(
            f"{error} Looked in raw {self.raw}, preprocessed {self.preprocessed} and results {self.results}. "
            "A raw dataset is a folder such as Dataset101_Heart with a dataset.json; where data are looked "
            f"for is set by --workspace or {ROOT_VARIABLE}.{self._in_unread_raw(wanted)}"
        )

    def _in_unread_raw(self, wanted: str) -> str:
        """Where nnUNet_raw has the dataset, which is not looked at: the folder, and what to do."""
        if self.unread_raw is None:
            return ""
        names = sorted(
            name for name in _datasets_in(self.unread_raw) if wanted == name or _fits(name, wanted)
        )
        if not names:
            return ""
        return (
            f" {RAW_OF_NNUNET} has {self.unread_raw / names[0]}, but is not read where --workspace, "
            f"{ROOT_VARIABLE} or samunet_raw is given: leave that out, or put a link to the folder into "
            f"{self.raw}."
        )

    def raw_folder(self, dataset: str) -> Path:
        """Folder of the raw dataset.

        Raises:
            SamunetError: it does not exist (only preprocessed data or results do).
        """
        folder = self.raw / dataset
        if not folder.is_dir():
            raise SamunetError(
                f"There is no raw dataset {folder}. Put it there, or set --workspace."
                f"{self._in_unread_raw(dataset)}"
            )
        return folder

    def preprocessed_folder(self, dataset: str) -> Path:
        return self.preprocessed / dataset

    def fingerprint_file(self, dataset: str) -> Path:
        return self.preprocessed_folder(dataset) / FINGERPRINT_FILE

    def plan_file(self, dataset: str, plans: str = DEFAULT_PLANS) -> Path:
        return self.preprocessed_folder(dataset) / f"{_plain(plans, 'plans name')}.json"

    def splits_file(self, dataset: str, scheme: str = "kfold") -> Path:
        """The default scheme has nnU-Net's file name, so that a user's own file is honoured."""
        plain = _scheme_name(scheme, lambda text: re.sub(r"[^A-Za-z0-9._-]+", "_", text))
        name = SPLITS_FILE if scheme == "kfold" else f"splits_{plain}.json"
        return self.preprocessed_folder(dataset) / name

    def case_folder(self, dataset: str, plans: str, data_name: str) -> Path:
        return self.preprocessed_folder(dataset) / f"{plans}_{data_name}"

    def embedding_folder(self, dataset: str, plans: str, data_name: str, signature: str) -> Path:
        return self.preprocessed_folder(dataset) / f"{plans}_{data_name}_embeddings" / signature

    def soft_label_folder(self, dataset: str, plans: str, data_name: str, signature: str) -> Path:
        return self.preprocessed_folder(dataset) / f"{plans}_{data_name}_soft_labels" / signature

    def unlabelled_folder(self, dataset: str, plans: str, data_name: str) -> Path:
        return self.preprocessed_folder(dataset) / f"{plans}_{data_name}_unlabelled"

    def model_folder(
        self, dataset: str, configuration: str, plans: str = DEFAULT_PLANS, tag: str | None = None
    ) -> Path:
        """Folder of all folds of one way to train: plan.json, dataset.json, fingerprint.json, fold_K/."""
        parts = [configuration, _plain(plans, "plans name"), *([_plain(tag, "tag")] if tag else [])]
        return self.results / dataset / "__".join(parts)

    def group_matrix_folder(self, dataset: str) -> Path:
        """Scores of trainings on single groups: matrix.csv, matrix.json, matrix_METRIC.png."""
        return self.results / dataset / "group_matrix"

    def selection_file(self, dataset: str, plans: str = DEFAULT_PLANS) -> Path:
        """What samunet_find_best_configuration found; the default plan's file has the plain name."""
        return self.results / dataset / selection_name(plans)

    def postprocessing_file(self, dataset: str, plans: str = DEFAULT_PLANS) -> Path:
        """The rules that the selection learned."""
        return self.results / dataset / f"postprocessing{_plan_ending(plans)}.json"

    def fold_ensemble_folder(self, dataset: str, plans: str, members: Sequence[str]) -> Path:
        """Folder of the out-of-fold predictions that several models make together.

        Args:
            members: names of the models without the plan's, `2d_cnn` or `2d_cnn__TAG`.
        """
        name = "+".join(members)
        if len(name) > LONGEST_NAME:
            digits = hashlib.sha256(name.encode()).hexdigest()[:8]
            name = f"{len(members)}_models_{digits}"
        return self.results / dataset / "ensembles" / _plain(plans, "plans name") / name

    def shift_suite_folder(self, dataset: str, tag: str | None = None) -> Path:
        """Scores on changed images: shifts.csv, shifts.json, curves_METRIC.png, METHOD/SHIFT_SEVERITY/."""
        return self.results / dataset / (f"shift_suite-{_plain(tag, 'tag')}" if tag else "shift_suite")

    def pretraining_folder(self, name: str) -> Path:
        """Folder of a pretraining's checkpoints, history and slices; the result goes to `weights`."""
        return self.results / "pretraining" / _plain(name, "name of the result")


def split_tag(scheme: str | None) -> str | None:
    """Tag of a training by another split scheme than the default one, when the user gives none.

    Runs of different splits would otherwise meet in one folder: `single_source:UCL` gives
    `single_source-UCL`. A group whose name cannot be part of a folder's gets a few digits of its own.
    """
    if scheme is None or scheme == "kfold":
        return None
    return _scheme_name(
        scheme, lambda text: re.sub(r"_{2,}", "_", re.sub(r"[^A-Za-z0-9._]+", "-", text)).strip("-")
    )


def _scheme_name(scheme: str, plain: Callable[[str], str]) -> str:
    """A scheme in plain characters; with digits of its own where its group's name has others."""
    group = scheme.partition(":")[2]
    digits = "" if plain(group) == group else f"-{hashlib.sha256(group.encode()).hexdigest()[:8]}"
    return plain(scheme) + digits


def selection_name(plans: str) -> str:
    """File name of a plan's selection in results/DATASET."""
    return f"selection{_plan_ending(plans)}.json"


def short_dataset_name(dataset: str) -> str:
    """What a user types for a dataset: `101` for `Dataset101_Heart`."""
    match = DATASET_NAME.fullmatch(dataset)
    return dataset if match is None else str(int(match[1]))


def user_weights(environment: Mapping[str, str] | None = None) -> Path:
    """Weights that all workspaces of a user share: SAMUNET_WEIGHTS, else ~/.cache/samunet/weights."""
    env = os.environ if environment is None else environment
    cache = Path(env.get("XDG_CACHE_HOME") or "~/.cache") / "samunet" / "weights"
    return _absolute(env.get(WEIGHTS_VARIABLE) or cache)


def validation_folder(model_folder: Path, fold: Fold) -> Path:
    """Predictions of the cases that a fold kept out, with their scores in SUMMARY_FILE."""
    return fold_folder(model_folder, fold) / "validation"


def is_validated(model_folder: Path, fold: Fold) -> bool:
    """Whether the whole cases that a fold kept out are predicted and scored."""
    return (validation_folder(model_folder, fold) / SUMMARY_FILE).is_file()


def fold_folder(model_folder: Path, fold: Fold) -> Path:
    """Folder of one trained fold; `fold` is a number or `all`."""
    return Path(model_folder) / f"{FOLD}{fold}"


def fold_of(folder: Path) -> Fold | None:
    """The fold that a folder of a model is, by its name; None for copies such as `fold_0_old`."""
    name = folder.name.removeprefix(FOLD)
    is_number = name.isdecimal() and str(int(name)) == name
    return int(name) if is_number else name if name == "all" else None


def fold_folders(model_folder: Path) -> dict[Fold, Path]:
    """Fold -> folder of all folds begun in a model folder, `all` last; copies are left out."""
    found = [(fold_of(folder), folder) for folder in Path(model_folder).glob(f"{FOLD}*")]
    begun = {fold: folder for fold, folder in found if fold is not None}
    numbers = sorted(fold for fold in begun if isinstance(fold, int))
    return {fold: begun[fold] for fold in [*numbers, "all"] if fold in begun}


def _absolute(path: str | Path) -> Path:
    try:
        return Path(os.path.abspath(Path(path).expanduser()))
    except RuntimeError as error:
        raise SamunetError(
            f"{path}: this system knows no home folder of that user. For a folder in your own write ~/NAME."
        ) from error


def _datasets_in(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    return {f.name for f in folder.iterdir() if f.is_dir() and _is_dataset(f)}


def _is_dataset(folder: Path) -> bool:
    return DATASET_NAME.fullmatch(folder.name) is not None or (folder / DATASET_FILE).is_file()


def _fits(name: str, wanted: str) -> bool:
    match = DATASET_NAME.fullmatch(name)
    if match is None:
        return False
    number, title = match.groups()
    return int(wanted) == int(number) if wanted.isdecimal() else wanted in (title, f"{number}_{title}")


def _plan_ending(plans: str) -> str:
    return "" if plans == DEFAULT_PLANS else f"__{_plain(plans, 'plans name')}"


def _plain(name: str, what: str) -> str:
    """Refuse what would break a folder name or its parts."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or "__" in name:
        raise SamunetError(
            f"The {what} {name!r} is part of a folder name: letters, digits, - . and single _ only."
        )
    return name
