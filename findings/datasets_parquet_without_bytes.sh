#!/usr/bin/env bash
# datasets 5.2.0: an image folder that is loaded and written with to_parquet gives a Parquet file without one image in it:
# the struct's `bytes` are null, its `path` is where the file lay on the machine that wrote it. Copied elsewhere, the set is empty.
# push_to_hub embeds the bytes; to_parquet does not.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet datasets==5.2.0 pillow
cd "$place"
HF_HOME="$place/home" HF_HUB_OFFLINE=1 "$place/venv/bin/python" - <<'PY'
from pathlib import Path

import datasets
import pyarrow.parquet as pq
from PIL import Image

for name in ("cat", "dog"):
    Path("files", name).mkdir(parents=True)
    for index in range(3):
        Image.new("RGB", (8, 8), (index * 40, 0, 0)).save(f"files/{name}/{index}.png")
datasets.disable_progress_bars()
datasets.load_dataset("imagefolder", data_dir="files", split="train").to_parquet("train.parquet")
rows = pq.read_table("train.parquet").column("image").to_pylist()
print("datasets", datasets.__version__, "rows", len(rows), "with bytes", sum(row["bytes"] is not None for row in rows), "first path absolute:", Path(rows[0]["path"]).is_absolute())
assert len(rows) == 6
assert all(row["bytes"] is None and Path(row["path"]).is_absolute() for row in rows), "changed: bytes are written"
PY
