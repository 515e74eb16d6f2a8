"""Train a small model with soma-models and save checkpoints of it: python examples/01_train.py [STEPS]

Writes example-files/step-*.safetensors and example-files/held-out.txt, for the examples that follow.
"""

import sys
from pathlib import Path
from pydoc_data.topics import topics

import torch
from soma_models.v1.tokenizer import tokenize
from soma_models.v1.torch import Model, ModelConfig, SIGReg, SIGRegConfig, compute_loss

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 60
folder = Path("example-files")
folder.mkdir(exist_ok=True)

# Python's own documentation; the end of it is kept out of training, to compare the checkpoints on.
text = "\n".join(topics[name] for name in sorted(topics)).encode()
(folder / "held-out.txt").write_bytes(text[-5_000:])
sequences = tokenize(text[:-5_000], max_seq_len=128)
token_ids = torch.tensor([sequence.token_ids for sequence in sequences])
targets = torch.tensor([sequence.targets for sequence in sequences])

# The shape of the small model. The network's own model is ModelConfig(dropout_rate=0.0), with the same code.
torch.manual_seed(0)
config = ModelConfig(
    dropout_rate=0.0, embedding_dim=16, pwff_hidden_dim=32, num_layers=2, num_heads=4, vocab_size=264
)
model = Model(config)
sig_reg = SIGReg(SIGRegConfig())
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
model.train()
for step in range(1, steps + 1):
    rows = torch.randint(len(sequences), (16,))
    loss, _embedding = compute_loss(model, sig_reg, token_ids[rows], targets[rows])
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    if step % max(1, steps // 3) == 0:
        path = folder / f"step-{step:04}.safetensors"
        model.save(path)
        print(f"{path}  training loss {loss.item():.4f}")
