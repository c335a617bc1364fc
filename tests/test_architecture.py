"""The rules of the house, as tests.  Each has a check that it would see a violation."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GENERIC_SITES = {"local", "slurm", "pbs", "lsf", "flux", "mpi"}
HEAVY = {"torch", "deepspeed", "triton", "numpy", "tokenizers", "safetensors", "transformers"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(source: str) -> Iterator[str]:
    """Every imported module by its dotted name, late imports included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(source: str) -> Iterator[str]:
    """The dotted text of everything that is called."""
    return (ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))


def top(module: str) -> str:
    return module.split(".")[0]


# 1: the control plane imports no torch, and of model only model.config -------------------------------------------------------


def control_plane_offences(path: Path, source: str) -> list[str]:
    if path.match("neox_hpc/launchers/deepspeed.py"):
        return []
    heavy = [name for name in imports(source) if top(name) in HEAVY]
    return heavy + [name for name in imports(source) if top(name) == "model" and not (name + ".").startswith("model.config.")]


@pytest.mark.parametrize("path", sources("neox_hpc"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_control_plane_imports_nothing_heavy(path: Path) -> None:
    assert control_plane_offences(path, path.read_text()) == []


def test_that_rule_would_see_a_late_import() -> None:
    late = "def f():\n    import torch.nn\n    from model.gpt import GPT\n    from model.config import RunConfig\n"
    assert control_plane_offences(Path("neox_hpc/plan.py"), late) == ["torch.nn", "model.gpt", "model.gpt.GPT"]


def test_a_foreign_model_package_is_told_from_ours(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "__init__.py").write_text("")
    config = ROOT / "configs" / "quickstart.yml"
    command = [sys.executable, "-m", "neox_hpc", "config", "show", "--json", str(config)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )
    assert done.returncode == 2
    assert "model" in done.stderr and str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr


# 2: the data plane never imports the control plane; only model/engine imports deepspeed ----------------------------------------


@pytest.mark.parametrize("path", sources("model"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_data_plane_imports_no_control_plane_and_deepspeed_only_in_its_engine(path: Path) -> None:
    found = {top(name) for name in imports(path.read_text())}
    assert "neox_hpc" not in found
    assert "deepspeed" not in found or path.is_relative_to(ROOT / "model" / "engine")


def test_the_network_trains_a_step_without_deepspeed() -> None:
    program = """
import sys
sys.modules["deepspeed"] = None  # an import of it fails
import torch
from model.config import RunConfig
from model.data.batch import Batch
from model.gpt import GPT
from model.optim import make_optimizer
from tests.model.tiny import KEYS
config = RunConfig.from_keys(KEYS)
model = GPT(config, 512)
optimizer = make_optimizer(config, model.parameters())
tokens = torch.randint(0, 512, (2, 33))
batch = Batch(tokens_BS=tokens[:, :-1], labels_BS=tokens[:, 1:], loss_mask_BS=torch.ones(2, 32))
before = model(batch)
before.backward()
for group in optimizer.param_groups:
    group["lr"] = 0.01
optimizer.step()
assert model(batch) < before
import model.sampling, model.checkpoint, model.training
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_vocabulary_needs_pydantic_and_the_standard_library_only() -> None:
    allowed = sys.stdlib_module_names | {"pydantic", "pydantic_core", "model", "__future__"}
    for path in sources("model/config"):
        assert {top(name) for name in imports(path.read_text())} <= allowed, path
    assert (ROOT / "model" / "__init__.py").read_text().strip() == ""


# 3: who may start processes, write into a run directory, print, exit, look at the clock ----------------------------------------

WRITES = re.compile(
    r"\.(write_text|write_bytes|mkdir|rename|replace|unlink|symlink_to|touch)$|^(os|shutil)\.(rename|replace|remove|makedirs|copytree|rmtree)$"
)
PURE = ("neox_hpc/plan.py", "neox_hpc/render.py")
LOOKS = re.compile(
    r"^(time|datetime|random|os(?!\.path\.(basename|splitext|join)$)|socket|platform)\.|\.(now|today|cwd|home|exists|is_file|is_dir|read_text|open|stat)$|^open$"
)


@pytest.mark.parametrize("path", sources("neox_hpc"), ids=lambda path: str(path.relative_to(ROOT)))
def test_each_effect_has_its_place(path: Path) -> None:
    source, name = path.read_text(), path.relative_to(ROOT).as_posix()
    modules, called = {top(module) for module in imports(source)}, set(calls(source))
    if name not in ("neox_hpc/proc.py", "neox_hpc/transport.py"):
        assert not modules & {"subprocess", "paramiko", "socket", "pty"}, (
            "only proc.py and transport.py start processes or connections"
        )
        assert not {call for call in called if re.match(r"os\.(system|exec|spawn|fork|kill|popen)", call)}
    if name not in ("neox_hpc/rundir.py", "neox_hpc/registry.py", "neox_hpc/proc.py"):
        written = {
            call for call in called if WRITES.search(call) and not re.match(r".*(text|line|word|name|value|str)\w*\.replace", call)
        }
        assert not {call for call in written if not call.endswith(".replace")}, "only rundir.py writes into a run directory"
    if not name.startswith("neox_hpc/cli/") and name != "neox_hpc/__main__.py":
        assert not called & {"print", "sys.exit", "exit", "click.echo", "os._exit"}, "only cli/ prints and exits"
    if name in PURE:
        assert not {call for call in called if LOOKS.search(call)}, "plan.py and render.py read no clock, file or environment"


def test_that_rule_would_see_an_effect() -> None:
    assert set(calls("import os\nos.system('x')\nprint(1)\nPath.cwd()\n")) == {"os.system", "print", "Path.cwd"}
    assert LOOKS.search("Path.cwd") and LOOKS.search("time.time") and WRITES.search("path.write_text")


# 4: no site stands in code ---------------------------------------------------------------------------------------------------


def test_no_code_names_a_site() -> None:
    names = {path.stem for path in (ROOT / "sites").glob("*.yml")} - GENERIC_SITES
    code = [*sources("neox_hpc", "model"), *sorted((ROOT / "neox_hpc" / "templates").glob("*.j2"))]
    offences = [(str(path), name) for path in code for name in names if re.search(rf"\b{re.escape(name)}\b", path.read_text())]
    assert offences == []
    assert not [path for path in code if re.search(r"if\s+site(\.name)?\s*==", path.read_text())]


# 5: no state in modules of the data plane --------------------------------------------------------------------------------------


def module_state(source: str) -> list[str]:
    """Names that functions rebind, and lower-case containers that stand in the module."""
    tree = ast.parse(source)
    found = [name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names]
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        value = getattr(node, "value", None)
        if isinstance(value, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp)):
            found += [
                target.id
                for target in targets
                if isinstance(target, ast.Name) and not target.id.isupper() and target.id != "__all__"
            ]
    return found


@pytest.mark.parametrize("path", sources("model"), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_of_the_data_plane_hold_no_state(path: Path) -> None:
    assert [name for name in module_state(path.read_text()) if not re.fullmatch(r"_?[A-Z][A-Z0-9_]*", name)] == []


def test_that_rule_would_see_state() -> None:
    assert module_state("groups = {}\nTABLE = {'a': 1}\ndef f():\n    global world\n    world = 1\n") == ["world", "groups"]
