#!/usr/bin/env bash
# Pillow 13.0.0: convert("RGB") and convert("L") of deep grey images clip at 0 and 255 without a warning. A 16-bit ramp (PNG: mode
# "I;16"; PGM: mode "I") becomes white but for its first 1/257; a float TIFF in [0, 1], a common form of microscopes, becomes
# black. numpy.asarray of each image is right; only the conversion is not.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet pillow==13.0.0 numpy
cd "$place"
"$place/venv/bin/python" - <<'PY'
import numpy as np
import PIL
from PIL import Image

ramp = np.linspace(0, 65535, 24 * 24).reshape(24, 24).astype(np.uint16)
Image.fromarray(ramp).save("ramp.png")
with open("ramp.pgm", "wb") as file:
    file.write(b"P5\n24 24\n65535\n" + ramp.astype(">u2").tobytes())
Image.fromarray((ramp / 65535).astype(np.float32)).save("ramp.tif")
seen = {}
for name in ("ramp.png", "ramp.pgm", "ramp.tif"):
    image = Image.open(name)
    grey = np.asarray(image.convert("L"))
    seen[name] = (image.mode, len(np.unique(grey)), round(float(grey.mean())))
    print("pillow", PIL.__version__, name, "mode", image.mode, "levels after convert", seen[name][1], "mean", seen[name][2])
assert seen["ramp.png"][2] > 250 and seen["ramp.pgm"][2] > 250, "mended: 16-bit grey is scaled"
assert seen["ramp.tif"][0] == "F" and seen["ramp.tif"][2] == 0, "mended: float TIFF is scaled"
PY
