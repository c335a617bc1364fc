"""Every shipped configuration: GPT-NeoX's values, a header with its source, parameters as published, a dry run."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import pytest
from click.testing import CliRunner

from neox_hpc.cli import cli
from neox_hpc.models_page import Model, Published, read_published
from neox_hpc.plan import make_plan
from neox_hpc.render import render_script
from neox_hpc.settings import Loaded, check_files, load_config
from neox_hpc.share import share
from neox_hpc.shipped import Header, find_shipped, list_shipped, read_header
from neox_hpc.site import Site
from neox_hpc.vocabulary import RunConfig, is_fragment, translate
from tests.planning import TWO_CORES, request, site

FOLDER = share("configs")
NEOX: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "model/config/data/neox_configs.json").read_text())
"""GPT-NeoX's files at ea7aefd8 (2026-05-20), facts only."""
SHIPPED = {name: (path.read_text(), read_header(path.read_text())) for name, path in list_shipped().items()}
OWN = {"quickstart.yml", "falcon/7B.yml", "falcon/40B.yml", "palm/8B.yml", "palm/62B.yml"}
"""Files that GPT-NeoX does not have."""
PARTS = {
    *("cpu_mock_config.yml", "docker/pythia-paths.yml", "eleutherai_cluster.yml", "llama/train_config.yml", "local_setup.yml"),
    *("local_setup_comet.yml", "local_setup_wandb.yml", "prof.yml", "slurm_local.yml", "sparse.yml", "text_generation.yml"),
}
BESIDE = {"llama/train_config.yml": "llama/7B.yml", "slurm_local.yml": "slurm_125M.yml"}
"""The model that a part is given with; 125M.yml where none is named."""
SHAPES = ("llama/", "llama2/", "mistral/", "falcon/", "palm/")
"""Folders of files that have a shape alone, and are given with llama/train_config.yml."""

MLP_WITHOUT_BIAS = {"use_bias_in_mlp": (None, False)}
MENDED: dict[str, dict[str, tuple[Any, Any]]] = {
    "gmlp_small.yml": {"optimizer": ("1.0e_8", 1e-8)},
    "llama2/7B.yml": MLP_WITHOUT_BIAS,
    "llama2/13B.yml": MLP_WITHOUT_BIAS,
    "llama2/70B.yml": MLP_WITHOUT_BIAS,
    "llama2/codellama_7B.yml": MLP_WITHOUT_BIAS | {"intermediate_size": (None, 32768)},
    "llama2/codellama_34B.yml": MLP_WITHOUT_BIAS | {"intermediate_size": (None, 65536)},
    "llemma/7B.yml": MLP_WITHOUT_BIAS | {"intermediate_size": (None, 32768)},
    "llemma/34B.yml": MLP_WITHOUT_BIAS | {"intermediate_size": (None, 65536)},
    "mistral/7B.yml": MLP_WITHOUT_BIAS | {"intermediate_size": (14336, 43008)},
}
"""Name -> key -> GPT-NeoX's value and ours; the files say why."""


@cache
def whole(name: str) -> Loaded:
    """A shipped file; a part beside its model, a shape beside how it is trained."""
    training = "llama/train_config.yml"
    beside = [BESIDE.get(name, "125M.yml")] if name in PARTS else [training] if name.startswith(SHAPES) else []
    return load_config([*beside, name], cwd=FOLDER)


def model(name: str) -> Model:
    return Model(name=name, header=SHIPPED[name][1], config=whole(name).config)


def ours(theirs: str) -> str:
    """Our name of GPT-NeoX's file."""
    return theirs.removeprefix("configs/") if theirs.startswith("configs/") else theirs.replace("/configs/", "/", 1)


def test_all_66_files_of_gpt_neox_are_shipped_under_their_names() -> None:
    assert len(NEOX) == 66
    assert set(SHIPPED) == {ours(name) for name in NEOX} | OWN


