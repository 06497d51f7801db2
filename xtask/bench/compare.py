"""Ours and the Python peers in turn, on a machine that has a bundle of fewstep and Python's torch, and neither Rust nor a checkout.

What `cargo xtask bench dit-xl` and `spiking` do elsewhere: every program once a round, so that a machine that gets busy is unfair to all;
medians over all rounds, interquartile range in brackets, and the ratio ours/peer (below 1: ours is faster). The peers' scripts lie beside
this one. `dit-xl` needs torch alone, `spiking` spikingjelly as well.

Example: python compare.py dit-xl --ours ./run --device cuda:0 --out dit-xl.json
"""

import argparse
import json
import pathlib
import shlex
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
SCRIPTS = {"dit-xl": "sampling_peer.py", "spiking": "spiking_peer.py"}
GRAPHS = "pytorch-compile-graphs"
PEERS = {"dit-xl": ["pytorch", "pytorch-compile", GRAPHS], "spiking": ["spikingjelly"]}


def run(words, who, into):
    """Adds the samples that a program prints to those of its earlier rounds."""
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"error: {who} ended with {done.returncode}; its words are above")
    for line in map(json.loads, (line for line in done.stdout.splitlines() if line.startswith("{"))):
        known = into.setdefault(line["name"], {**line, "ms": []})
        known["ms"] += line["ms"]


def shown(samples):
    if len(samples) < 2:
        return f"{samples[0]:.2f}"
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return f"{statistics.median(samples):.2f} ({high - low:.2f})"


def rows(ours, theirs):
    """One row for each of our cases and what it is compared with."""
    for name, our in ours.items():
        others = {}
        if "against" in our:
            others[our["against"]] = ours[our["against"]]
        elif "beside" in our:
            others = {peer: cases[our["beside"]] for peer, cases in theirs.items() if peer == GRAPHS and our["beside"] in cases}
            others = others or {our["beside"]: ours[our["beside"]]}
        else:
            others = {peer: cases[name] for peer, cases in theirs.items() if peer != GRAPHS and name in cases}
        for other, its in others.items():
            mine, its_ms = statistics.median(our["ms"]), statistics.median(its["ms"])
            row = {"name": name, "ours_ms": our["ms"], "other": other, "other_ms": its["ms"], "ratio": mine / its_ms}
            if "steps" in our:
                row["seconds_an_image"] = mine * our["steps"] / our["batch"] / 1e3
            if "implied_speedup" in our:
                row["speedup"], row["implied_speedup"] = its_ms / mine, our["implied_speedup"]
            for key in ("peak_memory_gib", "device", "precision"):
                if key in our:
                    row[key] = our[key]
            yield row


def main():
    parser = argparse.ArgumentParser(
        description="Ours and the Python peers in turn, without Rust.", epilog="Example: compare.py dit-xl --ours ./run --device cuda:0"
    )
    parser.add_argument("name", choices=SCRIPTS)
    parser.add_argument("--ours", default="./run", help="what starts fewstep [./run]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--steps", action="append", help="for dit-xl; may be repeated [20 and 50]")
    parser.add_argument("--resolution", action="append", help="for dit-xl; may be repeated [256 and 512]")
    parser.add_argument("--batch", default="8", help="for dit-xl")
    parser.add_argument("--model", default="XL/2", help="for dit-xl")
    parser.add_argument("--network", default="vgg9", help="for spiking: vgg9 or vgg16")
    parser.add_argument("--peer", action="append", help="may be repeated [all]")
    parser.add_argument("--out", type=pathlib.Path, help="all rows with all samples, as JSON")
    options = parser.parse_args()
    common = ["--threads=1", f"--samples={options.samples}", f"--warmup={options.warmup}"]
    common += [f"--device={options.device}", f"--precision={options.precision}"]
    if options.name == "dit-xl":
        common += [f"--steps={n}" for n in options.steps or [20, 50]] + [f"--resolution={n}" for n in options.resolution or [256, 512]]
        common += [f"--batch={options.batch}", f"--model={options.model}"]
    if options.name == "spiking":
        common.append(f"--network={options.network}")
    peers = options.peer or PEERS[options.name]
    ours, theirs = {}, {peer: {} for peer in peers}
    for number in range(1, options.rounds + 1):
        print(f"round {number} of {options.rounds}: fewstep", file=sys.stderr)
        run([*shlex.split(options.ours), "bench", options.name, "--json", *common], "fewstep", ours)
        for peer in peers:
            print(f"round {number} of {options.rounds}: {peer}", file=sys.stderr)
            run([sys.executable, HERE / SCRIPTS[options.name], "--peer", peer, *common], peer, theirs[peer])
    all_rows = list(rows(ours, theirs))
    if options.out:
        options.out.write_text(json.dumps({"rows": all_rows, "ours": ours, "theirs": theirs}, indent=1) + "\n")
    print("| case | ours, ms a step | against | its | ratio | that is |\n| --- | ---: | --- | ---: | ---: | --- |")
    for row in all_rows:
        words = [f"{row['seconds_an_image']:.3f} s an image"] if "seconds_an_image" in row else []
        if "implied_speedup" in row:
            words.append(f"{row['speedup']:.2f} x faster, skipped work implies {row['implied_speedup']:.2f}")
        cells = row["name"], shown(row["ours_ms"]), row["other"], shown(row["other_ms"]), f"{row['ratio']:.3f}", "; ".join(words)
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
