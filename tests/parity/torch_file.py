"""Fixtures for reading files of torch.save (crates/fewstep-torch/src/torch_file): python tests/parity/torch_file.py

Writes tests/parity/torch_file/*.pt and expected.safetensors, which holds `<file>/<tensor>` for each tensor in them; what is
not a tensor is compared in the Rust tests by hand. Made with torch 2.11.0. The older format names storages by address, so
the bytes of the *-legacy.pt differ between runs; their content does not.

    python tests/parity/torch_file.py --check FILE

opens a file with torch.load, restricted to weights (argparse.Namespace is allowed), and prints what is in it. For
tests/parity/torch_file/written.pt, which Fewstep's `save` writes (a Rust test holds it to these bytes), the content is
compared too.
"""

import argparse
import collections
import io
import pathlib
import sys
import zipfile

import torch
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).parent / "torch_file"
TYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64,
    torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def numbers(*shape, dtype=torch.float32):
    n = torch.Size(shape).numel()
    return (torch.arange(n) * 7 % 23 - 11).reshape(shape).to(dtype)


def flat(value, prefix):
    if isinstance(value, torch.Tensor):
        return {prefix: value.detach().contiguous().clone()}
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {}
    return {name: t for k, v in items for name, t in flat(v, f"{prefix}/{k}").items()}


def training_checkpoint():
    """As a training script writes it: two state dicts, an optimiser, its arguments."""
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.Sequential(torch.nn.Linear(4, 2, bias=False))
    )
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(numbers(*p.shape) / (i + 3))
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(numbers(5, 3)).square().mean().backward()
    ema = collections.OrderedDict((k, v * 0.5) for k, v in model.state_dict().items())
    opt.step()
    args = argparse.Namespace(
        model="DiT-XL/2", num_sampling_steps=20, l1=5e-6, ckpt=None, wandb=True, sizes=[1, (2, 3)]
    )
    return {
        "model": model.state_dict(), "ema": ema, "opt": opt.state_dict(), "args": args,
        "dtype": torch.bfloat16, "device": torch.device("cpu"), "parameter": model[0].bias,
    }  # fmt: skip


def views():
    base = numbers(4, 6)
    tied = numbers(5)
    return collections.OrderedDict(
        whole=base, row=base[2], column=base[:, 1], block=base[1:3, 2:5], transposed=base.t(),
        steps=base[::2, ::3], expanded=numbers(3)[:, None].expand(3, 4), scalar=base[3, 5], empty=base[:, 6:],
        none=torch.zeros(0), four=numbers(2, 3, 2, 2).permute(3, 1, 0, 2), tied=tied, tied_again=tied,
    )  # fmt: skip


def repacked(data):
    """The same archive, deflated and in a folder of another name."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            entry = zipfile.ZipInfo("0020000/" + name.split("/", 1)[1])
            new.writestr(entry, old.read(name), zipfile.ZIP_DEFLATED)
    return out.getvalue()


def saved(value, **how):
    out = io.BytesIO()
    torch.save(value, out, **how)
    return out.getvalue()


def main():
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    checkpoint = training_checkpoint()
    types = {str(t).split(".")[1]: numbers(2, 3, dtype=t) for t in TYPES}
    plain = {
        "ints": [0, -1, 255, 256, 65536, -(2**31), 2**40, -(2**63), 2**100],
        "floats": (0.1, float("-inf")), "text": "naïve 文", "bytes": bytes(range(256)), "no bytes": b"",
        "set": {3}, "nested": {1: [None, True, {}]}, "long": list(range(2000)),
    }  # fmt: skip
    legacy = {"_use_new_zipfile_serialization": False}
    files = {
        "checkpoint.pt": (checkpoint, saved(checkpoint)),
        "checkpoint-legacy.pt": (checkpoint, saved(checkpoint, **legacy)),
        "types.pt": (types, saved(types)),
        "types-legacy.pt": (types, saved(types, **legacy)),
        "views.pt": (views(), saved(views())),
        "views-legacy.pt": (views(), saved(views(), **legacy)),
        "views-protocol-5.pt": (views(), saved(views(), pickle_protocol=5)),
        "views-deflated.pt": (views(), repacked(saved(views()))),
        "plain.pt": (plain, saved(plain)),
        "plain-protocol-4.pt": (plain, saved(plain, pickle_protocol=4)),
        "sparse.pt": ({}, saved({"s": torch.eye(2).to_sparse()})),
        "complex.pt": ({}, saved({"c": torch.zeros(2, dtype=torch.complex64)})),
        "quantised.pt": ({}, saved({"q": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)})),
        "conjugated.pt": ({}, saved({"n": torch.zeros(2, dtype=torch.complex64).conj().imag})),
    }
    expected = {}
    for name, (value, data) in files.items():
        (FOLDER / name).write_bytes(data)
        expected.update(flat(value, name.removesuffix(".pt")))
    save_file(expected, FOLDER / "expected.safetensors")


def show(value, indent=""):
    if isinstance(value, dict):
        for k, v in value.items():
            print(f"{indent}{k}:")
            show(v, indent + "  ")
    elif isinstance(value, torch.Tensor):
        print(f"{indent}tensor {list(value.shape)} {value.dtype}")
    else:
        print(f"{indent}{value!r:.200}")


def check(file):
    with torch.serialization.safe_globals([argparse.Namespace]):
        value = torch.load(file, map_location="cpu", weights_only=True)
    show(value)
    if pathlib.Path(file).name != "written.pt":
        return
    for t in TYPES:
        name = str(t).split(".")[1]
        assert torch.equal(value["types"][name], numbers(2, 3, dtype=t)), name
    assert torch.equal(value["transposed"], numbers(3, 4).t()) and value["transposed"].is_contiguous()
    assert value["scalar"].shape == () and value["empty"].shape == (0, 4)
    assert value["args"] == argparse.Namespace(l1=5e-6, model="DiT-XL/2", ckpt=None)
    assert value["dtype"] is torch.bfloat16
    assert value["plain"] == [0, -1, 2**40, -(2**63), 2**100, 0.1, "naïve 文", bytes(range(256)), b"", (), (True,), {1: []}]
    print("written.pt: as expected")


if __name__ == "__main__":
    check(sys.argv[2]) if sys.argv[1:2] == ["--check"] else main()
