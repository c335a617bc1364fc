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
GENERIC_SITES = {"local", "slurm", "pbs", "lsf", "flux", "mpi", "pods"}
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


def data_plane_offences(path: Path, source: str) -> set[str]:
    forbidden = {"neox_hpc"} if path.is_relative_to(ROOT / "model" / "engine") else {"neox_hpc", "deepspeed"}
    return {top(name) for name in imports(source)} & forbidden


@pytest.mark.parametrize("path", sources("model"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_data_plane_imports_no_control_plane_and_deepspeed_only_in_its_engine(path: Path) -> None:
    assert data_plane_offences(path, path.read_text()) == set()


def test_that_rule_would_see_deepspeed_outside_the_engine() -> None:
    late = "def f():\n    from deepspeed.runtime import engine\n    import neox_hpc.site\n"
    assert data_plane_offences(ROOT / "model" / "gpt.py", late) == {"deepspeed", "neox_hpc"}
    assert data_plane_offences(ROOT / "model" / "engine" / "start.py", late) == {"neox_hpc"}


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
batch = Batch(tokens_BS=tokens[:, :-1], labels_BS=tokens[:, 1:], loss_mask_BS=torch.ones(2, 32), sample_B=torch.arange(2))
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

THINK = ("checks", "containers", "decisions", "notes", "outline", "plan", "render", "request", "software", "words")
THINK += ("auto", "extras", "gpus", "models_page", "site_detect", "site_draft", "site_facts", "site_table", "step_time")
THINK += ("diff", "explain", "inputs", "pieces", "placement", "wording")
PURE = tuple(f"neox_hpc/{name}.py" for name in THINK)
STARTS = re.compile(r"^os\.(system|exec\w*|spawn\w*|posix_spawn\w*|fork\w*|kill\w*|popen)$")
CONNECTS = {"subprocess", "multiprocessing", "asyncio", "socket", "pty", "paramiko", "urllib", "http"}
WRITES = re.compile(
    r"(\.(write_text|write_bytes|mkdir|rename|unlink|rmdir|symlink_to|hardlink_to|touch|chmod)"
    r"|^os\.(write|mkdir|makedirs|link|symlink|remove|removedirs|truncate)|^shutil\.(?!(which|get_terminal_size)$)\w+|^tempfile\.\w+)$"
)
SAYS = {"print", "exit", "quit", "sys.exit", "os._exit", "click.echo", "sys.stdout.write", "sys.stderr.write"}
LOOKS = re.compile(
    r"^(time|datetime|random|socket|platform|secrets|uuid|os(?!\.path\.(basename|dirname|splitext|join|normpath)$))\."
    r"|\.(now|today|cwd|home|expanduser|resolve|exists|is_file|is_dir|read_text|read_bytes|iterdir|glob|rglob|open|stat)$|^open$"
)


def written(source: str) -> list[str]:
    """Calls that change files; a ``replace`` of one argument is a path's, of two a text's."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        modes = [
            argument.value
            for argument in [*node.args, *(word.value for word in node.keywords)]
            if isinstance(argument, ast.Constant)
        ]
        opens = name.split(".")[-1] == "open" and any(
            isinstance(mode, str) and re.fullmatch(r"[rb]*[wax+][wax+bt]*", mode) for mode in modes
        )
        renames = name.endswith(".replace") and len(node.args) + len(node.keywords) == (2 if name == "os.replace" else 1)
        if WRITES.search(name) or opens or renames:
            found.append(name)
    return found


def misplaced_effects(name: str, source: str) -> list[str]:
    """What a file of the control plane does that is another file's business."""
    called, found = sorted(set(calls(source))), []
    if name not in ("neox_hpc/proc.py", "neox_hpc/transport.py"):
        found += sorted({top(module) for module in imports(source)} & CONNECTS) + [call for call in called if STARTS.match(call)]
    writes = ("rundir.py", "registry.py", "user_config.py", "proc.py", "transport.py")  # the last one: known_hosts
    if name not in tuple(f"neox_hpc/{file}" for file in writes):
        found += written(source)
    if not name.startswith("neox_hpc/cli/") and name != "neox_hpc/__main__.py":
        found += [call for call in called if call in SAYS]
    if name in PURE:
        found += [call for call in called if LOOKS.search(call)]
        found += [node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute) and node.attr == "environ"]
    return found


@pytest.mark.parametrize("path", sources("neox_hpc"), ids=lambda path: str(path.relative_to(ROOT)))
def test_each_effect_has_its_place(path: Path) -> None:
    """proc.py and transport.py start and connect, rundir.py writes, cli/ prints and exits, plan and render only think."""
    assert misplaced_effects(path.relative_to(ROOT).as_posix(), path.read_text()) == []


@pytest.mark.parametrize(
    ("line", "name", "seen"),
    [
        ("import subprocess", "neox_hpc/site.py", ["subprocess"]),
        ("os.execvp('x', [])", "neox_hpc/cli/submit.py", ["os.execvp"]),
        ("path.write_text('x')", "neox_hpc/cli/submit.py", ["path.write_text"]),
        ("a.replace(b)", "neox_hpc/plan.py", ["a.replace"]),
        ("text.replace('a', 'b')", "neox_hpc/plan.py", []),
        ("path.open('wb')", "neox_hpc/logs.py", ["path.open"]),
        ("open(path, mode='a')", "neox_hpc/logs.py", ["open"]),
        ("path.open('rb')", "neox_hpc/logs.py", []),
        ("print(1)", "neox_hpc/plan.py", ["print"]),
        ("print(1)", "neox_hpc/cli/submit.py", []),
        ("sys.exit(1)", "neox_hpc/site.py", ["sys.exit"]),
        ("Path.cwd()", "neox_hpc/plan.py", ["Path.cwd"]),
        ("time.time()", "neox_hpc/render.py", ["time.time"]),
        ("os.environ['HOME']", "neox_hpc/plan.py", ["environ"]),
        ("path.exists()", "neox_hpc/plan.py", ["path.exists"]),
        ("path.exists()", "neox_hpc/probe.py", []),
    ],
)
def test_that_rule_sees_an_effect(line: str, name: str, seen: list[str]) -> None:
    assert misplaced_effects(name, line) == seen


# 4: no site stands in code ---------------------------------------------------------------------------------------------------


KNOWN_SITES = {"summit", "frontier", "lumi", "polaris", "perlmutter", "aurora", "leonardo", "jupiter"}


def named_sites(text: str, names: set[str]) -> list[str]:
    decided = ["site =="] if re.search(r"site(\.name)?\s*[!=]=", text) else []
    return decided + [name for name in sorted(names) if re.search(rf"(?<![a-z]){re.escape(name)}(?![a-z])", text, re.IGNORECASE)]


def test_no_code_names_a_site() -> None:
    names = KNOWN_SITES | {path.stem for path in (ROOT / "sites").glob("*.yml")} - GENERIC_SITES
    code = [*sources("neox_hpc", "model"), *sorted((ROOT / "neox_hpc").rglob("*.j2"))]
    assert {str(path): found for path in code if (found := named_sites(path.read_text(), names))} == {}


def test_that_rule_would_see_a_site() -> None:
    assert named_sites("{% if site.name == 'Frontier' %}", KNOWN_SITES) == ["site ==", "frontier"]
    assert named_sites("LUMI_ACCOUNT, summit2, illuminate", KNOWN_SITES) == ["lumi", "summit"]


# 5: no state in modules of the data plane --------------------------------------------------------------------------------------


CONTAINERS = {"list", "dict", "set", "defaultdict", "deque", "Counter", "OrderedDict", "WeakValueDictionary", "local"}
MUTATES = {
    "append",
    "add",
    "update",
    "setdefault",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "discard",
    "clear",
    "appendleft",
}


def module_state(source: str) -> list[str]:
    """Names of the module that functions rebind or change, and containers that stand there under a variable's name."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))]
    found = [name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names]
    held: set[str] = set()
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        if _is_container(getattr(node, "value", None)):
            held |= {target.id for target in targets if isinstance(target, ast.Name)} - {"__all__"}
    found += sorted(name for name in held if not re.fullmatch(r"_?[A-Z][A-Z0-9_]*", name))
    for node in (inner for function in functions for inner in ast.walk(function)):
        changed: ast.expr | None = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATES:
            changed = node.func.value
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)):
            changed = node.value
        if isinstance(changed, ast.Name) and changed.id in held:
            found.append(changed.id)
    return sorted(set(found))


def _is_container(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call):
        return ast.unparse(value.func).split(".")[-1] in CONTAINERS
    return isinstance(value, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp))


@pytest.mark.parametrize("path", sources("model"), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_of_the_data_plane_hold_no_state(path: Path) -> None:
    assert module_state(path.read_text()) == []


def test_that_rule_would_see_state() -> None:
    assert module_state("groups = {}\nTABLE = {'a': 1}\ndef f():\n    global world\n    world = 1\n") == ["groups", "world"]
    assert module_state("CACHE = {}\nSEEN: list[int] = []\ndef f(x):\n    CACHE[x] = 1\n    SEEN.append(x)\n") == ["CACHE", "SEEN"]
    assert module_state("groups = collections.defaultdict(list)\n") == ["groups"]
    assert module_state("TABLE = {'a': 1}\ndef f(x):\n    own = {}\n    own[x] = TABLE[x]\n") == []
