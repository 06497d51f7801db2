"""The networks of `cargo xtask bench events` by onnxruntime and libtorch.

* onnxruntime: the ANN of the same architecture (ReLU in place of spikes). Cases named fp32 run it as it is, cases named int8
  after static quantisation, per channel, calibrated on 32 images of noise. Quantised files are made in both formats (QDQ, QOperator) with
  unsigned and signed activations; each case takes whichever runs it fastest here. All graph optimisations are on.
* libtorch: the spiking network at one timestep, run densely (convolution, greater, average pool), without gradients: eager in either memory
  format, or traced, frozen and optimised for inference; again the fastest.

Weights are random: the time of dense arithmetic does not depend on them (subnormal numbers apart, which these networks do not
make). Networks: VGG16 for CIFAR with two hidden layers of 4096, and the ResNet20 of the IIR-SNN code.

Standard output gets one line of JSON a case: {"name", "peer", "ms", "threads", "batch", "variant"}. With `--cold`, one line on a fresh process:
{"name", "peer", "threads", "file_bytes", "resident_before_bytes", "resident_bytes", "open_ms", "cold_ms"}: resident memory when the library is
imported and after the first result; `open_ms` is for opening the file, `cold_ms` from opening to the first result.

Example: python xtask/bench/events_peer.py --peer onnxruntime --models /tmp/models --threads 1
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

SIDE, CLASSES, HIDDEN, CALIBRATION = 32, 10, 4096, 32
VGG16 = [64, 64, "A", 128, 128, "A", 256, 256, 256, "A", 512, 512, 512, "A", 512, 512, 512]
BLOCKS = [2, 2, 2, 2]  # of ResNet20, in stages of 64, 128, 256, 512 channels
NETWORKS = ["vgg16", "resnet20"]
BATCHES = [1, 32]
# Quantised files: (format, activations). Weights are signed.
FORMATS = [(form, kind) for form in ("qdq", "qoperator") for kind in ("u8", "s8")]
TRIALS = 5  # runs of each variant before the fastest is chosen
REPEATS = {1: 10, 32: 1}  # timed runs of a batch for each sample asked for


def network(name, conv, fire, pool, flatten, linear, add):
    """Builds `name` from one library's operators; each takes a value and returns one."""

    def stage(x, channels, width, stride=1):
        return fire(conv(x, channels, width, 3, stride)), width

    x, channels, side = None, 3, SIDE
    if name == "vgg16":
        for step in VGG16:
            if step == "A":
                x, side = pool(x), side // 2
            else:
                x, channels = stage(x, channels, step)
        x, features = flatten(x), channels * side * side
        for _ in range(2):
            x, features = fire(linear(x, features, HIDDEN)), HIDDEN
        return linear(x, features, CLASSES)
    for _ in range(3):
        x, channels = stage(x, channels, 64)
    x, side = pool(x), side // 2
    for number, count in enumerate(BLOCKS):
        width = 64 << number
        for block in range(count):
            stride = 2 if number > 0 and block == 0 else 1
            shortcut = x if channels == width else conv(x, channels, width, 1, stride)
            x, _ = stage(x, channels, width, stride)
            x = fire(add(conv(x, width, width, 3, 1), shortcut))
            channels, side = width, side // stride
    return linear(flatten(x), channels * side * side, CLASSES)


