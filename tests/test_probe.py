"""What is read of the machine that plans; the machine is a folder of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from neox_hpc.probe import Machine, probe, read_machine
from tests.planning import loaded, site, slurm


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path, "proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-3,8,10-11\n")
    put(tmp_path, "proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\n")
    (tmp_path / "dev").mkdir()
    return tmp_path


def put(root: Path, path: str, text: str = "") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_cores_and_memory_of_a_machine_without_gpus(root: Path) -> None:
    found = read_machine({}, root)
    assert (found.accelerator, found.gpu_ids, found.cores, found.memory_gib) == ("cpu", (), 7, 16.0)


def test_the_control_group_cuts_cores_and_memory(root: Path) -> None:
    put(root, "sys/fs/cgroup/cpu.max", "250000 100000\n")
    put(root, "sys/fs/cgroup/memory.max", f"{3 * 2**30}\n")
    assert (read_machine({}, root).cores, read_machine({}, root).memory_gib) == (2, 3.0)


def test_an_unlimited_control_group_cuts_nothing(root: Path) -> None:
    put(root, "sys/fs/cgroup/cpu.max", "max 100000\n")
    put(root, "sys/fs/cgroup/memory.max", "max\n")
    assert (read_machine({}, root).cores, read_machine({}, root).memory_gib) == (7, 16.0)


def test_nvidia_devices_are_counted_and_its_other_files_are_not(root: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm", "nvidia-caps"):
        put(root, f"dev/{name}")
    found = read_machine({}, root)
    assert (found.accelerator, found.gpu_ids) == ("cuda", ("0", "1", "2"))


def test_amd_devices_are_the_nodes_with_simd_units(root: Path) -> None:
    for node, simd in ((0, 0), (1, 440), (2, 440)):
        put(root, f"sys/class/kfd/kfd/topology/nodes/{node}/properties", f"cpu_cores_count 64\nsimd_count {simd}\n")
    found = read_machine({}, root)
    assert (found.accelerator, found.gpu_ids) == ("rocm", ("0", "1"))


def test_a_container_runtime_is_found_on_path(root: Path, tmp_path: Path) -> None:
    for name, mode in (("apptainer", 0o644), ("docker", 0o755), ("singularity", 0o755)):
        put(tmp_path, f"bin/{name}")
        (tmp_path / "bin" / name).chmod(mode)
    assert read_machine({"PATH": f"/nowhere:{tmp_path}/bin"}, root).runtime == "singularity"
    assert read_machine({"PATH": "/nowhere"}, root).runtime is None


def test_a_link_on_the_way_to_what_a_container_is_given_is_followed(tmp_path: Path, root: Path) -> None:
    put(tmp_path, "real/run/x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    bound = (f"{tmp_path}/link/run", f"{tmp_path}/real/run", f"{tmp_path}/link/new")
    facts = probe(loaded().config, slurm(), cwd=tmp_path, environ={}, root=root, image="/no.sif", bound=bound)
    assert facts.real == {f"{tmp_path}/link/run": f"{tmp_path}/real/run", f"{tmp_path}/link/new": f"{tmp_path}/real/new"}
    assert facts.exists["/no.sif"] is False


@pytest.mark.parametrize(
    ("variable", "value", "ids"),
    [
        ("CUDA_VISIBLE_DEVICES", "1", ("1",)),
        ("CUDA_VISIBLE_DEVICES", "GPU-aa, GPU-bb", ("GPU-aa", "GPU-bb")),
        ("CUDA_VISIBLE_DEVICES", "", ()),
        ("CUDA_VISIBLE_DEVICES", "-1", ()),
        ("ROCR_VISIBLE_DEVICES", "0", ("0",)),
    ],
)
def test_only_the_devices_that_the_shell_may_use_are_taken(root: Path, variable: str, value: str, ids: tuple[str, ...]) -> None:
    put(root, "dev/nvidia0")
    put(root, "dev/nvidia1")
    assert read_machine({variable: value}, root).gpu_ids == ids


def test_a_visible_devices_variable_makes_no_gpus(root: Path) -> None:
    assert read_machine({"CUDA_VISIBLE_DEVICES": "0,1"}, root).gpu_ids == ()


def test_what_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    found = read_machine({}, tmp_path)
    assert (found.accelerator, found.cores, found.memory_gib) == ("cpu", None, None)


def test_this_machine_can_be_read() -> None:
    found = read_machine({})
    assert found.cores is not None and found.cores >= 1
    assert found.memory_gib is not None and found.memory_gib > 0.1
    assert found.python is not None and Path(found.python).exists()


def test_inputs_are_looked_up_from_the_submit_directory(tmp_path: Path, root: Path) -> None:
    put(tmp_path, "data/text.bin")
    facts = probe(loaded(load="gone", save=None, checkpoint_factor=None).config, slurm(), cwd=tmp_path, environ={}, root=root)
    assert facts.exists == {
        f"{tmp_path}/data/text.bin": True,
        f"{tmp_path}/data/text.idx": False,
        f"{tmp_path}/data/tokenizer.json": False,
        f"{tmp_path}/gone": False,
        "/opt/env/bin/python": False,
    }


def test_load_written_as_save_needs_not_exist(tmp_path: Path, root: Path) -> None:
    facts = probe(loaded(load="checkpoints").config, slurm(), cwd=tmp_path, environ={}, root=root)
    assert f"{tmp_path}/checkpoints" not in facts.exists


def test_the_machine_is_read_only_for_a_site_that_is_this_machine(tmp_path: Path, root: Path) -> None:
    assert probe(loaded().config, slurm(), cwd=tmp_path, environ={}, root=root).machine == Machine()
    assert probe(loaded().config, site("local"), cwd=tmp_path, environ={}, root=root).machine.cores == 7


UNIGRAM = '{"added_tokens": [], "model": {"vocab": [["a", -1.0], ["b", -2.0]]}}'


@pytest.mark.parametrize(
    ("kind", "text", "size"),
    [
        ("HFTokenizer", '{"added_tokens": [{"content": "<|e|>"}, {"content": "a"}], "model": {"vocab": {"a": 0, "b": 1}}}', 3),
        ("HFTokenizer", UNIGRAM, 2),
        ("GPT2BPETokenizer", '{"a": 0, "b": 1, "<|endoftext|>": 2}', 3),
        ("CharLevelTokenizer", "", 512),
        ("HFTokenizer", "no JSON", None),
        ("HFTokenizer", "[1]", None),
        ("SPMTokenizer", "\x01", None),
    ],
)
def test_vocabulary_is_counted_in_the_tokenizers_file(tmp_path: Path, root: Path, kind: str, text: str, size: int | None) -> None:
    put(tmp_path, "data/tokenizer.json", text)
    config = loaded(tokenizer_type=kind).config
    assert probe(config, slurm(), cwd=tmp_path, environ={}, root=root).vocab_size == size


def test_vocabulary_of_an_absent_file_is_unknown(tmp_path: Path, root: Path) -> None:
    assert probe(loaded().config, slurm(), cwd=tmp_path, environ={}, root=root).vocab_size is None


def test_counted_vocabulary_is_the_librarys(tmp_path: Path, root: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="pip install tokenizers")
    library = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    library.add_special_tokens(["<|endoftext|>"])
    library.add_tokens(["ab", "  "])
    put(tmp_path, "data/tokenizer.json", library.to_str())
    assert probe(loaded().config, slurm(), cwd=tmp_path, environ={}, root=root).vocab_size == library.get_vocab_size()
