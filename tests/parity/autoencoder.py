"""Reference values for Fewstep's autoencoders: diffusers' AutoencoderKL and the tiny autoencoder (TAESD).

Written 2026-11-23 with Python 3.11, torch 2.11.0, diffusers 0.42, safetensors 0.8.0, on a CPU; 5 seconds. From the
repository root, with taef2_encoder.pth and taef2_decoder.pth (github.com/madebyollin/taesd) under $FEWSTEP_DATA/weights
or ../shared/data/weights:

    python tests/parity/autoencoder.py

writes tests/parity/autoencoder.safetensors. Nothing in it comes from Fewstep. float32; a float64 run differs by at most
`deviation` of a tensor's largest element (metadata).

`kl/...`: diffusers.AutoencoderKL itself on random weights, the structure of Stable Diffusion's (resnet blocks, mid-block
attention, asymmetric padding in the downsampler, quant_conv, post_quant_conv) with two levels of 8 and 16 channels, one
layer each (two in the decoder), 4 groups, 4 latent channels: latents have half the image's size.

| tensor | shape | |
| --- | --- | --- |
| `kl/model/<key>` | | weights, diffusers' names (attention `to_q`, `to_k`, `to_v`, `to_out.0`) |
| `kl/image` | [2,3,16,24] | about N(0, 0.5), the range is [-1, 1] |
| `kl/mean`, `kl/logvar` | [2,4,8,12] | of the posterior; logvar clamped to [-30, 20]. No scaling factor |
| `kl/latent`, `kl/decoded` | [2,4,8,12], [2,3,16,24] | input and output of the decoder (post_quant_conv included) |

`tiny/<form>/...`: TAESD in our own words. `sd` (SD, SDXL, SD3 and FLUX.1 differ only in the latent channels) and `flux2`,
whose three mid blocks in each half add a branch to their input: x + conv1x1(relu(group_norm(conv1x1(x), 4 groups))), from
the width to four times the width and back, no biases in the convolutions. The published width is 64; here 4, random
weights, 4 latent channels.

| tensor | shape | |
| --- | --- | --- |
| `tiny/<form>/{encoder,decoder}/<key>` | | weights under the published files' names (`1.conv.0.weight`, ...) |
| `tiny/<form>/image`, `tiny/<form>/encoded` | [1,3,32,40], [1,4,4,5] | image in [0, 1] |
| `tiny/<form>/latent`, `tiny/<form>/decoded` | [1,4,4,5], [1,3,32,40] | not clamped to [0, 1] |

`taef2/image`, `taef2/encoded`, `taef2/latent`, `taef2/decoded`: the same with the published FLUX.2 weights (stored in
float16, computed in float32), 32 latent channels; the weights are not in the file. `taef2/latent` is `taef2/encoded` with
noise; the decoder bends latents by 3 tanh(x / 3) first.

Images of the tiny autoencoder are in [0, 1], as its repository has it; diffusers' AutoencoderTiny converts from and to
[-1, 1] around the same layers. The metadata key `fewstep` is JSON: versions, seed, the configurations, `deviation`, and
SHA-256 of the two published files.
"""

import hashlib
import json
import math
import os
import pathlib

import diffusers
import torch
import torch.nn as nn
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).with_suffix(".safetensors")
DATE, SEED = "2026-11-23", 9
KL = dict(
    in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
    down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16,
)

# -------------------------------------------------------------------------------------------------- the tiny autoencoder


def conv3(inputs, outputs, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Squash(nn.Module):
    def forward(self, x):
        return 3 * torch.tanh(x / 3)


class Block(nn.Module):
    """Three 3x3 convolutions around a residual, ReLU after the sum; `pooled` is FLUX.2's extra branch."""

    def __init__(self, width, pooled=False):
        super().__init__()
        self.conv = nn.Sequential(conv3(width, width), nn.ReLU(), conv3(width, width), nn.ReLU(), conv3(width, width))
        self.pool = None
        if pooled:
            wide = 4 * width
            into, back = nn.Conv2d(width, wide, 1, bias=False), nn.Conv2d(wide, width, 1, bias=False)
            self.pool = nn.Sequential(into, nn.GroupNorm(4, wide), nn.ReLU(), back)

    def forward(self, x):
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


def tiny_encoder(width, latent, pooled):
    layers = [conv3(3, width), Block(width)]
    for level in range(3):
        layers += [conv3(width, width, stride=2, bias=False), *(Block(width, pooled and level == 2) for _ in range(3))]
    return nn.Sequential(*layers, conv3(width, latent))


def tiny_decoder(width, latent, pooled):
    layers = [Squash(), conv3(latent, width), nn.ReLU()]
    for level in range(3):
        layers += [Block(width, pooled and level == 0) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), conv3(width, width, bias=False)]  # nearest
    return nn.Sequential(*layers, Block(width), conv3(width, 3))


