"""Configuration files: merging, places, and every problem at once with its file and line."""

from __future__ import annotations

import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from neox_hpc.errors import UserError
from neox_hpc.settings import Loaded, check_files, load_config
from neox_hpc.share import share

REQUIRED = """\
num_layers: 2
hidden_size: 64
num_attention_heads: 4
seq_length: 64
max_position_embeddings: 64
train_micro_batch_size_per_gpu: 4
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.yml").write_text(REQUIRED)
    return tmp_path


def problems(folder: Path, *names: str, **options: object) -> list[str]:
    """Every problem as ``where: wrong / fix``."""
    with pytest.raises(UserError) as caught:
        load_config(names, cwd=folder, **options)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2
    return [f"{p.where}: {p.wrong} / {p.fix}" for p in caught.value.problems]


def load(folder: Path, text: str = "", **options: object) -> Loaded:
    (folder / "more.yml").write_text(text)
    return load_config(["model", "more"], cwd=folder, **options)  # type: ignore[arg-type]


def test_gpt_neox_json_like_text_with_dashes_comments_and_trailing_commas(folder: Path) -> None:
    text = """
    {
      # parallelism
      "pipe-parallel-size": 1, "model_parallel_size": 2,
      "no-weight-tying": True,   # as the wiki says
      "optimizer": {"type": "Adam", "params": {"lr": 0.0006, "betas": [0.9, 0.95],}},
    }
    """
    found = load(folder, text)
    assert found.config.parallelism.model_parallel_size == 2
    assert found.config.architecture.no_weight_tying is True
    assert found.config.optimization.optimizer.params.betas == (0.9, 0.95)
    assert found.where("optimizer.params.lr") == "more.yml:6  optimizer.params.lr"
    assert found.where("no_weight_tying") == "more.yml:5  no_weight_tying"
    assert found.files == ("model.yml", "more.yml")


def test_a_value_inside_a_list_or_an_unwritten_one_is_placed_at_what_is_around_it(folder: Path) -> None:
    found = load(folder, "optimizer: {type: Adam,\n params: {betas: [0.9,\n 0.95]}}")
    assert found.where("optimizer.params.betas.1") == "more.yml:3  optimizer.params.betas.1"
    assert found.where("optimizer.params.lr") == "more.yml:2  optimizer.params.lr"
    assert found.where("seed") == "model.yml  seed"


def test_conf_dir_stands_before_relative_names(folder: Path) -> None:
    assert load_config(["model"], conf_dir=folder.name, cwd=folder.parent).config.architecture.num_layers == 2


def test_set_overrides_files_and_reaches_into_sections(folder: Path) -> None:
    text = "optimizer: {type: Adam, params: {lr: 0.1, betas: [0.9, 0.95]}}\nseed: 1"
    found = load(folder, text, sets=["optimizer.params.lr=1e-4", "seed=7", "save=null", "vocab-file=/a b/v.json"])
    params = found.config.optimization.optimizer.params
    assert (params.lr, params.betas) == (1e-4, (0.9, 0.95))
    assert (found.config.training.seed, found.config.checkpoints.save) == (7, None)
    assert found.config.tokenizer.vocab_file == "/a b/v.json"
    assert found.where("seed") == "--set seed=7  seed"


def test_same_key_in_two_files_names_both_places(folder: Path) -> None:
    (folder / "more.yml").write_text("\nnum-layers: 3")
    assert problems(folder, "model", "more") == ["more.yml:2  num_layers: is also written at model.yml:1 / keep one of them"]


def test_same_key_twice_in_a_file_names_both_lines(folder: Path) -> None:
    (folder / "more.yml").write_text("seed: 1\noptimizer: {type: Adam,\n type: AdamW}\n# dashes\nlog-interval: 1\nlog_interval: 2")
    assert problems(folder, "model", "more") == [
        "more.yml:3  optimizer.type: is also written at more.yml:2 / keep one of them",
        "more.yml:6  log_interval: is also written at more.yml:5 / keep one of them",
    ]


def test_all_wrong_keys_are_found_at_once_each_in_its_line(folder: Path) -> None:
    (folder / "more.yml").write_text("optimizer:\n  params:\n    lr: 1e-4\nnum_layerz: 3\nseed: soon\n")
    assert problems(folder, "model", "more") == [
        "more.yml:4  num_layerz: unknown key / did you mean num_layers?",
        "more.yml:3  optimizer.params.lr: expected a number, got the text '1e-4' / YAML 1.1 reads 1e-4 as text; write 1.0e-4",
        "more.yml:5  seed: expected a whole number, got the text 'soon' / ",
    ]


def test_a_missing_key_is_placed_in_the_first_file(folder: Path) -> None:
    (folder / "model.yml").write_text(REQUIRED.replace("hidden_size: 64\n", ""))
    assert problems(folder, "model") == ["model.yml  hidden_size: is required and absent / add hidden_size: <number>"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed: 010", "more.yml:1  seed: YAML 1.1 reads 010 as the octal number 8 / write 10"),
        ("seed: 12:30:00", "more.yml:1  seed: YAML 1.1 reads 12:30:00 as a number to the base 60 / write a plain number, or"),
        ("- 1", "more.yml:1: is not a mapping / write key: value lines"),
        ("a: [1,\nb: 2", "more.yml:3: is not YAML"),
        ("optimizer:\n\ttype: Adam", "more.yml:2: is not YAML: while scanning"),
        ("a: \x07", "more.yml: is not YAML"),
        ("? [a, b]\n: 3", "more.yml:1: a list or a mapping cannot be a key"),
        ("{a: " * 2000 + "1" + "}" * 2000, "more.yml: is nested too deeply to be read"),
        ("seed: 1e400", "more.yml:1  seed: expected a whole number, got the text '1e400'"),
    ],
)
def test_traps_of_yaml_are_problems(folder: Path, text: str, problem: str) -> None:
    (folder / "more.yml").write_text(text)
    found = problems(folder, "model", "more")
    assert len(found) == 1
    assert found[0].startswith(problem)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("norm: rms_norm", "  norm: input should be * / did you mean rmsnorm?"),
        ("activation: swigloo", "  activation: input should be * / did you mean swiglu?"),
        ("attention_config: [[[flahs], all]]", "  attention_config: 'flahs' is no kind of attention / did you mean flash?"),
        (
            "attention_config: [[[flash], 3]]",
            "  attention_config: attention_config names 3 layers, num_layers is 2: name as many,* / ",
        ),
        ("gpt_j_tied: true", "  gpt_j_tied: changes nothing without gpt_j_residual: true / remove it, or write *"),
    ],
)
def test_an_option_of_the_network_that_cannot_be_is_told_with_its_line(folder: Path, line: str, found: str) -> None:
    (folder / "more.yml").write_text(f"seed: 1\n{line}\n")
    [problem] = problems(folder, "model", "more")
    assert fnmatch(problem, f"more.yml:2{found.replace('[', '[[]')}")


@pytest.mark.parametrize("names", [("125M", "local_setup"), ("configs/125M.yml", "configs/local_setup.yml")])
def test_what_is_not_here_is_the_shipped_file_of_that_name_with_a_note(tmp_path: Path, names: tuple[str, str]) -> None:
    found = load_config(names, cwd=tmp_path)
    assert found.config.architecture.num_layers == 12
    assert found.files == tuple(str(share("configs") / f"{name}.yml") for name in ("125M", "local_setup"))
    assert found.notes[0] == f"{names[0]}: there is none here; {found.files[0]}, which is shipped, is taken"
    assert load_config(["125M", "local_setup"], conf_dir="configs", cwd=tmp_path).files == found.files


def test_a_file_that_is_here_goes_before_the_shipped_one(folder: Path) -> None:
    (folder / "125M.yml").write_text(REQUIRED)
    assert load_config(["125M"], cwd=folder).files == ("125M.yml",)
    assert load_config(["125M"], cwd=folder).notes == ()


def test_the_shipped_file_of_nearly_that_name_is_named(tmp_path: Path) -> None:
    [found] = problems(tmp_path, "pythia/1.4B")
    assert found.endswith(" / did you mean pythia/1-4B.yml, which is shipped? `neox-hpc config list` has them all")


def test_a_directory_is_no_file(folder: Path) -> None:
    assert problems(folder, ".") == [f"{folder}: is a directory / name the files in it: -d DIRECTORY FILE…"]


def test_a_missing_file_names_the_nearest(folder: Path) -> None:
    assert problems(folder, "modle", "no/where.yml") == [
        f"{folder}/modle.yml: no such file / did you mean {folder}/model.yml?",
        f"{folder}/no/where.yml: no such file / there is no directory {folder}/no: check the path (and --conf-dir)",
    ]


def test_a_file_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "model.yml").write_bytes(b"\xff\xfe\x00")
    assert problems(folder, "model") == ["model.yml: is not UTF-8 text / give the YAML file"]


@pytest.mark.parametrize(
    ("sets", "problem"),
    [
        (["seed"], "--set seed: is not KEY=VALUE / write --set seed=value"),
        (["=3"], "--set =3: is not KEY=VALUE / write --set key=value"),
        (["seed=1", "seed=2"], "--set seed=2: seed was already given by --set seed=1 / keep one of them"),
        (["sede=1"], "--set sede=1  sede: unknown key / did you mean seed?"),
        (["optimizer=1", "optimizer.type=adam"], "--set optimizer.type=adam: optimizer was given a value"),
    ],
)
def test_wrong_set_texts_are_problems(folder: Path, sets: list[str], problem: str) -> None:
    assert problems(folder, "model", sets=sets)[0].startswith(problem)


def test_empty_files_and_pieces_are_fine(folder: Path) -> None:
    assert load(folder, "# nothing\n").config.training.seed == 1234


def test_a_foreign_package_named_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "__init__.py").write_text("raise SystemExit('imported')")
    root = Path(__file__).parent.parent
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(root)!r}]\nimport neox_hpc.settings"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "neox_hpc.errors.UserError: import path: the package 'model' that Python finds" in done.stderr
    assert "imported" not in done.stdout + done.stderr


def test_a_check_takes_a_file_without_required_keys_as_a_part(folder: Path) -> None:
    (folder / "part.yml").write_text("save: checkpoints\nattention-config: [[[global], all]]")
    assert not check_files(["part"], cwd=folder).whole
    assert check_files(["model"], cwd=folder).whole
    (folder / "half.yml").write_text("num_layers: 2")
    with pytest.raises(UserError, match="hidden_size: is required and absent"):
        check_files(["half"], cwd=folder)
    assert not check_files(["half"], fragment=True, cwd=folder).whole


def test_a_part_is_checked_for_what_it_says(folder: Path) -> None:
    (folder / "part.yml").write_text("seed: soon\nworld_size: 3\nzero_optimization: {stage: 1, overlap_com: true}\nnum_layerz: 1")
    with pytest.raises(UserError) as caught:
        check_files(["part"], cwd=folder)
    assert [f"{p.where}: {p.wrong} / {p.fix}" for p in caught.value.problems] == [
        "part.yml:4  num_layerz: unknown key / did you mean num_layers?",
        "part.yml:3  zero_optimization.overlap_com: unknown key / did you mean zero_optimization.overlap_comm?",
        "part.yml:1  seed: expected a whole number, got the text 'soon' / ",
        "part.yml:2  world_size: is set by the launcher: ranks learn it from their launcher / remove it",
    ]


def test_former_keys_are_noted_with_their_place_and_so_are_mistakes_in_them(folder: Path) -> None:
    found = load(folder, "train_iters: 20\n\nwarmup-iters: 5")
    assert found.config.learning_rate.warmup == 0.25
    assert found.notes == ("more.yml:3  warmup_iters: is now warmup, a share of the decay's 20 steps: read as 0.25",)
    assert found.where("warmup") == "more.yml:3  warmup"
    (folder / "more.yml").write_text("train_iters: 2\nwarmup_iters: 5")
    assert problems(folder, "model", "more")[0].startswith("more.yml:2  warmup: input should be less than or equal to 1, got 2.5")


def test_text_mistakes_and_wrong_keys_are_shown_together(folder: Path) -> None:
    (folder / "more.yml").write_text("seed: 010\npos_emb: no\nlog_interval: 1e3\nseed: 3")
    assert problems(folder, "model", "more", "modle") == [
        f"{folder}/modle.yml: no such file / did you mean {folder}/model.yml?",
        "more.yml:1  seed: YAML 1.1 reads 010 as the octal number 8 / write 10",
        "more.yml:4  seed: is also written at more.yml:1 / keep one of them",
        "more.yml:2  pos_emb: input should be 'learned', 'rotary', 'sinusoidal', 'rpe', 'alibi' or 'none', got false"
        " / YAML 1.1 reads no, off, yes and on as false and true; put the text in quotes",
        "more.yml:3  log_interval: expected a whole number, got the text '1e3' / YAML 1.1 reads 1e3 as text; write 1000",
    ]


def test_a_check_says_what_would_not_train_yet(folder: Path) -> None:
    (folder / "part.yml").write_text("tokenizer_type: SPMTokenizer\nhostfile: /mock_path\nlog_interval: 5\nuse_wandb: true")
    for names in (["part"], ["model", "part"]):
        found = [f"{p.where}: {p.wrong} / {p.fix}" for p in check_files(names, cwd=folder).untrained]
        assert found == [
            "part.yml:1  tokenizer_type: SPMTokenizer does not train yet / "
            "write HFTokenizer or CharLevelTokenizer or GPT2BPETokenizer",
            "part.yml:4  use_wandb: true is known and not built yet / remove it",
        ]
    (folder / "part.yml").write_text("seed: 3")
    assert check_files(["part"], cwd=folder).untrained == ()
