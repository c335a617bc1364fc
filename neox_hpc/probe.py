"""Facts about the machine that plans: which paths exist and, for a site that is this machine, its shape.  Reads files only."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from neox_hpc.containers import CONTAINERS
from neox_hpc.hostfile import Hostfile, parse_hostfile
from neox_hpc.run_paths import inputs
from neox_hpc.site import ARCHIVE, UNFINISHED, Accelerator, Arch, Site
from neox_hpc.vocabulary import RunConfig

GIB = 2**30
SIF_ARCHES: dict[bytes, Arch] = {b"02": "x86_64", b"04": "aarch64", b"06": "ppc64le"}
"""The architecture in a SIF's header, after 32 bytes of a script, 10 of a magic word, 3 of a version; sylabs/sif, pkg/sif."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """This machine's shape; null: cannot be read."""

    accelerator: Accelerator = "cpu"
    gpu_ids: tuple[str, ...] = ()
    """The devices that this shell may use, as CUDA_VISIBLE_DEVICES names them."""
    cores: int | None = None
    memory_gib: float | None = None
    python: str | None = None
    runtime: str | None = None
    """The container runtime that is on PATH."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was looked up before planning.  Nothing here: unknown, which is a note and no problem."""

    exists: Mapping[str, bool] = field(default_factory=dict)
    """Absolute path -> whether it is there; a path that cannot be known is absent."""
    real: Mapping[str, str] = field(default_factory=dict)
    """Absolute path -> the same without symbolic links, where that differs."""
    machine: Machine = Machine()
    """For a site with ``here: true`` only."""
    vocab_size: int | None = None
    """Tokens of the tokenizer."""
    hostfile: Hostfile | None = None
    """Of a site whose hosts stand in a file."""
    image_arch: Arch | None = None
    """What the image is built for."""
    packages: Mapping[str, bool] = field(default_factory=dict)
    """Optional package -> whether the environment of the ranks has it, where that can be seen from here."""


def probe(
    config: RunConfig,
    site: Site,
    *,
    cwd: Path,
    environ: Mapping[str, str],
    root: Path = Path("/"),
    image: str | None = None,
    bound: Iterable[str] = (),
    hostfiles: Iterable[str] = (),
    packages: Collection[str] = (),
) -> Facts:
    """Look at the paths of the configuration and of the software, and, where the site is this machine, at the machine.

    Args:
        image: the file of the container.
        bound: the paths that it is given.
        hostfiles: where the site's hosts may stand; the first that is there is read.
        packages: to be looked for in the environment of the ranks.
    """
    exists = {path: found for path in wanted_paths(config, site, str(cwd), image) if (found := _exists(path)) is not None}
    machine = read_machine(environ, root) if site.here else Machine()
    real = {path: resolved for path in bound if (resolved := os.path.realpath(path)) != path}
    hostfile = next(filter(None, map(read_hostfile, hostfiles)), None)
    return Facts(
        exists=exists,
        real=real,
        machine=machine,
        vocab_size=read_vocab_size(config, cwd),
        hostfile=hostfile,
        image_arch=read_image_arch(image) if image is not None else None,
        packages=_packages(site, machine, packages) if packages else {},
    )


def _packages(site: Site, machine: Machine, packages: Collection[str]) -> dict[str, bool]:
    """A module or PYTHONPATH may bring what the environment itself lacks: then only what it has is known."""
    python = site.software.interpreter or machine.python
    found = read_packages(Path(python).parent.parent, packages) if python is not None else {}
    brought = bool(site.modules.load) or "PYTHONPATH" in site.env
    return {package: there for package, there in found.items() if there or not brought}


def read_packages(environment: Path, packages: Collection[str]) -> dict[str, bool]:
    """Which packages a virtual or conda environment has, by pip's records; nothing of what it may have from elsewhere."""
    folders = list(environment.glob("lib/python3*/site-packages"))
    records = {path.name.partition("-")[0].lower() for folder in folders for path in folder.glob("*.dist-info")}
    apart = "include-system-site-packages = false" in _text(environment / "pyvenv.cfg") or (environment / "conda-meta").is_dir()
    found = {package: package.replace("-", "_").lower() in records for package in packages}
    return {package: there for package, there in found.items() if there or (folders and apart)}


