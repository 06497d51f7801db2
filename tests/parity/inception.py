"""Reference values for the feature networks of fewstep-features and the figures of generation quality.

Command (from the repository root, in an environment with torch, torchvision, pytorch-fid 0.3.0, torch-fidelity 0.4.0, scipy and
safetensors; about two minutes on a CPU):

    python tests/parity/inception.py [path of resnet56-4bfd9763.th]

It writes tests/parity/inception.safetensors. InceptionV3 has random weights that both languages make from the same formula
(`tensor` below), so the file holds only results: features of the first images of two sets, and every figure for the two sets.
Images come from a formula as well (`images`).

* `torch-fidelity/*`: its InceptionV3 with TensorFlow's resize, and its own functions for FID, IS, KID, precision and recall.
* `pytorch-fid/*`: its InceptionV3 with PyTorch's resize, and its own FID through scipy's sqrtm.
* `adm/*`: evaluations/evaluator.py of openai/guided-diffusion needs TensorFlow and its own graph file, so its figures are
  restated in NumPy from the features of `torch-fidelity`, in float32 (the original takes distances in float16 where it can).
* `resnet56/*`: features of the published CIFAR-10 ResNet-56 of akamaster/pytorch_resnet_cifar10, by its definition.
"""

import pathlib
import sys
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

OUT = pathlib.Path(__file__).with_suffix(".safetensors")
COUNT = 12  # images in a set
SHOWN = 3  # images whose features are stored


def mixed(x: np.ndarray) -> np.ndarray:
    """The finaliser of MurmurHash3 on uint32."""
    x = x.astype(np.uint32)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    return x


def seed_of(name: str) -> int:
    """FNV-1a, 32 bits."""
    h = 0x811C9DC5
    for byte in name.encode():
        h = ((h ^ byte) * 0x01000193) & 0xFFFFFFFF
    return h


def tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Uniform in ±1 by hashing name and index, then scaled so that activations neither die nor explode."""
    count = int(np.prod(shape))
    index = np.arange(count, dtype=np.uint32) + np.uint32(seed_of(name))
    u = mixed(index).astype(np.float64) / 2.0**31 - 1.0
    if name == "fc.weight":
        values = u * 0.8
    elif name.endswith("conv.weight"):
        values = u * np.sqrt(6.0 / (count // shape[0]))
    elif name.endswith("running_var"):
        values = 1.0 + 0.3 * u
    elif name.endswith("bn.weight"):
        values = 1.0 + 0.2 * u
    else:
        values = 0.1 * u
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def images(which: int) -> np.ndarray:
    """Set 0 or 1: [COUNT, 32, 32, 3] bytes, blocks of random colours; set 1 has other blocks and less contrast."""
    n, y, x, c = np.meshgrid(np.arange(COUNT), np.arange(32), np.arange(32), np.arange(3), indexing="ij")
    block = 2 + n % 5 + which
    index = ((n * 32 + y // block) * 32 + x // block) * 3 + c + which * 1_000_003
    value = (mixed(index) & np.uint32(255)).astype(np.int64)
    if which == 1:
        value = value * 3 // 4 + 20 * c
    return value.astype(np.uint8)


def state_dict(model: torch.nn.Module) -> dict:
    return {
        name: torch.zeros((), dtype=torch.int64) if name.endswith("num_batches_tracked") else tensor(name, tuple(value.shape))
        for name, value in model.state_dict().items()
    }


def torch_fidelity_features(sets):
    import torch_fidelity.feature_extractor_inceptionv3 as tfi

    wanted = ["2048", "logits_unbiased", "logits"]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "weights.pth"
        empty = tfi.FeatureExtractorInceptionV3.__new__(tfi.FeatureExtractorInceptionV3)
        original = torch.load
        # The class loads its weights while it is made: hand it the formula's once it knows its own shapes.
        load = tfi.FeatureExtractorInceptionV3.load_state_dict
        tfi.FeatureExtractorInceptionV3.load_state_dict = lambda self, _: load(self, state_dict(self))
        torch.save({}, path)
        empty.__init__("inception", wanted, feature_extractor_weights_path=str(path))
        tfi.FeatureExtractorInceptionV3.load_state_dict = load
        assert torch.load is original
    spatial = []
    empty.Mixed_6d.branch1x1.register_forward_hook(lambda _m, _i, out: spatial.append(out.detach()))
    results = []
    for x in sets:
        spatial.clear()
        pool, unbiased, logits = empty(torch.from_numpy(x).permute(0, 3, 1, 2))
        # NHWC as in TensorFlow, and ADM's first 7 channels.
        s = spatial[0][:, :7].permute(0, 2, 3, 1).flatten(1)
        results.append({"pool": pool, "unbiased": unbiased, "logits": logits, "spatial": s})
    return results


def pytorch_fid_features(sets):
    import pytorch_fid.inception as pfi

    pfi.load_state_dict_from_url = lambda *_a, **_k: None
    own = torch.nn.Module.load_state_dict
    torch.nn.Module.load_state_dict = lambda self, _s, **_k: own(self, state_dict(self))
    model = pfi.InceptionV3([3]).eval()
    torch.nn.Module.load_state_dict = own
    return [model(torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255)[0].flatten(1) for x in sets]


def adm_inception_score(logits: np.ndarray, split_size: int) -> float:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    preds = e / e.sum(axis=1, keepdims=True)
    scores = []
    for i in range(0, len(preds), split_size):
        part = preds[i : i + split_size]
        kl = part * (np.log(part) - np.log(np.expand_dims(np.mean(part, 0), 0)))
        scores.append(np.exp(np.mean(np.sum(kl, 1))))
    return float(np.mean(scores))


def adm_precision_recall(reference: np.ndarray, samples: np.ndarray) -> tuple[float, float]:
    def distances(u, v):
        return np.maximum((u * u).sum(1)[:, None] - 2 * u @ v.T + (v * v).sum(1)[None], 0)

    radii_r = np.partition(distances(reference, reference), 3, axis=1)[:, 3]
    radii_s = np.partition(distances(samples, samples), 3, axis=1)[:, 3]
    between = distances(reference, samples)
    precision = (between <= radii_r[:, None]).any(axis=0).mean()
    recall = (between <= radii_s[None]).any(axis=1).mean()
    return float(precision), float(recall)


class LambdaBlock(torch.nn.Module):
    """A basic block of the published ResNet with option A: every second pixel, and zero channels on both sides."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(outside)
        self.conv2 = torch.nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(outside)
        self.pad = 0 if inside == outside else outside // 4

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + x)


