"""The training surface: the same names and meaning as the published reference, and files that go both ways."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from soma_models.v1 import configs as published_configs
from soma_models.v1 import torch as published
from torch import Tensor

from tests.recipe import SMALL_CONFIG, make_data, small_weights_bytes
from workers import v1
from workers.v1 import (
    Model,
    ModelConfig,
    ModelRunner,
    SIGReg,
    SIGRegConfig,
    WeightsInvalid,
    compute_loss,
    tokenize,
)
from workers.v1.weights_header import expected_shapes

SMALL = ModelConfig.small()
DATA = make_data({"pattern": "text", "size": 100})


def batch(max_seq_len: int = 48) -> tuple[Tensor, Tensor]:
    sequences = tokenize(DATA, max_seq_len)
    return torch.tensor([s.token_ids for s in sequences]), torch.tensor([s.targets for s in sequences])


def test_the_loop_of_the_network_s_documents() -> None:
    batches = tokenize(DATA, max_seq_len=16, batch_size=4)
    assert [len(batch.token_ids) for batch in batches] == [4, 3]
    model, sig_reg = Model(SMALL), SIGReg(SIGRegConfig())
    for batch in batches:
        token_ids, targets = torch.tensor(batch.token_ids), torch.tensor(batch.targets)
        loss, embedding = compute_loss(model, sig_reg, token_ids, targets)
        assert loss.isfinite()
        assert embedding.shape == (16,)
    for batch in tokenize(DATA, 16, 4):
        compute_loss(
            model, sig_reg, token_ids=torch.tensor(batch.token_ids), targets=torch.tensor(batch.targets)
        )


def published_model(weights: bytes) -> Any:
    return published.Model.load_bytes(weights, published.ModelConfig(dropout_rate=0.0, **SMALL_CONFIG))


def test_constants_are_the_published_ones() -> None:
    names = [name for name in vars(published_configs) if name.startswith("V1_")]
    assert len(names) > 10
    for name in names:
        assert getattr(v1, name) == getattr(published_configs, name), name


@pytest.mark.parametrize("config", [SMALL, ModelConfig(8, 24, 3, 2)])
def test_parameters_have_the_network_s_names_and_shapes(config: ModelConfig) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in Model(config).state_dict().items()}
    assert found == expected_shapes(config)


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    model = Model(SMALL)
    model.save(tmp_path / "weights.safetensors")
    for again in (
        Model.load(tmp_path / "weights.safetensors", SMALL),
        Model.load_bytes(model.save_bytes(), SMALL),
    ):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
        assert all(parameter.requires_grad for parameter in again.parameters())


def test_loading_another_shape_is_refused() -> None:
    with pytest.raises(WeightsInvalid, match="is missing"):
        Model.load_bytes(small_weights_bytes(), ModelConfig(16, 32, 3, 4))


def test_training_a_loaded_model_leaves_its_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(small_weights_bytes())
    model = Model.load(path, SMALL)
    with torch.no_grad():
        model.predictor.bias.add_(1.0)
    assert path.read_bytes() == small_weights_bytes()


def test_the_published_model_loads_ours_and_agrees() -> None:
    torch.manual_seed(0)
    ours = Model(SMALL).eval()
    theirs = published_model(ours.save_bytes()).eval()
    token_ids, _ = batch()
    positions = torch.arange(48).expand_as(token_ids)
    with torch.no_grad():
        torch.testing.assert_close(ours(token_ids, positions), theirs(token_ids, positions))


def test_we_load_the_published_model_s_file() -> None:
    theirs = published_model(small_weights_bytes())
    saved: bytes = theirs.save_bytes()
    expected = ModelRunner(SMALL).eval(DATA, small_weights_bytes(), 1)
    assert ModelRunner(SMALL).eval(DATA, saved, 1).loss == expected.loss


def test_compute_loss_is_the_published_one() -> None:
    ours, theirs = Model.load_bytes(small_weights_bytes(), SMALL), published_model(small_weights_bytes())
    token_ids, targets = batch()
    torch.manual_seed(3)
    loss, embedding = compute_loss(ours, SIGReg(SIGRegConfig()), token_ids, targets)
    torch.manual_seed(3)
    their_loss, their_embedding = published.compute_loss(
        theirs, published.SIGReg(published.SIGRegConfig()), token_ids, targets
    )
    torch.testing.assert_close(loss, their_loss)
    torch.testing.assert_close(embedding, their_embedding)
    loss.backward()  # type: ignore[no-untyped-call]
    their_loss.backward()  # type: ignore[no-untyped-call]
    their_gradients = dict(theirs.named_parameters())
    torch.testing.assert_close(
        ours.get_parameter("encoder.layers.0.attention.query.weight").grad,
        their_gradients["encoder.layers.0.attention.query.weight"].grad.T,
        rtol=1e-4,
        atol=1e-7,
    )


@pytest.mark.parametrize(("points", "t_max"), [(17, 3.0), (2, 1.0), (6, 2.5)])
def test_sig_reg_is_the_published_one(points: int, t_max: float) -> None:
    x, noise = torch.randn(2, 9, 16), torch.randn(16, 32)
    ours = SIGReg(SIGRegConfig(t_max=t_max, points=points, slices=32)).compute(x, noise)
    theirs = published.SIGReg(published.SIGRegConfig(t_max=t_max, points=points, slices=32)).compute(x, noise)
    torch.testing.assert_close(ours, theirs)


def test_sig_reg_against_float64() -> None:
    generator = torch.Generator().manual_seed(1)
    z = 2.0 * torch.randn(200, 256, generator=generator)
    t = torch.linspace(0, 3, 17, dtype=torch.float64)
    angles = z.double().unsqueeze(-1) * t
    phi = torch.exp(-0.5 * t**2)
    weights = torch.full((17,), 6 / 16, dtype=torch.float64)
    weights[0] = weights[-1] = 3 / 16
    err = (angles.cos().mean(-2) - phi) ** 2 + angles.sin().mean(-2) ** 2
    expected = (err * weights * phi).sum(-1) * 256
    torch.testing.assert_close(SIGReg().per_token(z).double(), expected, rtol=1e-5, atol=1e-5)


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    model, sig_reg = Model(ModelConfig(16, 32, 2, 4, dropout_rate=0.1)), SIGReg(SIGRegConfig())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    token_ids, targets = batch()
    losses = []
    for _ in range(30):
        loss, _ = compute_loss(model, sig_reg, token_ids, targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_dropout_acts_in_training_only() -> None:
    model = Model(ModelConfig(16, 32, 2, 4, dropout_rate=0.5))
    token_ids, _ = batch()
    positions = torch.arange(48).expand_as(token_ids)
    assert not torch.equal(model(token_ids, positions), model(token_ids, positions))
    model.eval()
    assert torch.equal(model(token_ids, positions), model(token_ids, positions))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # jax and flax warn of their own ways
def test_the_flax_model_s_files_go_both_ways() -> None:
    import jax.numpy as jnp
    from flax import nnx
    from soma_models.v1 import flax as published_flax

    config = published_flax.ModelConfig(dropout_rate=0.0, **SMALL_CONFIG)
    theirs = published_flax.Model(config, nnx.Rngs(0))
    ours = Model.load_bytes(theirs.save_bytes(), SMALL).eval()
    again = published_flax.Model.load_bytes(ours.save_bytes(), config, nnx.Rngs(1))

    token_ids, _ = batch()
    positions = torch.arange(48).expand_as(token_ids)
    with torch.no_grad():
        logits = ours(token_ids, positions).numpy()
    their_logits = again(jnp.array(token_ids.numpy()), jnp.array(positions.numpy()))
    np.testing.assert_allclose(logits, np.asarray(their_logits), rtol=0, atol=1e-5)
    assert again.save_bytes() == theirs.save_bytes()
