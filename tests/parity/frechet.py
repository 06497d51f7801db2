"""Reference values for the Fréchet distance of fewstep-metrics, made by NumPy.

Command (from the repository root, in an environment with numpy; written with numpy 2.x, a second on a CPU):

    python tests/parity/frechet.py

It writes tests/parity/frechet.json: a list of cases with two sets of features (float32, row after row), NumPy's mean and
covariance (divisor N-1) of the first, and their distance. The distance is taken the plain way, through the eigenvalues of
the unsymmetric product of the covariances, so that it shares nothing with the way Fewstep takes.
"""

import json
import pathlib

import numpy as np

OUT = pathlib.Path(__file__).with_suffix(".json")


def distance(a: np.ndarray, b: np.ndarray) -> float:
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).astype(complex)).real.sum()
    apart = a.mean(axis=0) - b.mean(axis=0)
    return float(apart @ apart + np.trace(cov_a) + np.trace(cov_b) - 2 * root)


def case(name: str, a: np.ndarray, b: np.ndarray) -> dict:
    # Four digits keep the file small; what the file says is what both sides compute with.
    a, b = (np.float32(np.round(x, 4)).astype(np.float64) for x in (a, b))
    short = lambda x: [float(np.format_float_positional(np.float32(v))) for v in x.ravel()]
    return {
        "name": name,
        "dim": a.shape[1],
        "a": short(a),
        "b": short(b),
        "mean_a": a.mean(axis=0).tolist(),
        "covariance_a": np.cov(a, rowvar=False).ravel().tolist(),
        "distance": distance(a, b),
    }


def main() -> None:
    rng = np.random.default_rng(20)

    def mixed(rows: int, dim: int) -> np.ndarray:
        return rng.standard_normal((rows, dim)) @ rng.standard_normal((dim, dim)) + rng.standard_normal(dim)

    cases = [
        case("full rank", mixed(60, 8), mixed(50, 8)),
        case("after a ReLU", np.maximum(mixed(80, 10), 0), np.maximum(mixed(90, 10), 0)),
        case("fewer samples than dimensions on one side", mixed(9, 16), mixed(60, 16)),
        case("fewer samples than dimensions on both sides", mixed(7, 16), mixed(12, 16)),
        case("far from the origin", mixed(40, 6) + 300, mixed(40, 6) + 302),
    ]
    OUT.write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n", encoding="utf-8")
    print(f"{OUT.name}: {OUT.stat().st_size} bytes")
    for c in cases:
        print(f"{c['name']}: {c['distance']:.9g}")


if __name__ == "__main__":
    main()