# Values ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theirs", NEOX)
def test_a_file_means_what_gpt_neoxs_means_but_where_it_says_why(theirs: str) -> None:
    name = ours(theirs)
    wanted, mended = dict(translate(NEOX[theirs]).values), MENDED.get(name, {})
    found = written(name)
    for key, (before, now) in mended.items():
        assert before is None or str(before) in str(wanted[key])
        assert str(now) in str(found[key]) or found[key] is now
        wanted[key] = found[key]
    assert len(SHIPPED[name][1].mended) == len(mended)
    assert meaning(found) == meaning(wanted)


def written(name: str) -> dict[str, Any]:
    """The values of one file."""
    import yaml

    return dict(yaml.safe_load(SHIPPED[name][0]))


def meaning(values: dict[str, Any]) -> dict[str, Any]:
    """Every key; a part is taken beside values that are no defaults, so that what it leaves out shows."""
    required = {"num_layers": 12, "hidden_size": 48, "num_attention_heads": 4, "seq_length": 8, "max_position_embeddings": 8}
    data = {} if "data_path" in values else {"train_data_paths": ["x"]}
    beside = required | data | {"checkpoint_factor": 7} if is_fragment(values) else {}
    return RunConfig.from_keys(beside | {key: value for key, value in values.items() if value != {}}).keys()


@pytest.mark.parametrize("name", sorted(set(NEOX) & {f"configs/{part}" for part in PARTS}))
def test_a_part_is_known_as_one(name: str) -> None:
    assert is_fragment(NEOX[name]) and is_fragment(written(ours(name)))


# Use ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_config_check_passes_without_a_note(name: str) -> None:
    found = check_files([name], cwd=FOLDER)
    assert found.whole == (name not in PARTS)
    assert found.notes == ()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_dry_run_renders(name: str) -> None:
    """On nodes of eight GPUs of unknown size, or of as many as the file says that there are."""
    loaded = whole(name)
    found = make_plan(loaded, nodes_of(loaded.config.launch.global_num_gpus or 8), request(name="job"), TWO_CORES)
    assert [str(problem) for problem in found.problems if problem.kind == "anywhere"] == []
    assert found.plan is not None and "model.train" in render_script(found.plan)


@cache
def nodes_of(gpus: int) -> Site:
    return site("slurm", f"node.gpus={gpus}", "node.accelerator=cuda", "software.python=/opt/env/bin/python")


@pytest.mark.parametrize("name", sorted(SHIPPED.keys() - PARTS - {"quickstart.yml"}))
def test_a_file_says_which_blocks_are_not_built_yet_and_only_then(name: str) -> None:
    config = whole(name).config
    kinds = {"mamba", "rwkv", "gmlp", "amlp"} & set(config.architecture.attention_kinds)
    sections = (config.experts, config.transformer_engine, config.post_training)
    keys = {key for section in sections for key in type(section).model_fields}
    missing = kinds | {problem.key for problem in config.untrained() if problem.key in keys}
    assert bool(SHIPPED[name][1].not_built) == bool(missing), missing


# Headers and parameters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_a_file_has_a_title_a_source_and_readable_lines(name: str) -> None:
    text, header = SHIPPED[name]
    assert header.title and header.source
    assert max(map(len, text.splitlines())) <= 132
    assert len(header.title) < 200


PUBLISHED = [name for name, (_, header) in SHIPPED.items() if header.published]


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_published_or_the_file_says_why_not(name: str) -> None:
    found = model(name)
    said, count = found.published, found.parameters_as_published()
    assert said is not None and count is not None
    assert said.is_met_by(count) != bool(found.header.differs), f"{count:,}"


