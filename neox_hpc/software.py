"""What the ranks run in, decided: a Python of the machine or one in a container, and what the job sets up for it.  Reads nothing.

Changes when there is another way to bring torch and DeepSpeed to the ranks.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from neox_hpc.containers import CONTAINERS, INNER_PREFIX, NO_EVAL, Bind, Container, is_fetched
from neox_hpc.launchers import Shell, Step, split_args
from neox_hpc.probe import Facts
from neox_hpc.request import Request
from neox_hpc.run_paths import inputs, outputs
from neox_hpc.site import ARCHIVE, Site
from neox_hpc.vocabulary import RunConfig
from neox_hpc.words import expanding, joined

MISSING_SOFTWARE = "MISSING_SOFTWARE"
NO_CONTAINER = "none"
"""``--container none``: not the site's image either."""
CODE_ARCHIVE = Shell("$NEOX_HPC_ATTEMPT_DIR/code.tar")
STAGED_CODE = Shell("$staged/code")
"""$staged: the job's own name on every node's disk (templates/stage.sh.j2)."""
JOB_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NEOX_HPC_ATTEMPT_DIR", "PYTHONDONTWRITEBYTECODE")
OF_THE_NODE = ("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD")
"""They name files of the node, which a container does not have; Apptainer and Singularity leave the first two out by themselves."""


@dataclass(frozen=True, kw_only=True)
class Software:
    """What the ranks run in."""

    python: str
    told: str
    """In words: ``virtual environment /x``, ``image /y.sif in apptainer``."""
    use: tuple[str, ...] = ()
    """Directories of modules."""
    modules: tuple[str, ...] = ()
    """Loaded first, in this order."""
    env: tuple[tuple[str, str], ...] = ()
    """Exported after the site's variables."""
    conda: str | None = None
    """The environment whose activation scripts are sourced: conda packages set variables in them that their libraries need."""
    folders: tuple[str, ...] = ()
    """Made before the start: a container can be given only a directory that exists."""
    container: tuple[str, ...] = ()
    """The argv in front of Python."""
    image: str | None = None
    home: str | None = None
    """The directory of the environment."""
    staged: tuple[tuple[str, str], ...] = ()
    """What every node copies to its own disk: kind (image, code, env) and file."""
    disk: str = ""
    """The job's own name there."""

    @property
    def stage_variables(self) -> tuple[str, ...]:
        """What templates/stage.sh.j2 exports, and the start that copies needs on every node."""
        own = ("PATH", "VIRTUAL_ENV") if any(kind == "env" for kind, _ in self.staged) else ()
        return ("staged", *(f"{kind}_sum" for kind, _ in self.staged), *own) if self.staged else ()


def image_of(site: Site, request: Request) -> str | None:
    """The image that the ranks run in: ``--container``, else the site's; a relative path counts from the submit directory."""
    image = request.container
    if image is None:
        return site.container.image
    if image == NO_CONTAINER:
        return None
    return image if site.container.runtime == "docker" or is_fetched(image) else os.path.normpath(os.path.join(request.cwd, image))


def has_software(site: Site) -> bool:
    """Whether the site says what the ranks run in outside of a container."""
    return site.software.interpreter is not None or site.software.module is not None


def stage_step(step: Step, software: Software) -> Step:
    """The start that copies, once a node; the words are those of templates/stage.sh.j2."""
    words = (word for kind, file in software.staged for word in (kind, file, Shell(f"${kind}_sum")))
    return _once_a_node(step, *words)


def unstage_step(step: Step) -> Step:
    """The start that takes the copies away."""
    return _once_a_node(step)


def _once_a_node(step: Step, *words: str) -> Step:
    program = ("sh", Shell("$NEOX_HPC_ATTEMPT_DIR/stage.sh"), Shell("$staged"), *words)
    return replace(
        step, ranks_per_node=1, cores_per_rank=None, cpus_per_rank=None, cpu_masks=None, gpus_visible="all", program=program
    )


def choose_software(config: RunConfig, site: Site, request: Request, facts: Facts, exported: Iterable[str]) -> Software:
    """The image if one is named and the site has a runtime; else the site's Python, environment or module.

    Args:
        exported: the variables that the job sets; a container gets them.
    """
    image, runtime = image_of(site, request), site.container.runtime
    use, modules, own = site.modules.use, site.modules.load, site.software
    if image is not None and runtime is not None:
        return _in_container(config, site, request, facts, image, runtime, exported)
    if image is not None:
        return Software(python=MISSING_SOFTWARE, told=f"image {image}, and no runtime for it", use=use, modules=modules)
    chosen = Software(python=own.interpreter or "python3", told="none", use=use, modules=modules)
    if own.venv is not None:
        chosen = replace(chosen, told=f"virtual environment {own.venv}", env=_activated("VIRTUAL_ENV", own.venv), home=own.venv)
    elif own.conda is not None:
        chosen = replace(chosen, told=f"conda environment {own.conda}", env=_activated("CONDA_PREFIX", own.conda), conda=own.conda)
    elif own.module is not None:
        chosen = replace(chosen, told=f"module {own.module}", modules=(*modules, own.module))
    elif own.python is not None:
        chosen = replace(chosen, told=f"Python {own.python}", home=os.path.dirname(os.path.dirname(own.python)))
    else:
        chosen = replace(chosen, python=MISSING_SOFTWARE)
    return _staged(chosen, site)


