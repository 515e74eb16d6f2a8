"""Score the checkpoints of 01 on this machine, from Python and by command: python examples/02_score_local.py"""

import subprocess
from pathlib import Path

from soma_eval import ModelConfig, ModelRunner

folder = Path("example-files")
checkpoints = sorted(folder.glob("step-*.safetensors"))
held_out = (folder / "held-out.txt").read_bytes()

# In this process. ModelConfig() is the network's own model; device="cuda" runs it on a GPU.
runner = ModelRunner(ModelConfig.small(), device="cpu")
for checkpoint in checkpoints:
    output = runner.eval(held_out, checkpoint, seed=42)
    print(f"{checkpoint}  loss {output.loss:.6f}  cross-entropy {output.cross_entropy:.6f}")

# The same by command, with a table and the same losses.
command = ["soma-eval", "score", *map(str, checkpoints), "--data", str(folder / "held-out.txt")]
subprocess.run([*command, "--seed", "42", "--small-model"], check=True)