def test_nearly_all_models_have_a_published_figure() -> None:
    silent = {name for name, (_, header) in SHIPPED.items() if not header.published and not header.not_built} - PARTS
    assert silent == {
        "125M-json.yml",
        "19M.yml",
        "49M.yml",
        "800M.yml",
        "bf16_125M.yml",
        "bnb_125M.yml",
        "slurm_125M.yml",
        "quickstart.yml",
    }


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama/7B.yml", 6_738_415_616),
        ("llama2/70B.yml", 68_976_648_192),
        ("mistral/7B.yml", 7_241_732_096),
        ("20B.yml", 20_554_567_680),
        ("pythia/160M.yml", 162_322_944),
        ("pythia/6-9B.yml", 6_857_302_016),
        ("pythia/12B.yml", 11_846_072_320),
    ],
)
def test_a_published_model_has_as_many_parameters_as_its_tensors(name: str, parameters: int) -> None:
    assert model(name).parameters() == parameters


@pytest.mark.parametrize(
    ("name", "width"),
    [("llama/7B.yml", 11008), ("llama2/codellama_7B.yml", 11008), ("llama2/codellama_34B.yml", 22016), ("mistral/7B.yml", 14336)],
)
def test_a_gated_mlp_has_the_width_of_the_model(name: str, width: int) -> None:
    """As config.json of the model says (huggingface.co, intermediate_size); MLPs of llemma are CodeLlama's."""
    assert whole(name).config.architecture.ffn_size == width


def test_a_published_figure_is_met_to_its_last_digit() -> None:
    exact, rounded = (
        Published(figure=figure, without_embeddings=False, counted_with=(), source="") for figure in ("1,315", "1.3B")
    )
    assert exact.is_met_by(1315) and not exact.is_met_by(1316)
    assert rounded.is_met_by(1_349_000_000) and not rounded.is_met_by(1_351_000_000)


def test_a_published_line_is_read() -> None:
    found = read_published("125M without embeddings, counted with no_weight_tying: false, pos_emb: learned (table 2.1)")
    assert found == Published(
        figure="125M",
        without_embeddings=True,
        counted_with=(("no_weight_tying", False), ("pos_emb", "learned")),
        source="table 2.1",
    )
    with pytest.raises(ValueError, match="write FIGURE"):
        read_published("about 7B (somewhere)")


def test_lines_of_a_header_go_on_until_the_next_word() -> None:
    lines = ["A title", "of two lines.", "", "Source: a paper,", "table 2.", "Mended: one.", "Mended: another", "  value."]
    text = "\n".join(f"# {line}" for line in lines) + "\n\n# The network\n"
    wanted = Header(title="A title of two lines.", source="a paper, table 2", mended=("one", "another value"))
    assert read_header(text) == wanted
    with pytest.raises(ValueError, match="no title"):
        read_header("num_layers: 2\n")


# Finding and listing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["20B.yml", "configs/20B.yml", "pythia/1-4B.yml", "configs/llama2/7B.yml"])
def test_a_shipped_file_is_found_by_its_name_with_and_without_its_folder(name: str) -> None:
    found = find_shipped(PurePath(name))
    assert found == FOLDER / name.removeprefix("configs/")


@pytest.mark.parametrize("name", ["30B.yml", "/20B.yml", "../20B.yml", "pythia", "other/20B.yml", "configs"])
def test_nothing_else_is(name: str) -> None:
    assert find_shipped(PurePath(name)) is None


def test_the_list_has_every_file_with_its_title() -> None:
    done = CliRunner().invoke(cli, ["config", "list"])
    lines = [re.split("  +", line) for line in done.output.splitlines()[1:]]
    told = [(name, header.title, *filter(None, [header.needs])) for name, (_, header) in SHIPPED.items()]
    assert [tuple(line) for line in lines] == told
    names = [name for name, *_ in lines]
    assert (
        names.index("pythia/410M.yml")
        < names.index("pythia/1B.yml")
        < names.index("pythia/1-4B.yml")
        < names.index("pythia/12B.yml")
    )
    as_json = json.loads(CliRunner().invoke(cli, ["config", "list", "--json"]).output)
    assert [entry["name"] for entry in as_json] == names


def test_the_page_of_models_is_current() -> None:
    done = CliRunner().invoke(cli, ["config", "list", "--markdown"])
    page = Path(__file__).parent.parent / "docs" / "models.md"
    assert done.output == page.read_text(), "neox-hpc config list --markdown > docs/models.md"