def _disk(site: Site) -> str:
    """The name that a job's copies begin with on a node."""
    return joined(expanding(site.node.local_disk or ""), "/neox-hpc-", Shell("$job.$attempt"))


def _staged(chosen: Software, site: Site) -> Software:
    """The same from copies on the node's own disk.

    A virtual environment finds itself by where its Python stands, so a copy works as long as it is that Python that is called; only
    its other programs name the place where they were installed.
    """
    chosen = replace(chosen, disk=_disk(site))
    if site.stage.env is not None and site.software.venv is not None:
        archive = ("env", f"{site.software.venv}{ARCHIVE}")
        chosen = replace(chosen, python=Shell("$staged/env/bin/python"), staged=(*chosen.staged, archive))
    if site.stage.code is not None:
        enter = ("sh", "-c", 'cd "$0" && exec "$@"', STAGED_CODE)
        chosen = replace(chosen, container=enter, staged=(*chosen.staged, ("code", CODE_ARCHIVE)))
    return chosen


def _in_container(
    config: RunConfig, site: Site, request: Request, facts: Facts, image: str, runtime: str, exported: Iterable[str]
) -> Software:
    own = site.container
    inner = tuple((name, expanding(value)) for name, value in own.env.items())
    prefix = INNER_PREFIX.get(runtime)
    # the user's own packages in ~/.local, and a module's on PYTHONPATH, are for another Python than the image's
    apart = (("PYTHONNOUSERSITE", "1"), ("PYTHONPATH", ""))
    literal = ((NO_EVAL[runtime], "1"),) if runtime in NO_EVAL else ()
    folders = tuple(_outer_folders(config, request))
    staged: tuple[tuple[str, str], ...] = (("image", image),) if site.stage.image is not None and runtime != "docker" else ()
    staged += (("code", CODE_ARCHIVE),) if site.stage.code is not None else ()
    container = Container(
        image=Shell("$staged.image") if ("image", image) in staged else image,
        accelerator=site.node.accelerator if site.node.gpus else "cpu",
        gpu=None if own.gpu is None else split_args([own.gpu] if own.gpu else []),
        binds=tuple(_binds(config, site, request, facts, folders)),
        exported=(*(name for name in exported if name not in OF_THE_NODE), *JOB_VARIABLES, "PYTHONNOUSERSITE"),
        env=() if prefix else inner,
        workdir=STAGED_CODE if site.stage.code is not None else Shell("$run/code"),
        args=tuple(map(expanding, split_args(own.args))),
        init=own.init,
    )
    return Software(
        python=own.python,
        told=f"image {image} in {runtime}",
        use=own.use,
        modules=own.modules,
        env=(*apart, *literal, *((f"{prefix}{name}", value) for name, value in inner if prefix)),
        folders=folders,
        container=CONTAINERS[runtime](container),
        image=image,
        staged=staged,
        disk=_disk(site),
    )


def _binds(config: RunConfig, site: Site, request: Request, facts: Facts, folders: Iterable[str]) -> Iterator[Bind]:
    """Inputs, outputs, the run, its code (read-only), the node's disk and the site's own, each path once.

    A path that leads through a symbolic link is given under both names, the one without links first: on some machines /scratch/x is
    a link, which is in no image; on others a directory that comes in (the home) holds a link, whose target has to come in too.
    """
    read = dict.fromkeys(
        folder for path in inputs(config, request.cwd) for file in path.files for folder in _holder(path.key, file)
    )
    wanted = (*read, *folders, request.run_dir)
    resolved = (facts.real[path] for path in wanted if path in facts.real)
    yield from (Bind(path=path) for path in dict.fromkeys((*resolved, *read, *folders)))
    run = request.run_dir if re.search(r'[:,"\n]', request.run_dir) else Shell("$run")  # what has to be escaped is text
    yield Bind(path=run)
    if site.node.local_disk is not None:
        yield Bind(path=expanding(site.node.local_disk))
    yield Bind(
        path=STAGED_CODE if site.stage.code is not None else joined(run, "/code"), read_only=True
    )  # the receipt has its hash
    for text in site.container.binds:
        source, _, rest = text.partition(":")
        inside, _, mode = rest.partition(":")
        yield Bind(path=expanding(source), inside=expanding(inside), read_only=mode == "ro")


def bound_paths(config: RunConfig, request: Request) -> tuple[str, ...]:
    """The paths of a job that a container is given: whether they lead through links has to be looked up."""
    read = (folder for path in inputs(config, request.cwd) for file in path.files for folder in _holder(path.key, file))
    return tuple(dict.fromkeys((*read, *_outer_folders(config, request), request.run_dir)))


def _holder(key: str, file: str) -> tuple[str, ...]:
    """The directory to give for an input: its own for a file, itself for a directory (``load``) and for a file in the root."""
    return (file,) if key == "load" or os.path.dirname(file) == "/" else (os.path.dirname(file),)


def _outer_folders(config: RunConfig, request: Request) -> Iterator[str]:
    """Directories outside of the run that the training writes to."""
    found = (folder for folder in outputs(config, request.run_dir) if not f"{folder}/".startswith(f"{request.run_dir}/"))
    yield from dict.fromkeys(found)


def _activated(variable: str, folder: str) -> tuple[tuple[str, str], ...]:
    """What activating an environment sets."""
    return (variable, folder), ("PATH", joined(folder, "/bin:", Shell("$PATH")))
