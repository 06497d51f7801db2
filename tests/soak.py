#!/usr/bin/env python3
"""Hours of several ranks on one machine, killed at random: nothing may be lost.

Training and a sampling job take turns, each with --ranks processes on loopback. Every few minutes (--every, a range in seconds) one
of them is killed with signal 9. In training the others must stop with a sentence that names the lost rank, and the run goes on with
--resume; in sampling the others must go on, and a job of which nobody is left is started again. At the end of each the weights of all
phases must be those of a run that nobody disturbed, bit for bit, and so must the images. Every line of the log has the time.

Needs Python 3 and nothing else. Example, in the checkout, after `cargo xtask setup` and `cargo build -p fewstep`:

    python3 tests/soak.py --program target/debug/fewstep --minutes 60 --log soak.log
"""

import argparse
import atexit
import hashlib
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Failed(Exception):
    """What must not happen has happened."""


class Log:
    def __init__(self, path):
        self.file = open(path, "a", encoding="utf-8") if path else None
        self.start = time.monotonic()

    def __call__(self, words):
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} {words}"
        for out in filter(None, (sys.stdout, self.file)):
            print(line, file=out, flush=True)


class Ranks:
    """Processes 0, 1, … of one start."""

    alive = set()

    def __init__(self, options, words, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes, self.outputs = [], []
        for rank in range(options.ranks):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": options.ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            output = tempfile.TemporaryFile("w+")
            process = subprocess.Popen(
                [options.program, *words], cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in place.items()}},
            )
            Ranks.alive.add(process)
            self.processes.append(process)
            self.outputs.append(output)

    def running(self):
        return [rank for rank, process in enumerate(self.processes) if process.poll() is None]

    def wait(self, seconds):
        """Whether all ended in time."""
        end = time.monotonic() + seconds
        while self.running():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def said(self, rank):
        self.outputs[rank].seek(0)
        return self.outputs[rank].read().strip()

    def codes(self):
        return [process.poll() for process in self.processes]

    @staticmethod
    def end_all():
        for process in Ranks.alive:
            if process.poll() is None:
                process.kill()


def sums(folder, pattern, of):
    """SHA-256 of each file, by its name."""
    return {str(path.relative_to(folder)): hashlib.sha256(of(path)).hexdigest() for path in sorted(folder.glob(pattern))}


