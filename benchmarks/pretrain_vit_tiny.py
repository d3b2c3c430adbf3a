"""The runs that make the weights of vit_tiny which ship: same sources, same seeds, same settings.

    python benchmarks/pretrain_vit_tiny.py --data FOLDER --work FOLDER --stage 1 --steps 3300 --keep FOLDER
    python benchmarks/pretrain_vit_tiny.py --data FOLDER --work FOLDER --stage 2 --steps 3700 --keep FOLDER

Generated pictures, Dataset004 (MIT) and Dataset005 (CC0) without the cases of held_out.json; no other set is
seen, so that what it shows there is transfer. Each stage begins with the weights of the one before and draws
pictures of its own. The weights that ship were made with `--minutes 125` and `--minutes 122` on two cores,
which came to these steps; by steps the schedule is the same on any machine. Stop a stage with Ctrl-C and call
it again to go on: its schedule is fixed by the first call. The two files that go into
samunet/networks/sam/shipped are then in WORK/stage_N/workspace/weights/samunet_vit_tiny_fp16; card, history
and curve go to `--keep`/stage_N.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from measured_commands import code_commit, hardware
from real_runs import Bench
from subsets import held_out_cases, make_training_dataset

from samunet.networks.sam.weight_files import ENCODER_ENDING
from samunet.networks.sam.weights_card import CARD_ENDING

DATASETS = ("Dataset004_HaN_CT", "Dataset005_Nuclei")
LICENCES = ("4=MIT", "5=CC0-1.0")
"""That let weights be given away; their dataset.json says them in a note only."""
NAME = "samunet_vit_tiny"
MOST_BYTES = 25_000_000
ENDLESS = 10_000_000
"""Steps; the time budget shortens them to what fits."""
COMMON = ("--synthetic_share", "0.6", "--batch", "8", "--set", "clicks=1")
STAGES = {
    1: ("--tasks", "prompt=1,mae=0.25", "--seed", "0"),
    2: ("--tasks", "prompt=1,mae=0.5", "--seed", "1", "--set", "objects=4"),
}
"""Prompts first, for the decoder; then more pictures in the same time: half the objects of each, and more of
the encoder's own task. A seed twice would show the same pictures twice."""


def prepare(data: Path, workspace: Path) -> Path:
    """Raw datasets as they are, and the list of cases that the command must leave out."""
    for dataset in DATASETS:
        source = data / dataset
        ending = json.loads((source / "dataset.json").read_text())["file_ending"]
        names = sorted(f.name.removesuffix(ending) for f in (source / "labelsTr").glob(f"*{ending}"))
        make_training_dataset(source, workspace / "raw" / dataset, names)
    return Path(__file__).with_name("held_out.json").resolve()


def stage_workspace(work: Path, stage: int) -> Path:
    return work.resolve() / f"stage_{stage}" / "workspace"


def half_weights(workspace: Path) -> Path:
    """Folder of the pair in fp16."""
    return workspace / "weights" / f"{NAME}_fp16"


def start(work: Path, stage: int) -> tuple[str, ...]:
    """Words that name the weights which a stage begins with: those of the one before, none for the first."""
    if stage == min(STAGES):
        return ()
    file = half_weights(stage_workspace(work, stage - 1)) / f"{NAME}{ENCODER_ENDING}"
    if not file.is_file():
        raise SystemExit(f"Stage {stage} begins with the weights of stage {stage - 1}, {file}: not there.")
    return ("-w", str(file))


def check_sources(run: Path) -> None:
    """No held-out case was cut into slices."""
    for dataset in DATASETS:
        index = json.loads((run / "slices" / dataset / "index.json").read_text())
        seen = {case["name"] for case in index["cases"]}
        assert seen, dataset
        assert not seen & set(held_out_cases(dataset)), dataset


def keep_record(workspace: Path, run: Path, folder: Path) -> None:
    """Card, history and curve of the run, what it printed, without the paths of this machine, and by which
    commit on which hardware it ended."""
    folder.mkdir(parents=True, exist_ok=True)
    card = half_weights(workspace) / f"{NAME}{CARD_ENDING}"
    for file in (card, run / "history.jsonl", run / "progress.png"):
        if file.exists():
            shutil.copyfile(file, folder / file.name)
    printed = (run / "log.txt").read_text(encoding="utf-8")
    (folder / "log.txt").write_text(printed.replace(str(workspace), "WORKSPACE"), encoding="utf-8")
    made = {"commit": code_commit(), "hardware": hardware()}
    (folder / "made_by.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def call(command: Sequence[str], log: Path) -> int:
    """Run a command; what it prints goes to the screen and to the end of a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("a", encoding="utf-8") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        assert process.stdout is not None
        while True:
            try:
                for line in process.stdout:
                    print(line, end="", flush=True)
                    file.write(line)
                    file.flush()
                return process.wait()
            except KeyboardInterrupt:
                continue  # the command got it too and writes its checkpoint


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make the weights of vit_tiny that ship.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the DatasetXXX_Name folders")
    parser.add_argument("--work", type=Path, required=True, help="stage_1 and stage_2 are made here")
    parser.add_argument("--stage", type=int, choices=tuple(STAGES), default=1, help="default: 1")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="training time, fixed by the first call")
    length.add_argument("--steps", type=int, help="training steps, however long they take")
    parser.add_argument("--bin", type=Path, default=Bench.own_bin(), help="folder of samunet_pretrain")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--precision", default="bf16", choices=("bf16", "fp32"), help="fp32 where the processor has no bf16"
    )
    parser.add_argument("--keep", type=Path, help="folder for card, history and curve")
    parser.add_argument(
        "--words", nargs=argparse.REMAINDER, default=[], help="further words of samunet_pretrain, last"
    )
    return parser.parse_args(words)


def length_words(arguments: argparse.Namespace) -> tuple[str, ...]:
    if arguments.steps is not None:
        return ("--steps", str(arguments.steps))
    return ("--steps", str(ENDLESS), "--time_budget", f"{arguments.minutes:g}")


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(words)
    workspace = stage_workspace(arguments.work, arguments.stage)
    run = workspace / "results" / "pretraining" / NAME
    weights = workspace / "weights" / f"{NAME}.pth"
    excluded = prepare(arguments.data, workspace)
    command = [
        *(arguments.bin / "samunet_pretrain", "--synthetic", "-d", "4", "5", "--exclude", excluded),
        *("--licence", *LICENCES),
        *("-encoder", "vit_tiny", *COMMON, *STAGES[arguments.stage], *start(arguments.work, arguments.stage)),
        *("--set", f"precision={arguments.precision}"),
        *length_words(arguments),
        *("-o", NAME, "--fp16", "-device", arguments.device, "--workspace", workspace, *arguments.words),
    ]
    begun = (run / "checkpoint_latest.pth").exists()
    code = call([str(word) for word in (*command, *(["--c"] if begun else []))], run / "log.txt")
    if (run / "history.jsonl").exists() and arguments.keep:
        keep_record(workspace, run, arguments.keep / f"stage_{arguments.stage}")
    if code or not weights.exists():
        return code
    check_sources(run)
    pair = sorted(half_weights(workspace).glob("*.safetensors"))
    size = sum(file.stat().st_size for file in pair)
    print(f"{len(pair)} files, {size / 1e6:.1f} MB together: {pair[0].parent}")
    return 0 if size <= MOST_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
