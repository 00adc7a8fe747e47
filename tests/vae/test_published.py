"""Autoencoders that diffusers wrote: the same latents and images as from diffusers, and nothing taken on trust."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from lab.errors import Refused
from lab.runtime import Runtime
from tests.vae.test_autoencoder import drawn
from vae import published
from vae.codec import Codec
from vae.latent import Latents
from vae.published import PublishedConfig

CPU = Runtime(torch.device("cpu"))
WEIGHTS = "diffusion_pytorch_model.safetensors"


def kl(**changes: Any) -> Any:
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    shape = {"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 3, **levels}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return diffusers.AutoencoderKL(**(shape | changes)).eval()


def tiny() -> Any:
    widths = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return diffusers.AutoencoderTiny(
            **widths, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1), latent_channels=5
        ).eval()


def saved(model: Any, folder: Path) -> PublishedConfig:
    model.save_pretrained(folder)
    return PublishedConfig(pretrained=str(folder))


def complete(config: PublishedConfig) -> PublishedConfig:
    return config.model_copy(update={"found": published.find(config, allow_download=False)})


def opened(config: PublishedConfig) -> Latents:
    return published.build(complete(config), CPU)


@pytest.mark.parametrize(
    ("scale", "shift", "divisor"),
    [
        ({"scaling_factor": 0.5}, (0, 0, 0), (2, 2, 2)),
        ({"scaling_factor": 0.25, "shift_factor": 0.75}, (0.75, 0.75, 0.75), (4, 4, 4)),
        (
            {"scaling_factor": 0.5, "latents_mean": (1, 2, 3), "latents_std": (3, 2, 1)},
            (1, 2, 3),
            (6, 4, 2),
        ),
        ({}, (0, 0, 0), (1 / 0.18215,) * 3),
    ],
)
def test_latents_and_images_are_those_of_diffusers_in_the_publisher_s_units(
    tmp_path: Path, scale: dict[str, Any], shift: tuple[float, ...], divisor: tuple[float, ...]
) -> None:
    model, images = kl(**scale), drawn(2, 3, 16, 24).float()
    codec: Codec = opened(saved(model, tmp_path))
    with torch.no_grad():
        theirs = model.encode(images).latent_dist
        whole = model.decode(theirs.mean).sample
    mean, std = codec.posterior(images)
    centre, size = (torch.tensor(each, dtype=torch.float32).view(3, 1, 1) for each in (shift, divisor))
    assert (codec.channels, codec.factor, mean.shape) == (3, 2, (2, 3, 8, 12))
    torch.testing.assert_close(mean, (theirs.mean - centre) / size)
    torch.testing.assert_close(std, theirs.std / size)
    torch.testing.assert_close(codec.decode(mean), whole)
    assert not codec.decode(mean).requires_grad


def test_a_tiny_one_has_no_posterior_and_a_factor_of_its_own(tmp_path: Path) -> None:
    model, images = tiny(), drawn(1, 3, 16, 16).float()
    codec = opened(saved(model, tmp_path))
    mean, std = codec.posterior(images)
    with torch.no_grad():
        torch.testing.assert_close(mean, model.encode(images).latents)
        torch.testing.assert_close(codec.decode(mean), model.decode(mean).sample)
    assert (codec.channels, codec.factor, mean.shape, bool(std.any())) == (5, 4, (1, 5, 4, 4), False)


def test_its_own_arithmetic_is_in_the_precision_asked_for_whatever_surrounds_it(tmp_path: Path) -> None:
    config, images = saved(kl(), tmp_path), drawn(1, 3, 16, 16).float()
    exact, _ = opened(config).posterior(images)
    with torch.autocast("cpu", torch.bfloat16):
        within, _ = opened(config).posterior(images)
    rough, _ = opened(config.model_copy(update={"precision": "bf16"})).posterior(images)
    torch.testing.assert_close(within, exact, rtol=0, atol=0)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.1


def test_tiles_are_blended_and_near_the_whole(tmp_path: Path) -> None:
    config, latent = saved(kl(mid_block_add_attention=False), tmp_path), drawn(1, 3, 80, 40).float()
    whole, tiled = (opened(config.model_copy(update={"tile": tile})).decode(latent) for tile in (0, 32))
    assert 0 < (whole - tiled).abs().mean() < 0.05 * whole.std()


def test_other_files_than_the_run_knows_are_refused(tmp_path: Path) -> None:
    config = complete(saved(kl(), tmp_path))
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(Refused, match=r"has other files .* than the run knows"):
        published.build(config, CPU)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    config, path = saved(kl(), tmp_path), tmp_path / WEIGHTS
    tensors = load_file(path)
    tensors.pop("decoder.conv_out.bias")
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(Refused, match=r"do not fit its config.json \(missing decoder.conv_out.bias\)"):
        opened(config)


def test_a_torn_file_is_refused(tmp_path: Path) -> None:
    config, path = saved(kl(), tmp_path), tmp_path / WEIGHTS
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(Refused, match="cannot be loaded"):
        opened(config)


def test_what_is_no_such_autoencoder_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    config, settings = saved(kl(), tmp_path), tmp_path / "config.json"
    told = json.loads(settings.read_text())
    settings.write_text(json.dumps(told | {"_class_name": "UNet2DModel"}))
    with pytest.raises(Refused, match="is of UNet2DModel, not AutoencoderKL or AutoencoderTiny"):
        complete(config)
    settings.write_text(json.dumps(told | {"scaling_factor": 0}))
    with pytest.raises(Refused, match="scaling_factor=0 of the published autoencoder is no positive number"):
        complete(config)
    (tmp_path / WEIGHTS).rename(tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(Refused, match="only safetensors are"):
        complete(config)
    with pytest.raises(Refused, match=r"stage.codec.pretrained=/nowhere: .*runtime.allow_download=true"):
        complete(PublishedConfig(pretrained="/nowhere"))