# ------------------------------------------------------------------------------------------------------------ the fixture


@torch.no_grad()
def randomise(module, g):
    """Weights that keep activations alive through ReLUs, norms that are not the identity."""
    for name, tensor in module.state_dict().items():
        if tensor.dim() > 1:
            tensor.normal_(0, 1.2 / math.sqrt(tensor[0].numel()), generator=g)
        else:
            tensor.normal_(1.0 if name.endswith("weight") else 0.0, 0.2, generator=g)
    return module.eval()


def test_image(height, width, g):
    """[1,3,H,W] in [0,1]: waves of another direction in each channel, an edge, some noise."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    waves = torch.stack([torch.sin(7 * x + 2 * y), torch.sin(3 * x - 8 * y), torch.cos(5 * x * y + 4 * y)])
    noise = 0.1 * torch.randn(3, height, width, generator=g)
    return (0.5 + 0.3 * waves + 0.25 * (x > 0.6) * (y < 0.5) + noise).clamp(0, 1)[None]


def published(name):
    for root in filter(None, (os.environ.get("FEWSTEP_DATA"), OUT.parents[3] / "shared" / "data")):
        path = pathlib.Path(root) / "weights" / name
        if path.exists():
            return path
    raise SystemExit(f"{name} is neither under $FEWSTEP_DATA/weights nor under ../shared/data/weights")


def load_published(module, name):
    module.load_state_dict({k: v.float() for k, v in torch.load(published(name), weights_only=True).items()})
    return module.eval()


def kl_outputs(model, image, latent):
    posterior = model.encode(image).latent_dist
    return {"mean": posterior.mean, "logvar": posterior.logvar, "decoded": model.decode(latent).sample}


def tiny_outputs(encoder, decoder, image, latent):
    return {"encoded": encoder(image), "decoded": decoder(latent)}


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    diffusers.logging.set_verbosity_error()
    g = torch.Generator().manual_seed(SEED)
    tensors, deviation = {}, {}

    def record(prefix, run, modules, image, latent):
        single = run(*modules, image, latent)
        double = run(*(m.double() for m in modules), image.double(), latent.double())
        for key, value in double.items():
            deviation[f"{prefix}/{key}"] = ((single[key] - value).abs().max() / value.abs().max()).item()
            assert deviation[f"{prefix}/{key}"] < 1e-5 and value.std() > 1e-2, (prefix, key, value.std())
        for key, value in ({"image": image, "latent": latent} | single).items():
            tensors[f"{prefix}/{key}"] = value
        for module in modules:
            module.float()  # the weights were float32 and are so again, unchanged

    kl = randomise(diffusers.AutoencoderKL(**KL), g)
    record("kl", kl_outputs, [kl], torch.randn(2, 3, 16, 24, generator=g) * 0.5, torch.randn(2, 4, 8, 12, generator=g))
    tensors |= {f"kl/model/{key}": value for key, value in kl.state_dict().items()}

    for form, pooled in (("sd", False), ("flux2", True)):
        halves = {"encoder": tiny_encoder(4, 4, pooled), "decoder": tiny_decoder(4, 4, pooled)}
        modules = [randomise(module, g) for module in halves.values()]
        record(f"tiny/{form}", tiny_outputs, modules, test_image(32, 40, g), 2 * torch.randn(1, 4, 4, 5, generator=g))
        for half, module in halves.items():
            tensors |= {f"tiny/{form}/{half}/{key}": value for key, value in module.state_dict().items()}

    encoder = load_published(tiny_encoder(64, 32, True), "taef2_encoder.pth")
    decoder = load_published(tiny_decoder(64, 32, True), "taef2_decoder.pth")
    image = test_image(32, 40, g)
    encoded = encoder(image)
    record("taef2", tiny_outputs, [encoder, decoder], image, encoded + 0.1 * torch.randn(encoded.shape, generator=g))

    digests = {n: hashlib.sha256(published(n).read_bytes()).hexdigest() for n in ("taef2_encoder.pth", "taef2_decoder.pth")}
    meta = {
        "made_by": "tests/parity/autoencoder.py", "date": DATE, "seed": SEED, "torch": torch.__version__,
        "diffusers": diffusers.__version__, "kl": KL, "tiny": {"width": 4, "latent_channels": 4, "forms": ["sd", "flux2"]},
        "taef2": {"width": 64, "latent_channels": 32, "sha256": digests}, "deviation": deviation,
    }
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, OUT, {"fewstep": json.dumps(meta)})
    print(f"{OUT.name}: {OUT.stat().st_size} bytes, deviation {max(deviation.values()):.1e}")


if __name__ == "__main__":
    main()