def images(path):
    """The pixels in a shard; its zip container has the time in it."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        return archive.read("arr_0.npy")


class Training:
    name = "training"
    stops = True  # all, when one is lost

    def __init__(self, options):
        words = ["run", str(ROOT / "configs/iir/demo.toml"), "--quiet", "--set", "threads=1", "--set", "name=soak", "--device", "cpu"]
        self.words = [*words, "--rank-timeout", str(options.timeout)]

    def start(self, options, folder):
        resume = ["--resume"] if (folder / "runs/soak").exists() else []
        return Ranks(options, self.words + resume, folder)

    def after_kill(self, log, ranks, victim, options):
        """The others must stop, and name whom they lost."""
        if not ranks.wait(options.timeout + 30):
            raise Failed(f"ranks {ranks.running()} hang after rank {victim} was killed")
        for rank, code in enumerate(ranks.codes()):
            words = ranks.said(rank)
            if rank != victim and code == 0:
                log(f"  rank {rank} had come to its end before")
            elif rank != victim and f"rank {victim} is lost" not in words:
                raise Failed(f"rank {rank} ended with code {code} and said: {words}")
        said = next(ranks.said(rank) for rank in range(options.ranks) if rank != victim)
        log(f"  the others stopped: {said.splitlines()[-1] if said else 'all done'}")

    def done(self, folder):
        return (folder / "runs/soak/summary.json").exists()

    def result(self, folder):
        return sums(folder / "runs/soak/checkpoints", "*/best.safetensors", lambda path: path.read_bytes())


class Sampling:
    name = "sampling"
    stops = False

    def __init__(self, options):
        words = f"sample --checkpoint digits --steps 50 --guidance 1.5 --n {options.images} --chunk 64 --batch 64 --threads 1"
        self.words = [*words.split(), "--device", "cpu", "--quiet", "--out", "images", "--rank-timeout", str(options.timeout)]

    def start(self, options, folder):
        return Ranks(options, self.words, folder)

    def after_kill(self, log, ranks, victim, options):
        """The others must go on."""
        time.sleep(2)
        for rank, code in enumerate(ranks.codes()):
            if rank not in ranks.killed and code not in (None, 0):
                raise Failed(f"rank {rank} ended with code {code} and said: {ranks.said(rank)}")
        log(f"  ranks {ranks.running()} go on")

    def done(self, folder):
        shards = list((folder / "images").glob("images-*.npz"))
        claims = (folder / "images/claims").exists()
        return bool(shards) and not claims

    def result(self, folder):
        return sums(folder / "images", "images-*.npz", images)


def undisturbed(log, kind, options, folder):
    began = time.monotonic()
    ranks = kind.start(options, folder)
    ranks.killed = set()
    if not ranks.wait(3600) or any(ranks.codes()):
        raise Failed(f"an undisturbed {kind.name} ended with {ranks.codes()}: {[ranks.said(r) for r in range(options.ranks)]}")
    found = kind.result(folder)
    log(f"{kind.name}, undisturbed: {time.monotonic() - began:.0f} s, {len(found)} files to compare with")
    return found


def disturbed(log, kind, options, folder, expected, chance):
    """Returns how many were killed."""
    kills = starts = 0
    began = time.monotonic()
    while not kind.done(folder):
        starts += 1
        ranks = kind.start(options, folder)
        ranks.killed = set()
        while ranks.running():
            end = time.monotonic() + chance.uniform(*options.every)
            while ranks.running() and time.monotonic() < end:
                time.sleep(0.05)
            if not ranks.running():
                break
            victim = chance.choice(ranks.running())
            ranks.processes[victim].send_signal(signal.SIGKILL)
            ranks.processes[victim].wait()
            ranks.killed.add(victim)
            kills += 1
            log(f"{kind.name}: rank {victim} killed")
            kind.after_kill(log, ranks, victim, options)
        bad = {rank: ranks.said(rank) for rank, code in enumerate(ranks.codes()) if code and rank not in ranks.killed}
        if bad and not (kind.stops and ranks.killed):
            raise Failed(f"{kind.name}: ranks failed that were not killed: {bad}")
        if starts > 50:
            raise Failed(f"{kind.name} does not come to its end")
    found = kind.result(folder)
    if found != expected:
        differ = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
        raise Failed(f"{kind.name}: {len(differ)} of {len(expected)} files differ from the undisturbed: {sorted(differ)[:5]}")
    torn = [path.name for path in folder.rglob(".writing-*")]
    if torn:
        raise Failed(f"{kind.name}: half-written files are left: {torn}")
    log(f"{kind.name}: done after {starts} starts, {kills} kills, {time.monotonic() - began:.0f} s; all {len(found)} files equal, none torn")
    return kills


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, type=lambda p: str(pathlib.Path(p).resolve()), help="the fewstep binary")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--every", type=float, nargs=2, default=(60, 180), metavar="SECONDS", help="from and to, between kills")
    parser.add_argument("--images", type=int, default=6000, help="of a sampling job")
    parser.add_argument("--timeout", type=int, default=60, help="--rank-timeout of the ranks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", help="a file to write to as well")
    options = parser.parse_args()
    log, chance = Log(options.log), random.Random(options.seed)
    atexit.register(Ranks.end_all)
    kinds = [Training(options), Sampling(options)]
    log(f"soak: {options.ranks} ranks, {options.minutes:g} minutes, a kill every {options.every[0]:g} to {options.every[1]:g} s, seed {options.seed}")
    try:
        with tempfile.TemporaryDirectory(prefix="soak-") as place:
            place = pathlib.Path(place)
            expected = {}
            for kind in kinds:
                folder = place / f"{kind.name}-undisturbed"
                folder.mkdir()
                expected[kind.name] = undisturbed(log, kind, options, folder)
            kills = rounds = 0
            while time.monotonic() - log.start < 60 * options.minutes:
                kind = kinds[rounds % 2]
                folder = place / f"{kind.name}-{rounds}"
                folder.mkdir()
                kills += disturbed(log, kind, options, folder, expected[kind.name], chance)
                shutil.rmtree(folder)
                rounds += 1
            if not kills:
                raise Failed("nobody was killed: the jobs are shorter than --every")
            log(f"soak: passed after {(time.monotonic() - log.start) / 60:.0f} minutes: {rounds} jobs, {kills} kills, nothing lost")
    except Failed as failed:
        log(f"soak: FAILED: {failed}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