def wanted_paths(config: RunConfig, site: Site, cwd: str, image: str | None) -> list[str]:
    """The paths of which the plan wants to know whether they are there."""
    wanted = [file for path in inputs(config, cwd) for file in path.files]
    software = site.software
    venv = software.venv and [f"{software.venv}/{UNFINISHED}", *([f"{software.venv}{ARCHIVE}"] if site.stage.env else [])]
    return wanted + [path for path in (software.interpreter, *(venv or ()), image) if path]


def read_hostfile(path: str) -> Hostfile | None:
    """A hostfile, if it is there."""
    try:
        return parse_hostfile(Path(path).read_text(encoding="utf-8", errors="replace"), path)
    except OSError:
        return None


def read_vocab_size(config: RunConfig, cwd: Path) -> int | None:
    """Tokens of the tokenizer's file, before padding: a tokenizer.json with its added tokens, or GPT-2's vocab.json."""
    keys = config.tokenizer
    if keys.tokenizer_type == "CharLevelTokenizer":
        return 512
    if keys.vocab_file is None:
        return None
    try:
        written = json.loads((cwd / keys.vocab_file).read_text(encoding="utf-8"))
        if keys.tokenizer_type == "GPT2BPETokenizer":
            return len(written)
        vocab = written["model"]["vocab"]  # token -> id; a unigram's is a list of [token, score]
        known = set(vocab) if isinstance(vocab, dict) else {token for token, _ in vocab}
        return len(known | {token["content"] for token in written.get("added_tokens", ())})
    except (OSError, ValueError, KeyError, TypeError):  # no such tokenizer: the plan says that the size is not known
        return None


def read_image_arch(path: str) -> Arch | None:
    """What an image is built for, as its header says; unknown for what is no SIF."""
    try:
        with open(path, "rb") as file:
            header = file.read(48)
    except OSError:
        return None
    return SIF_ARCHES.get(header[45:47]) if header[32:41] == b"SIF_MAGIC" else None


def read_machine(environ: Mapping[str, str], root: Path = Path("/")) -> Machine:
    """GPUs from /dev and /sys, cores and memory from /proc, both cut to what the control group allows."""
    nvidia = sum(1 for path in _listed(root / "dev") if re.fullmatch(r"nvidia\d+", path.name))
    amd = 0 if nvidia else _amd_gpus(root)
    accelerator: Accelerator = "cuda" if nvidia else "rocm" if amd else "cpu"
    return Machine(
        accelerator=accelerator,
        gpu_ids=_visible(nvidia or amd, environ),
        cores=_cores(root),
        memory_gib=_memory_gib(root),
        python=sys.executable or None,
        runtime=_runtime(environ),
    )


def _exists(path: str) -> bool | None:
    try:
        return Path(path).exists()
    except OSError:  # no permission on a folder above it
        return None


def _runtime(environ: Mapping[str, str]) -> str | None:
    folders = [folder for folder in environ.get("PATH", "").split(os.pathsep) if folder]
    return next((name for name in CONTAINERS if any(os.access(f"{folder}/{name}", os.X_OK) for folder in folders)), None)


def _visible(gpus: int, environ: Mapping[str, str]) -> tuple[str, ...]:
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        if gpus and name in environ:
            return tuple(part.strip() for part in environ[name].split(",") if part.strip() not in ("", "-1"))
    return tuple(str(index) for index in range(gpus))


def _amd_gpus(root: Path) -> int:
    """KFD lists CPUs as nodes too; those have no SIMD units."""
    nodes = (_text(node / "properties") for node in _listed(root / "sys/class/kfd/kfd/topology/nodes"))
    return sum(1 for text in nodes if (found := re.search(r"^simd_count (\d+)", text, re.MULTILINE)) and int(found[1]))


def _cores(root: Path) -> int | None:
    """Logical CPUs that this process may use."""
    found = re.search(r"^Cpus_allowed_list:\s*(\S+)", _text(root / "proc/self/status"), re.MULTILINE)
    if found is None:
        return None
    cpus = 0
    for part in found[1].split(","):
        first, _, last = part.partition("-")
        cpus += int(last or first) - int(first) + 1
    quota = _text(root / "sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0] != "max":
        cpus = min(cpus, max(1, int(quota[0]) // int(quota[1])))
    return cpus


def _memory_gib(root: Path) -> float | None:
    found = re.search(r"^MemTotal:\s*(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    if found is None:
        return None
    size = int(found[1]) * 1024
    limit = _text(root / "sys/fs/cgroup/memory.max").strip()
    return round(min(size, int(limit)) / GIB if limit.isdigit() else size / GIB, 1)


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