class ResNet56(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(16)
        widths = [16, 16, 32, 64]
        for i in (1, 2, 3):
            stage = [LambdaBlock(widths[i - 1], widths[i], 1 if i == 1 else 2)]
            stage += [LambdaBlock(widths[i], widths[i], 1) for _ in range(8)]
            setattr(self, f"layer{i}", torch.nn.Sequential(*stage))
        self.linear = torch.nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return x.mean((2, 3))


def resnet_features(sets, path: pathlib.Path):
    model = ResNet56().eval()
    saved = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("module."): value for name, value in saved.items()})
    mean = torch.tensor([0.485, 0.456, 0.406])[None, :, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[None, :, None, None]
    return [model((torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 - mean) / std) for x in sets]


@torch.no_grad()
def main() -> None:
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    sets = [images(0), images(1)]  # samples, reference
    samples, reference = torch_fidelity_features(sets)
    samples_pf, reference_pf = pytorch_fid_features(sets)
    arrays = {f"torch-fidelity/{name}": value[:SHOWN].numpy().copy() for name, value in samples.items()}
    arrays["pytorch-fid/pool"] = samples_pf[:SHOWN].numpy().copy()

    def statistics(x):
        return fid_features_to_statistics(x)

    def frechet(a, b):
        return fid_statistics_to_metric(statistics(a), statistics(b), False)["frechet_inception_distance"]

    def scipy_frechet(a, b):
        a, b = a.double().numpy(), b.double().numpy()
        return float(
            calculate_frechet_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
        )

    figures = {}
    figures["torch-fidelity/fid"] = frechet(samples["pool"], reference["pool"])
    figures["torch-fidelity/sfid"] = frechet(samples["spatial"], reference["spatial"])
    figures["torch-fidelity/fid-pytorch-resize"] = frechet(samples_pf, reference_pf)
    for splits in (1, 3):
        score = isc_features_to_metric(samples["unbiased"], splits, shuffle=False)
        figures[f"torch-fidelity/inception_score/splits={splits}"] = score["inception_score_mean"]
        figures[f"torch-fidelity/inception_score_std/splits={splits}"] = score["inception_score_std"]
    kid = kid_features_to_metric(
        samples["pool"], reference["pool"], kid_subsets=2, kid_subset_size=COUNT, verbose=False, kid_kernel="poly",
        kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1, rng_seed=2020,
    )
    figures["torch-fidelity/kid"] = kid["kernel_inception_distance_mean"]
    prc = prc_features_to_metric(
        samples["pool"], reference["pool"], prc_neighborhood=3, prc_batch_size=10000, save_cpu_ram=False, verbose=False
    )
    figures["torch-fidelity/precision"] = prc["precision"]
    figures["torch-fidelity/recall"] = prc["recall"]
    figures["adm/inception_score/size=5"] = adm_inception_score(samples["unbiased"].numpy(), 5)
    precision, recall = adm_precision_recall(reference["pool"].numpy(), samples["pool"].numpy())
    figures["adm/precision"], figures["adm/recall"] = precision, recall
    figures["pytorch-fid/fid"] = scipy_frechet(samples_pf, reference_pf)
    if len(sys.argv) > 1:
        samples_r, reference_r = resnet_features(sets, pathlib.Path(sys.argv[1]))
        arrays["resnet56/pool"] = samples_r.numpy()
        figures["resnet56/fd"] = frechet(samples_r, reference_r)
        figures["resnet56/fd-scipy"] = scipy_frechet(samples_r, reference_r)
    for name, value in figures.items():
        print(f"{name}: {value:.9g}")
        arrays[f"figure/{name}"] = np.array([value], dtype=np.float64)
    for name, value in arrays.items():
        if "/" in name and value.ndim == 2:
            print(f"{name}: {value.shape}, mean {value.mean():.5g}, deviation {value.std():.5g}, max {np.abs(value).max():.5g}")
    save_file(arrays, OUT)
    print(f"{OUT.name}: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
