#!/usr/bin/env bash
# huggingface_hub 2.4.0: `snapshot_download` of a data set gives a folder with one of its two shards, without error or warning, when
# one file was fetched before and the Hub cannot be reached now. A training on it sees half of the images. Whether the snapshot is
# whole can only be told from a list of the commit's files, which fetching one file does not leave in the cache.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet huggingface_hub==2.4.0
cd "$place"
"$place/venv/bin/python" - <<'PY'
import json
import os
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SHARDS = {"train/0.parquet": b"first half", "train/1.parquet": b"second half"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """A data set of two shards, on loopback."""

    def do_GET(self):
        path = self.path.partition("?")[0]
        shard = path.rpartition("/resolve/main/")[2]
        if shard in SHARDS:
            body, headers = SHARDS[shard], {"ETag": f'"{len(shard)}{shard[6]}"', "X-Repo-Commit": COMMIT}
        else:
            files = [{"rfilename": name} for name in SHARDS]
            body, headers = json.dumps({"id": "owner/images", "sha": COMMIT, "siblings": files}).encode(), {}
        self.send_response(200)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": "home", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
import huggingface_hub

huggingface_hub.hf_hub_download("owner/images", "train/0.parquet", repo_type="dataset")
server.shutdown()
server.server_close()
with warnings.catch_warnings():
    warnings.simplefilter("error")
    folder = Path(huggingface_hub.snapshot_download("owner/images", repo_type="dataset"))
found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.parquet"))
print("huggingface_hub", huggingface_hub.__version__, "of", sorted(SHARDS), "gives", found)
assert found == ["train/0.parquet"], "changed: a snapshot of which files are missing is no longer given as whole"
PY