def onnx_model(name):
    """The ANN as an ONNX model with a free batch size."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng, nodes, weights = np.random.default_rng(0), [], []

    def node(operator, *inputs, **attributes):
        output = "logits" if attributes.pop("last", False) else f"v{len(nodes)}"
        nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def weight(*shape):
        values = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{len(weights)}"))
        return weights[-1].name

    def conv(x, inputs, outputs, kernel, stride):
        pads = [kernel // 2] * 4
        w = weight(outputs, inputs, kernel, kernel)
        return node("Conv", x or "image", w, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)

    network(
        name,
        conv=conv,
        fire=lambda x: node("Relu", x),
        pool=lambda x: node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]),
        flatten=lambda x: node("Flatten", x),
        linear=lambda x, i, o: node("Gemm", x, weight(o, i), transB=1, last=o == CLASSES),
        add=lambda x, y: node("Add", x, y),
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        name,
        [value("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [value("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def images(batch):
    return np.random.default_rng(1).normal(size=(batch, 3, SIDE, SIDE)).astype(np.float32)


def file(folder, name, precision, variant=None):
    return folder / ("-".join([name, precision, *(variant or [])]) + ".onnx")


def make(folder, name):
    """Writes the files that `folder` lacks."""
    import logging

    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.disable(logging.WARNING)  # it advises to pre-process what has been pre-processed

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = iter({"image": image[None]} for image in images(CALIBRATION))

        def get_next(self):
            return next(self.left, None)

    folder.mkdir(parents=True, exist_ok=True)

    def write(path, action):
        if not path.exists():
            half = path.with_suffix(".half")
            action(half)
            half.rename(path)

    plain = file(folder, name, "fp32")
    write(plain, lambda half: onnx.save(onnx_model(name), half))
    ready = file(folder, name, "shapes")
    write(ready, lambda half: quant_pre_process(plain, half, skip_symbolic_shape=True))
    for variant in FORMATS:
        form, kind = variant
        write(
            file(folder, name, "int8", variant),
            lambda half: quantize_static(
                ready,
                half,
                Reader(),
                quant_format=QuantFormat.QDQ if form == "qdq" else QuantFormat.QOperator,
                per_channel=True,
                activation_type=QuantType.QUInt8 if kind == "u8" else QuantType.QInt8,
                weight_type=QuantType.QInt8,
            ),
        )


def session(path, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def onnxruntime_cases(options):
    """Each case with its variants: (name, batch, {variant: a function that makes the function to time})."""

    def runner(path, batch):
        opened, feed = session(path, options.threads), {"image": images(batch)}
        return lambda: opened.run(None, feed)[0]

    for name in NETWORKS:
        make(options.models, name)
        for precision, variants in {"fp32": [None], "int8": FORMATS}.items():
            for batch in BATCHES:
                makers = {
                    "-".join(v or ["fp32"]): lambda v=v: runner(file(options.models, name, precision, v), batch)
                    for v in variants
                }
                yield f"{name}-{precision}-b{batch}", batch, makers


def libtorch_cases(options):
    """As `onnxruntime_cases`, fp32 alone."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(options.threads)

    class Snn(nn.Module):
        """Its operators read the weights in the order in which the first pass made them."""

        def __init__(self, name):
            super().__init__()
            self.name, self.weights = name, nn.ParameterList()
            self.making = True
            with torch.inference_mode(False), torch.no_grad():
                self(torch.zeros(1, 3, SIDE, SIDE))
            self.making = False

        def forward(self, image):
            left = iter(self.weights)

            def weight(*shape):
                if not self.making:
                    return next(left)
                w = nn.Parameter(torch.randn(shape) * (2 / np.prod(shape[1:])) ** 0.5, requires_grad=False)
                self.weights.append(w)
                return w

            return network(
                self.name,
                conv=lambda x, i, o, k, s: F.conv2d(image if x is None else x, weight(o, i, k, k), None, s, k // 2),
                fire=lambda x: (x > 0.5).to(x.dtype),
                pool=lambda x: F.avg_pool2d(x, 2),
                flatten=lambda x: x.flatten(1),
                linear=lambda x, i, o: F.linear(x, weight(o, i)),
                add=lambda x, y: x + y,
            )

    def runner(name, batch, form):
        torch.manual_seed(0)
        net, x = Snn(name).eval(), torch.from_numpy(images(batch))
        if form == "channels-last":
            net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
        if form == "frozen":
            net = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(net, x)))

        def run():
            with torch.inference_mode():
                return net(x).numpy()

        return run

    for name in NETWORKS:
        for batch in BATCHES:
            forms = ("contiguous", "channels-last", "frozen")
            yield f"{name}-fp32-b{batch}", batch, {f: lambda f=f: runner(name, batch, f) for f in forms}


PEERS = {"onnxruntime": onnxruntime_cases, "libtorch": libtorch_cases}


def timed(run, samples):
    """Milliseconds of each run, and the last result."""
    times = []
    for _ in range(samples):
        start = time.perf_counter()
        result = run()
        times.append(round((time.perf_counter() - start) * 1e3, 4))
    return times, result


def fastest(makers, warmup):
    """The variant with the smallest median of a few runs, ready to run, and the median of each."""
    best, medians = None, {}
    for variant, maker in makers.items():
        run = maker()
        timed(run, 1 + warmup)
        medians[variant] = float(np.median(timed(run, TRIALS)[0]))
        if best is None or medians[variant] < medians[best[0]]:
            best = variant, run
    return *best, medians


def resident_bytes():
    with open("/proc/self/statm") as status:
        return int(status.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cold(path, threads):
    """What a fresh process spends on one image."""
    import onnxruntime  # noqa: F401  (the library is there before the clock starts)

    image, before = images(1), resident_bytes()
    start = time.perf_counter()
    opened = session(path, threads)
    half = time.perf_counter()
    result = opened.run(None, {"image": image})[0]
    end = time.perf_counter()
    check(path.name, result)
    return {
        "file_bytes": path.stat().st_size,
        "resident_before_bytes": before,
        "resident_bytes": resident_bytes(),
        "open_ms": (half - start) * 1e3,
        "cold_ms": (end - start) * 1e3,
    }


def check(name, result):
    if not np.isfinite(result).all():
        sys.exit(f"{name}: the scores are not finite; the measurement is void")


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def main():
    parser = argparse.ArgumentParser(
        description="Times VGG16 and ResNet20 by onnxruntime or libtorch.",
        epilog="Example: events_peer.py --peer libtorch --models /tmp/models --threads 1 --case vgg16-fp32-b1",
    )
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--models", type=Path, required=True, help="folder of the ONNX files; made where absent")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--samples", type=positive, default=3, help="timed runs of batch 32; batch 1 has ten times as many")
    parser.add_argument("--warmup", type=int, default=1, help="runs before the timed ones")
    parser.add_argument("--case", default="", help="only cases that start so")
    parser.add_argument("--cold", metavar="FILE", help="a file in the folder, opened and run once in this process")
    options = parser.parse_args()

    def report(line):
        print(json.dumps({**line, "peer": options.peer, "threads": options.threads}), flush=True)

    if options.cold:
        path = options.models / options.cold
        report({"name": path.stem, **cold(path, options.threads)})
        return
    for name, batch, makers in PEERS[options.peer](options):
        if name.startswith(options.case):
            variant, run, medians = fastest(makers, options.warmup)
            ms, result = timed(run, options.samples * REPEATS[batch])
            check(name, result)
            report({"name": name, "ms": ms, "batch": batch, "variant": variant, "variants_ms": medians})


if __name__ == "__main__":
    main()
