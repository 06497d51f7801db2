#!/usr/bin/env python3
"""Starts the fewstep of this bundle on the libtorch of Python's torch.

`./run ARGUMENTS` is `fewstep ARGUMENTS`; `./run --check` says what is here and what is missing. Nothing but Python's standard library
is used, and torch is found without being imported.
"""

import errno
import fcntl
import hashlib
import importlib.util
import io
import json
import os
import platform
import re
import shutil
import sys
import tarfile
import tempfile

HERE = os.path.dirname(os.path.realpath(__file__))
MANIFEST = "bundle.json"
CXX = "libstdc++.so.6"


class Fault(Exception):
    """What is missing, in one sentence."""


def main(arguments):
    bundle, digest = read_manifest()
    check_machine(bundle)
    lib, version = find_libtorch(bundle["torch"])
    check = arguments[:1] == ["--check"]
    if check:
        check_files(bundle)
        say(f"fewstep {bundle['fewstep']}, whole: {HERE}")
        say(f"glibc {glibc()} ({bundle['glibc']} or newer is needed)")
        say(f"torch {version}: {lib}")
    folder = unpack(bundle, f"unpacked-{digest[:12]}")
    program = os.path.join(folder, "fewstep")
    environment = environment_with(lib, os.path.join(folder, "data"))
    if check:
        say(f"unpacked: {folder}")
        say("data sets: " + (", ".join(data_sets(bundle)) or "digits only"))
        sys.stdout.flush()
        arguments = ["devices"]
    try:
        os.execve(program, [program, *arguments], environment)
    except OSError as error:
        hint = " (a disk mounted noexec?); move the bundle to another disk" if error.errno == errno.EACCES else ""
        raise Fault(f"{program} cannot be started: {error.strerror}{hint}")


def say(line):
    print(f"ok    {line}")


def read_manifest():
    """The manifest and its SHA-256, which names the folder that is unpacked to."""
    path = os.path.join(HERE, MANIFEST)
    try:
        with open(path, "rb") as file:
            text = file.read()
        return json.loads(text), hashlib.sha256(text).hexdigest()
    except (OSError, ValueError) as error:
        raise Fault(f"the bundle is damaged: {path} cannot be read ({error}); copy the bundle again")


def glibc():
    """Its version, or None with another C library."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").split()[1]
    except (ValueError, OSError, IndexError):
        return None


def numbers(version):
    return [int(number) for number in version.split(".")]


def check_machine(bundle):
    if platform.machine() != bundle["machine"]:
        raise Fault(f"this machine is {platform.machine()}, and the program is for {bundle['machine']}")
    found, needed = glibc(), bundle["glibc"]
    if found is None:
        raise Fault(f"this system has no glibc, and the program needs {needed} or newer")
    if numbers(found) < numbers(needed):
        raise Fault(f"glibc {found} of this system is too old: the program needs {needed} or newer")


def find_libtorch(wanted):
    """The folder of libtorch's libraries, and its version: of LIBTORCH, else of the torch that this Python would import."""
    root = os.environ.get("LIBTORCH")
    if root:
        what = f"LIBTORCH is {root}"
    else:
        what = f"{sys.executable} has a package torch"
        spec = importlib.util.find_spec("torch")
        if spec is None or not spec.submodule_search_locations:
            raise Fault(
                f"{sys.executable} has no package torch: `python3 -m pip install torch=={wanted}`, or put the Python that "
                "has it first on the PATH"
            )
        root = list(spec.submodule_search_locations)[0]
    lib = os.path.abspath(os.path.join(root, "lib"))
    for name in ["libtorch_cpu.so", "libc10.so"]:
        if not os.path.exists(os.path.join(lib, name)):
            raise Fault(f"{what}, but {lib} has no {name}; torch {wanted} is needed")
    version = version_of(root)
    if version is None:
        raise Fault(f"{what}, but {root} does not say its version; torch {wanted} is needed")
    if version.split("+")[0] != wanted:
        raise Fault(f"{what}, but {root} is torch {version}, and {wanted} is needed: `python3 -m pip install torch=={wanted}`")
    return lib, version


def version_of(root):
    """What a Python package, an official archive or the headers say; None if none is there."""
    for name, pattern in [
        ("version.py", r"^__version__\b[^=]*= *['\"]([^'\"]+)"),
        ("build-version", r"^(\S+)"),
        ("include/torch/headeronly/version.h", r"#define TORCH_VERSION\b[^\"]*\"([^\"]+)"),
    ]:
        try:
            with open(os.path.join(root, name), encoding="utf-8") as file:
                found = re.search(pattern, file.read(), re.MULTILINE)
        except (OSError, ValueError):
            continue
        if found:
            return found[1]
    return None


