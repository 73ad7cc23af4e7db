"""Copy one data set of a shared data folder into the four folders that the benchmarks take: images, labels,
test-images, test-labels.

example:
  python benchmarks/split.py --data ../shared/data --dataset jsrt --out /path/to/jsrt
"""

import argparse
import csv
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDERS = {"train": ("images", "labels"), "test": ("test-images", "test-labels")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Copy the files that `splits.csv` names; returns 1 where there are none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with splits.csv and one folder a data set")
    parser.add_argument("--dataset", required=True, help="jsrt, busi or hippocampus")
    parser.add_argument("--out", type=Path, required=True, help="where the four folders go")
    parsed = parser.parse_args(arguments)
    with (parsed.data / "splits.csv").open(newline="", encoding="utf-8") as handle:
        rows = [row for row in csv.DictReader(handle) if row["dataset"] == parsed.dataset]
    for row in rows:
        for source, target in zip(("images", "labels"), FOLDERS[row["split"]], strict=True):
            folder = parsed.out / target
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(parsed.data / parsed.dataset / source / row["image"], folder / row["image"])
    print(f"{len(rows)} cases of {parsed.dataset} in {parsed.out}")
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
