"""The UNet's core, and the UNet that grows from it."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from demo_checkpoint.core import POOLED, Core, UpperLevels, confine_prompt, grow
from demo_checkpoint.networks import EMBEDDING, LATENT_CHANNELS, MODEL_MAX_LENGTH, WINDOW, Networks, build_networks
from demo_checkpoint.optimizer import MuonAndAdamW

ROWS = 2


@pytest.fixture
def networks() -> Networks:
    return build_networks(0)


@pytest.fixture
def core(networks: Networks) -> Core:
    return Core(networks.unet)


LATENTS = torch.randn(ROWS, LATENT_CHANNELS, WINDOW, WINDOW, generator=torch.Generator().manual_seed(0))
TIMESTEPS = torch.tensor([900, 300])
EMBEDS = torch.randn(ROWS, MODEL_MAX_LENGTH, EMBEDDING, generator=torch.Generator().manual_seed(1))
POOLED_LATENTS = F.avg_pool2d(LATENTS, POOLED)


@torch.no_grad()
def test_a_core_sees_a_sixteenth_of_the_cells_and_shares_the_unets_weights(networks: Networks, core: Core) -> None:
    before = core(POOLED_LATENTS, TIMESTEPS, EMBEDS).sample
    networks.unet.mid_block.resnets[0].conv1.bias.add_(1)
    after = core(POOLED_LATENTS, TIMESTEPS, EMBEDS).sample

    assert before.shape == POOLED_LATENTS.shape == (ROWS, 4, 16, 16)
    assert not torch.equal(before, after)


@torch.no_grad()
def test_the_core_answers_to_prompt_and_timestep(core: Core) -> None:
    plain = core(POOLED_LATENTS, TIMESTEPS, EMBEDS).sample

    assert not torch.allclose(plain, core(POOLED_LATENTS, TIMESTEPS, EMBEDS.flip(0)).sample)
    assert not torch.allclose(plain, core(POOLED_LATENTS, TIMESTEPS.flip(0), EMBEDS).sample)
    one = core(POOLED_LATENTS[:1], TIMESTEPS[0], EMBEDS[:1]).sample  # a timestep for all rows, as a sampler gives it
    torch.testing.assert_close(one, plain[:1])


@torch.no_grad()
def test_a_grown_unet_hands_its_core_the_pooled_latents(networks: Networks, core: Core) -> None:
    seen: list[torch.Tensor] = []
    core.down_blocks[0].resnets[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    grow(core, networks.unet)

    networks.unet(LATENTS, TIMESTEPS, EMBEDS)
    core(POOLED_LATENTS, TIMESTEPS, EMBEDS)

    torch.testing.assert_close(seen[0], seen[1])


def test_the_upper_levels_learn_around_a_core_that_stays(networks: Networks, core: Core) -> None:
    confine_prompt(networks.unet)
    grow(core, networks.unet)
    upper = UpperLevels(networks.unet)
    with torch.no_grad():
        untrained = networks.unet(LATENTS, TIMESTEPS, EMBEDS).sample
        pooled = core(POOLED_LATENTS, TIMESTEPS, EMBEDS).sample
        torch.testing.assert_close(upper(LATENTS, TIMESTEPS, EMBEDS).sample, untrained)
    optimizer = MuonAndAdamW(networks.unet, weight_decay=0.0)
    for group in optimizer.param_groups:
        group["lr"] = 3e-3
    for _ in range(10):
        upper(LATENTS, TIMESTEPS, EMBEDS).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    with torch.no_grad():
        trained = networks.unet(LATENTS, TIMESTEPS, EMBEDS).sample
        torch.testing.assert_close(core(POOLED_LATENTS, TIMESTEPS, EMBEDS).sample, pooled, rtol=0, atol=0)
        torch.testing.assert_close(upper(LATENTS, TIMESTEPS, EMBEDS).sample, trained)
        entered: list[torch.Tensor] = []
        core.down_blocks[0].resnets[0].register_forward_pre_hook(lambda _, arguments: entered.append(arguments[0]))
        networks.unet(LATENTS, TIMESTEPS, EMBEDS)
        core(POOLED_LATENTS, TIMESTEPS, EMBEDS)
    assert trained.square().mean() < 0.5 * untrained.square().mean()
    torch.testing.assert_close(entered[0], entered[1])


@torch.no_grad()
def test_the_upper_levels_never_see_the_prompt(networks: Networks, core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    confine_prompt(networks.unet)
    grow(core, networks.unet)
    upper = UpperLevels(networks.unet)
    features = torch.randn(ROWS, 96, 16, 16)
    monkeypatch.setattr(upper.core, "features", lambda *_: features)

    torch.testing.assert_close(
        upper(LATENTS, TIMESTEPS, EMBEDS).sample, upper(LATENTS, TIMESTEPS, EMBEDS.flip(0)).sample, rtol=0, atol=0
    )


def test_what_confines_the_prompt_holds_while_training(networks: Networks, core: Core) -> None:
    confine_prompt(networks.unet)
    optimizer = MuonAndAdamW(networks.unet, weight_decay=0.01)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    core(POOLED_LATENTS, TIMESTEPS, EMBEDS).sample.square().mean().backward()
    optimizer.step()

    pooled_prompt = networks.unet.add_embedding(EMBEDS)
    assert pooled_prompt.shape == (ROWS, 128)
    assert not pooled_prompt[:, :64].any()
    assert pooled_prompt[:, 64:].all()
