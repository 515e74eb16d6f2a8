"""Encrypt two checkpoints of 01 and serve them from this machine: python examples/03_encrypt_and_serve.py [PORT]

Writes example-files/competition.json, a request for 04 to 08, and serves until Ctrl-C. In practice the folder
`published` is any web server that validators reach.
"""

import base64
import hashlib
import json
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import base58

port = int(sys.argv[1]) if len(sys.argv) > 1 else 9000
folder = Path("example-files")
published = folder / "published"
published.mkdir(exist_ok=True)
server = ThreadingHTTPServer(("127.0.0.1", port), partial(SimpleHTTPRequestHandler, directory=str(published)))
base_url = f"http://127.0.0.1:{server.server_address[1]}"

checkpoints = sorted(folder.glob("step-*.safetensors"))
manifests = []
for checkpoint in (checkpoints[0], checkpoints[-1]):
    encrypted = published / f"{checkpoint.stem}.enc"
    key_file = folder / f"{checkpoint.stem}.key"
    for path in (encrypted, key_file):  # of an earlier run; soma-eval overwrites nothing
        path.unlink(missing_ok=True)
    command = ["soma-eval", "encrypt", str(checkpoint), "-o", str(encrypted), "--key-file", str(key_file)]
    encryption = subprocess.run([*command, "--small-model", "--json"], check=True, capture_output=True)
    commitment = json.loads(encryption.stdout)
    manifests.append(
        {
            "url": f"{base_url}/{encrypted.name}",
            "checksum": commitment["checksum"],
            "size": commitment["size"],
            "decryption_key": key_file.read_text().strip(),
        }
    )

data = (folder / "held-out.txt").read_bytes()
(published / "data.bin").write_bytes(data)
competition = {
    "data_url": f"{base_url}/data.bin",
    "data_checksum": base58.b58encode(hashlib.blake2b(data, digest_size=32).digest()).decode(),
    "data_size": len(data),
    "model_manifests": manifests,
    "target_embedding": [1.0, -1.0] * 8,
    "seed": 42,
}
evaluation = {
    "data": base64.b64encode(data).decode(),
    "weights_url": manifests[-1]["url"],
    "decryption_key": manifests[-1]["decryption_key"],
    "seed": 42,
}
for name, request in (("competition.json", competition), ("evaluation.json", evaluation)):
    (folder / name).touch(mode=0o600)  # they hold the keys
    (folder / name).write_text(json.dumps(request))

print(f"serving {published} at {base_url}, until Ctrl-C", flush=True)
try:
    server.serve_forever()
except KeyboardInterrupt:
    print("stopped")