def environment_with(lib, data):
    environment = dict(os.environ)
    libraries = [lib, *filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":"))]
    # On a system without a C++ library, conda's Python brings one.
    folders = ["/usr/lib64", "/lib64", f"/usr/lib/{platform.machine()}-linux-gnu", "/usr/lib"]
    own = os.path.join(sys.base_prefix, "lib")
    if not any(os.path.exists(os.path.join(folder, CXX)) for folder in folders) and os.path.exists(os.path.join(own, CXX)):
        libraries.append(own)
    environment["LD_LIBRARY_PATH"] = ":".join(libraries)
    # What the user has goes first.
    environment["FEWSTEP_DATA"] = ":".join(filter(None, [os.environ.get("FEWSTEP_DATA"), data]))
    return environment


def data_sets(bundle):
    return [name[len("data-") : -len(".tar.gz")] for name in bundle["archives"] if name.startswith("data-")]


def read_whole(name, entry):
    """A file of the bundle, if it is what was packed."""
    path = os.path.join(HERE, name)
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise Fault(f"the bundle is not whole: {path}: {error.strerror}; copy the bundle again")
    if len(content) != entry["bytes"]:
        raise Fault(f"the bundle is damaged: {path} has {len(content)} bytes instead of {entry['bytes']}; copy the bundle again")
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise Fault(f"the bundle is damaged: {path} is not what was packed (SHA-256); copy the bundle again")
    return content


def check_files(bundle):
    for name, entry in bundle["files"].items():
        # Configs are the user's to change.
        if name.endswith(".toml") and os.path.exists(os.path.join(HERE, name)):
            continue
        read_whole(name, entry)


def unpack(bundle, name):
    """The folder with the program and the data sets, unpacked on first use: in the bundle, or in the user's cache where that is read-only."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    places = [HERE, os.path.join(cache, "fewstep")]
    for place in places:
        if os.path.isdir(os.path.join(place, name)):
            return os.path.join(place, name)
    for place in places:
        try:
            os.makedirs(place, exist_ok=True)
            aside = None
            lock = lock_folder(place, name)
            try:
                whole = os.path.join(place, name)
                if os.path.isdir(whole):  # by another process, while this one waited
                    return whole
                aside = tempfile.mkdtemp(prefix=name + ".", dir=place)
                fill(bundle, aside, place)
                os.chmod(aside, 0o755)
                try:
                    os.rename(aside, whole)
                except OSError:
                    if not os.path.isdir(whole):
                        raise
                return whole
            finally:
                if aside:
                    shutil.rmtree(aside, ignore_errors=True)
                os.close(lock)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise no_room(bundle, place)
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise Fault(f"unpacking into {place} failed: {error}")
    raise Fault(f"there is no place to unpack to: {places[0]} and {places[1]} cannot be written; set XDG_CACHE_HOME to a folder that can")


def lock_folder(place, name):
    """A file descriptor that keeps other starts of this bundle out until it is closed. Clears away what a killed one left."""
    lock = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:
        return lock  # a network disk without locks: each unpacks its own, the first to end wins
    for left in os.listdir(place):
        if left.startswith(name + "."):
            shutil.rmtree(os.path.join(place, left), ignore_errors=True)
    return lock


def no_room(bundle, place):
    needed = sum(bundle["archives"].values())
    free = shutil.disk_usage(place).free
    return Fault(
        f"there is no room to unpack: {needed / 1e6:.0f} MB are needed in {place}, and {free / 1e6:.0f} MB are free; "
        "make room, or move the bundle to another disk"
    )


def fill(bundle, folder, place):
    if shutil.disk_usage(folder).free < sum(bundle["archives"].values()):
        raise no_room(bundle, place)
    print(f"unpacking into {place}, once", file=sys.stderr)
    for name in bundle["archives"]:
        content = read_whole(name, bundle["files"][name])
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            made = set()
            for member in archive:
                path = os.path.join(folder, member.name)
                if os.path.dirname(path) not in made:
                    made.add(os.path.dirname(path))
                    os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as file:
                    shutil.copyfileobj(archive.extractfile(member), file)
                os.chmod(path, member.mode)


if __name__ == "__main__":
    # A folder named torch beside this file is none.
    sys.path = [path for path in sys.path if path not in ("", HERE)]
    try:
        main(sys.argv[1:])
    except Fault as fault:
        sys.exit(f"error: {fault}")
    except KeyboardInterrupt:
        sys.exit(130)
