"""Runs a file that `fewstep export RUN --to onnx --examples N` wrote in onnxruntime, and compares with Fewstep's logits.

Written 2026-11-24 with Python 3.11, onnx 1.23.2, onnxruntime 1.32.0, safetensors 0.8.0, on a CPU.

    python tests/parity/onnx_peer.py FILE.onnx FILE.onnx.examples.safetensors

It prints the largest difference of a logit and how many images get another class, with whole batches and image by image. Products are
summed in another order than in libtorch, so a potential within rounding of its threshold can fire in one program and not in the other:
such an image shows in "images with a difference above 1e-3".
"""

import sys

import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import load_file

path, examples = sys.argv[1:]
onnx.checker.check_model(path, full_check=True)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
have = load_file(examples)
images, expected, labels = have["images"], have["logits"], have["labels"]
metadata = session.get_modelmeta().custom_metadata_map
print(f"{path}: input {session.get_inputs()[0].shape}, notes {sorted(metadata)}")
for name, size in [("batches of 100", 100), ("one by one", 1)]:
    take = len(images) if size > 1 else min(len(images), 200)
    parts = [session.run(["logits"], {"image": images[i : i + size]})[0] for i in range(0, take, size)]
    found, wanted = np.concatenate(parts), expected[:take]
    off = np.abs(found - wanted)
    print(
        f"  {name}: {take} images, largest difference {off.max():.2e} (logits up to {np.abs(wanted).max():.2f}), "
        f"images with a difference above 1e-3: {(off.max(1) > 1e-3).sum()}, another class {(found.argmax(1) != wanted.argmax(1)).sum()}, "
        f"accuracy {100 * (found.argmax(1) == labels[:take]).mean():.2f} % against {100 * (wanted.argmax(1) == labels[:take]).mean():.2f} %"
    )
