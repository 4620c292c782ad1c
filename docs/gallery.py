"""Make the gallery anew: `python docs/gallery.py RUN [RUN=FIGURE,...]` copies figures and tables of finished runs.

A run is a folder of `results/runs`; its figures are those that `gradbench plot` has drawn, or the named ones of these.
They are copied into `results/gallery/SUITE`. `make docs` then writes the table in docs/gallery.md.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gradbench.tables.disk import read_json, write_json
from gradbench.tables.store import MADE_BY, Run

ROOT = Path(__file__).parents[1]
TABLES = "cells", "params", "budget"  # of the first run: what its figures show can be looked up there
LEVELS = 16  # of a channel: no colour moves by more than 8 of 255, black and white stay, and a file is a quarter


def main(items: list[str]) -> None:
    """Copy each run, the first one with its tables."""
    for number, item in enumerate(items):
        folder, _, names = item.partition("=")
        run = Run(Path(folder).resolve())
        gallery = ROOT / "results" / "gallery" / str(run.plan["suite"])
        shutil.rmtree(gallery, ignore_errors=True)
        gallery.mkdir(parents=True)
        for path in sorted((run.folder / "plots").glob("*.png")):
            if not names or path.stem in names.split(","):
                reduce(path, gallery / path.name)
        env = run.env | {"command": ["gradbench", "run", str(run.plan["suite"])]}  # without the paths of a machine
        for name in TABLES if number == 0 else ():
            copy(run.folder / f"{name}.parquet", gallery / f"{name}.parquet", env)
        verdict = {k: v for k, v in read_json(run.folder / "verdict.json").items() if k != "unheld"}
        write_json(gallery / "verdict.json", verdict)
        write_json(gallery / "env.json", env)


def copy(source: Path, target: Path, env: dict[str, Any]) -> None:
    """Write a table as it is, but for what it says of its environment."""
    table = pq.read_table(source)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, MADE_BY: json.dumps(env).encode()}), target)


def reduce(source: Path, target: Path) -> None:
    """Write a PNG with fewer colours, and with its title and caption."""
    with Image.open(source) as image:
        kept = PngInfo()
        for key in ("Title", "Description"):
            kept.add_itxt(key, image.text[key])  # type: ignore[attr-defined]
        levels = np.rint(np.asarray(image.convert("RGB")) / 255 * (LEVELS - 1))
    few = Image.fromarray((levels * (255 // (LEVELS - 1))).astype(np.uint8))
    if few.getcolors(256):
        few = few.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(target, pnginfo=kept, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
