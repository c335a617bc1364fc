"""Planning: what is decided without being asked, and every refusal with its place and its fix."""

from __future__ import annotations

import re
from typing import Any

import pytest

from neox_hpc.launchers import NEEDS_JOB_OF, Shell
from neox_hpc.outline import show_number
from neox_hpc.probe import Facts, Machine
from neox_hpc.render import render_script
from neox_hpc.request import EarlySignal, run_name
from neox_hpc.schedulers import SCHEDULERS
from tests.planning import TWO_CORES, plan, planned, planned_shipped, scheduled, site, slurm, wrongs

ROW_HEAD = {"output_layer_parallelism": "row", "no_weight_tying": True}
SAVED = {"save": None, "checkpoint_factor": None}


# What is decided -------------------------------------------------------------------------------------------------------


def test_local_runs_two_ranks_on_a_machine_without_gpus() -> None:
    found = plan(site("local"))
    assert (found.nodes, found.ranks_per_node, found.gpus_per_node, found.device, found.cores_per_rank) == (1, 2, 0, "cpu", 1)
    assert (found.step.python, found.step.module, found.step.module_args) == (
        "/usr/bin/python3",
        "model.train",
        (Shell("$run/run.json"),),
    )
    assert (found.run.world_size, found.run.device) == (2, "cpu")
    assert {name: value.value for name, value in found.env} == {
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def test_local_runs_a_rank_on_every_gpu_that_the_shell_may_use() -> None:
    machine = Machine(accelerator="cuda", gpu_ids=("2", "3", "5"), cores=24, python="/p")
    found = plan(site("local"), facts=Facts(machine=machine))
    assert (found.ranks_per_node, found.device, found.cores_per_rank, found.step.gpu_ids) == (3, "gpu", 8, ("2", "3", "5"))


def test_facts_of_the_site_file_stand_before_those_of_the_machine() -> None:
    machine = Machine(accelerator="cuda", gpu_ids=("2", "3", "5"), cores=24, python="/p")
    fewer = plan(site("local", "node.gpus=1"), facts=Facts(machine=machine))
    assert (fewer.ranks_per_node, fewer.step.gpu_ids) == (1, ("2",))
    none = plan(site("local", "node.gpus=0", "node.cpu_ranks=4", "software.python=/q"), facts=Facts(machine=machine))
    assert (none.ranks_per_node, none.device, none.step.gpu_ids, none.step.python) == (4, "cpu", (), "/q")
    assert none.site.node.accelerator == "cpu"


@pytest.mark.parametrize(("tensor", "nodes"), [(1, 1), (2, 1), (4, 1)])
def test_fewest_nodes_that_hold_the_models_cut(tensor: int, nodes: int) -> None:
    assert plan(slurm(), keys={"model_parallel_size": tensor}).nodes == nodes


@pytest.mark.parametrize(("tensor", "pipe", "nodes"), [(4, 2, 2), (2, 4, 2), (4, 3, 3), (1, 3, 3), (1, 2, 1), (4, 4, 4)])
def test_fewest_nodes_are_whole_and_divide(tensor: int, pipe: int, nodes: int) -> None:
    keys = {"model_parallel_size": tensor, "pipe_parallel_size": pipe, "num_layers": 12}
    assert plan(slurm(), keys=keys).nodes == nodes


def test_nodes_are_solved_from_a_whole_batch_equation() -> None:
    keys = {"train_batch_size": 512, "gradient_accumulation_steps": 4, "model_parallel_size": 2}
    found = planned(slurm(), keys=keys)
    assert found.plan is not None
    assert (found.plan.nodes, found.plan.layout.data) == (16, 32)
    assert any(note.startswith("nodes: 16, from train_batch_size 512 / (micro 4 x accumulation 4)") for note in found.notes)


def test_asked_nodes_stand_before_all() -> None:
    assert plan(slurm(), keys={"num_nodes": 3}, nodes=5).nodes == 5
    assert plan(slurm(), keys={"num_nodes": 3}).nodes == 3


def test_fewest_nodes_have_the_memory() -> None:
    roomy, tight = (planned_shipped(slurm(f"node.gpu_memory_gib={size}"), "20B") for size in (80, 40))
    assert roomy.plan is not None and tight.plan is not None
    assert (roomy.plan.nodes, tight.plan.nodes) == (2, 4)  # four nodes: two replicas, each with half of the optimizer
    assert any("nodes: 4, the fewest" in note and "GPUs' memory" in note for note in tight.notes)
    assert any(note.startswith("memory: about 35 of 40 GiB a GPU (weights 4.9") for note in tight.notes), tight.notes


def test_fewest_nodes_multiply_out_with_the_batch() -> None:
    # 12 sequences in micro-batches of 4 are 3 data-parallel ranks: of nodes of 1 GPU with tensor 2, 6
    keys = {"train_batch_size": 12, "gradient_accumulation_steps": None, "model_parallel_size": 2}
    assert plan(site("slurm", "node.gpus=1", "software.python=/p"), keys=keys).nodes == 2
    assert plan(site("slurm", "node.gpus=1", "software.python=/p"), keys=keys | {"gradient_accumulation_steps": 1}).nodes == 6
    # 36 are no multiple of 4 x 4 x 1, 4 x 4 x 2, …: one node, and what is wrong with it
    found = planned(slurm(), keys={"train_batch_size": 36})
    assert [line.split(" / ")[0].split(": ", 1)[0] for line in wrongs(found)] == ["small.yml:14  train_batch_size"]
    # 48 = 4 x 12 ranks: 3 nodes of 4, and 1 node with 3 accumulations comes first
    assert plan(slurm(), keys={"train_batch_size": 48}).nodes == 1


def test_a_job_that_would_not_fit_says_so() -> None:
    [note] = [line for line in planned_shipped(site("frontier"), "20B").notes if line.startswith("memory: ")]
    assert re.match(
        r"memory: about (49|5\d) of 64 GiB a GPU \(weights 4\.9, gradients 4\.9, optimizer 30, buffers 4\.7, activations 5\.\d\)",
        note,
    )
    tight = planned(slurm("node.gpu_memory_gib=1"), keys={"train_micro_batch_size_per_gpu": 512})
    assert any("it may not fit; smaller micro-batches" in note for note in tight.notes), tight.notes


def test_account_comes_from_the_option_the_users_file_the_configuration_the_environment() -> None:
    where, keys = site("frontier"), {"account": "yaml"}
    asked: dict[str, Any] = {
        "account": "option",
        "user_account": ("~/c.yml:2", "user"),
        "environment_account": ("$SBATCH_ACCOUNT", "env"),
    }
    seen = []
    for left in ({}, {"account": None}, {"account": None, "user_account": None}):
        found = planned(where, keys=keys, asked=asked | left)
        assert found.plan is not None
        seen.append((found.plan.account, [note for note in found.notes if note.startswith("account: ")]))
    found = planned(where, asked={"environment_account": asked["environment_account"]})
    assert found.plan is not None
    seen.append((found.plan.account, [note for note in found.notes if note.startswith("account: ")]))
    assert seen == [
        ("option", []),
        ("user", ["account: user, from ~/c.yml:2"]),
        ("yaml", ["account: yaml, from small.yml:14  account"]),
        ("env", ["account: env, from $SBATCH_ACCOUNT"]),
    ]


def test_keys_of_gpt_neoxs_launcher_do_no_harm_and_are_told_once() -> None:
    keys = {"hostfile": "/mock_path", "launcher": "slurm", "deepspeed_slurm": True, "num_nodes": 2, "comment": "neox"}
    found = planned(slurm(), keys=keys)
    assert found.plan is not None and found.plan.comment == "neox"
    [note] = [line for line in found.notes if line.startswith("not used")]
    assert note.endswith("(srun) take their place: small.yml:14 hostfile, small.yml:15 launcher, small.yml:16 deepspeed_slurm")
    local = planned(site("local"), keys={"comment": "neox", "account": "a"})
    assert local.plan is not None and local.plan.account is None
    assert any("take their place" in line and "comment" in line and "account" in line for line in local.notes)


def test_a_queue_that_is_a_quality_of_service_is_submitted_to_its_partition() -> None:
    found = plan(site("frontier"), account="a", queue="debug", nodes=92)
    assert (found.queue, found.walltime_s, found.directives[-1]) == ("batch", 7200, "--qos=debug")


def test_vocabulary_that_cannot_be_seen_is_the_published_one() -> None:
    assert any("50277 tokens are assumed" in note for note in planned_shipped(site("frontier"), "20B").notes)
    assert any("50257 tokens are assumed" in note for note in planned_shipped(site("frontier"), "125M").notes)
    assert not any("assumed" in note for note in planned(slurm(), facts=Facts(vocab_size=1000)).notes)


def test_any_padded_vocabulary_can_be_cut() -> None:
    for tensor in (1, 2, 3, 8):
        keys = {"model_parallel_size": tensor, "num_attention_heads": 24, "hidden_size": 48}
        config = plan(site("slurm", "node.gpus=24", "software.python=/p"), keys=keys).run.config
        assert config.padded_vocab_size(50277) % tensor == 0


@pytest.mark.parametrize(("nodes", "walltime_s"), [(1, 7200), (91, 7200), (92, 21600), (184, 43200), (9472, 43200)])
def test_walltime_is_the_queues_limit_for_that_many_nodes(nodes: int, walltime_s: int) -> None:
    found = planned(site("frontier"), asked={"nodes": nodes, "account": "a"})
    assert found.plan is not None
    assert (found.plan.walltime_s, found.plan.queue) == (walltime_s, "batch")
    assert any("the limit of queue batch" in note for note in found.notes)


def test_environment_depends_on_the_number_of_nodes() -> None:
    one, two = ({name: value.value for name, value in plan(site("frontier"), nodes=n, account="a").env} for n in (1, 2))
    assert (one["NCCL_NET"], two["NCCL_NET"]) == ("Socket", "OFI")
    assert one["NCCL_SOCKET_IFNAME"] == "hsn0,hsn1,hsn2,hsn3"


def test_a_queues_own_directives_follow_the_sites() -> None:
    assert plan(site("frontier"), account="a", queue="debug").directives == ("-C nvme", "--network=disable_rdzv_get", "--qos=debug")


def test_origin_says_where_the_run_comes_from() -> None:
    origin = plan(slurm(), git_commit="abc+dirty", neox_hpc="1.2").run.origin
    assert (origin.site, origin.user, origin.git_commit, origin.neox_hpc, origin.config_files) == (
        *("slurm", "ada", "abc+dirty", "1.2"),
        ("small.yml",),
    )


def test_a_files_name_that_is_too_long_for_the_scheduler_is_cut_in_the_queue_alone() -> None:
    name = "125M-long-context-3"
    found = planned(scheduled("pbs"), asked={"name": name, "name_is_given": False})
    assert found.plan is not None and (found.plan.name, found.plan.job_name) == (name, "125M-long-conte")
    script = render_script(found.plan)
    assert "#PBS -N 125M-long-conte\n" in script and f"# {name} on " in script
    assert any(note.startswith("name: the job is 125M-long-conte in the queue") for note in found.notes)
    assert wrongs(planned(scheduled("pbs"), asked={"name": name})) != []
    assert plan(scheduled("slurm"), name=name, name_is_given=False).job_name == name


def test_a_launcher_of_another_scheduler_is_refused_with_those_that_work() -> None:
    for launcher, there in NEEDS_JOB_OF.items():
        for scheduler in SCHEDULERS:
            found = wrongs(planned(slurm(f"scheduler={scheduler}", f"launcher={launcher}")))
            assert bool(found) == (scheduler not in (*there, "local")), (launcher, scheduler)  # a shell may be in any job
    [wrong] = wrongs(planned(slurm("scheduler=pbs")))
    assert "launcher: srun starts ranks in a job of slurm only, and slurm has pbs" in wrong
    assert wrong.endswith("write launcher: one of openmpi, mpich, pals, impi, mvapich, pdsh")


@pytest.mark.parametrize(("name", "files", "expected"), [(None, ("configs/20B.yml", "x.yml"), "20B"), ("mine", ("a.yml",), "mine")])
def test_a_run_is_named_by_the_user_or_its_first_file(name: str | None, files: tuple[str, ...], expected: str) -> None:
    assert run_name(name, files) == expected


# Wrong anywhere --------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[Any, dict[str, Any], dict[str, Any], str]] = {
    "gpus_not_known": (site("slurm"), {}, {}, "sites/slurm.yml  node.gpus: not known for the site slurm"),
    "ranks_that_do_not_hold_the_cut": (site("local"), {"model_parallel_size": 4}, {}, "model_parallel_size: 2 ranks cannot hold"),
    "more_nodes_than_the_site": (site("local"), {}, {"nodes": 2}, "--nodes: 2 nodes, and local gives a job at most 1"),
    "no_nodes": (slurm(), {}, {"nodes": 0}, "--nodes: 0 nodes / ask for at least 1"),
    "nodes_beyond_the_machine": (site("frontier"), {}, {"nodes": 9857, "account": "a"}, "at most 9856 / ask for at most 9472"),
    "nodes_beyond_every_bin": (
        site("frontier"),
        {},
        {"nodes": 9473, "account": "a"},
        "--nodes: queue batch takes no job of 9473 nodes / it takes 1 to 9472 nodes",
    ),
    "batch_that_does_not_multiply_out": (
        slurm(),
        {"train_batch_size": 33, "gradient_accumulation_steps": 2},
        {"nodes": 1},
        "train_batch_size: train_batch_size 33 is not",
    ),
    "batch_that_does_not_fill_nodes": (
        slurm(),
        {"train_batch_size": 24, "gradient_accumulation_steps": 1},
        {},
        "train_batch_size 24 / (micro 4 x accumulation 1) x tensor 1 x pipe 1 = 6 ranks, which do not fill nodes of 4",
    ),
    "no_batch_size": (slurm(), {"train_micro_batch_size_per_gpu": None}, {}, "train_micro_batch_size_per_gpu: no batch size"),
    "heads_that_cannot_be_cut": (
        slurm(),
        {"model_parallel_size": 8},
        {},
        "num_attention_heads: num_attention_heads 4 cannot be cut",
    ),
    "more_stages_than_layers": (
        slurm(),
        {"pipe_parallel_size": 8},
        {},
        "pipe_parallel_size: 4 layers cannot be dealt to 8 pipeline stages / write pipe_parallel_size: 4 or less",
    ),
    "stages_of_no_layer": (
        slurm(),
        {"pipe_parallel_size": 2, "pipe_partition_method": "type:moe"},
        {},
        "pipe_partition_method: pipe_partition_method type:moe names no layer of EmbeddingPipe, NormPipe",
    ),
    "more_stages_than_counted_layers": (
        slurm(),
        {"pipe_parallel_size": 4, "pipe_partition_method": "type:norm|linear", "no_weight_tying": True},
        {},
        "counts 2 layers, which cannot be dealt to 4 stages / write pipe_parallel_size 2 or less",
    ),
    "ffn_that_cannot_be_cut": (
        slurm(),
        {"model_parallel_size": 4, "intermediate_size": 90},
        {},
        "intermediate_size: the MLP is 90 wide, which cannot be cut over model_parallel_size 4 / write intermediate_size: 92,",
    ),
    "expanded_ffn_that_cannot_be_cut": (
        slurm(),
        {"model_parallel_size": 4, "expansion_factor": 2.5, "hidden_size": 36},
        {},
        "expansion_factor: the MLP is 90 wide, which cannot be cut over model_parallel_size 4 / write intermediate_size: 92 in its",
    ),
    "gated_ffn_that_cannot_be_cut": (
        slurm(),
        {"model_parallel_size": 4, "activation": "swiglu", "intermediate_size": 270},
        {},
        "intermediate_size: the MLP is 90 wide, which cannot be cut over model_parallel_size 4 / write mlp_multiple_of: 4, or",
    ),
    "sequence_that_cannot_be_cut": (
        slurm(),
        {"model_parallel_size": 4, "seq_length": 63, "sequence_parallel": True},
        {},
        "seq_length: seq_length 63 cannot be cut over model_parallel_size 4",
    ),
    "kv_heads_that_cannot_be_cut": (
        slurm(),
        {"model_parallel_size": 4, "num_attention_heads": 12, "hidden_size": 96, "num_kv_heads": 3},
        {},
        "num_kv_heads: num_kv_heads 3 can neither be cut over model_parallel_size 4 nor copied evenly to its ranks",
    ),
    "width_that_a_row_head_cannot_cut": (
        slurm(),
        {"model_parallel_size": 4, "hidden_size": 66, "num_attention_heads": 6} | ROW_HEAD,
        {},
        "hidden_size: hidden_size 66 cannot be cut over model_parallel_size 4",
    ),
    "gpus_of_a_node_that_differ": (
        slurm(),
        {"num_gpus": 8},
        {},
        "num_gpus: num_gpus 8, and a node of slurm has 4 ranks / remove it, or write --site-set node.gpus=8",
    ),
    "gpus_of_the_job_that_differ": (
        slurm(),
        {"global_num_gpus": 32},
        {},
        "global_num_gpus: global_num_gpus 32, and 1 node of slurm have 4 ranks / remove it, or write --nodes 8",
    ),
    "account_of_the_file_with_shell": (slurm(), {"account": "a; rm"}, {}, "small.yml:14  account: 'a; rm' does not fit slurm"),
    "comment_with_quotes": (slurm(), {"comment": 'a"b'}, {}, "small.yml:14  comment: 'a\"b' does not fit slurm"),
    "the_word_for_a_missing_account": (
        site("frontier"),
        {},
        {"account": "MISSING_ACCOUNT"},
        "--account: MISSING_ACCOUNT is no account",
    ),
    "states_beyond_a_gpu": (
        slurm("node.gpu_memory_gib=16"),
        {"hidden_size": 8192, "num_layers": 40, "num_attention_heads": 64},
        {},
        "model_parallel_size: 486 GiB a GPU of weights, gradients and optimizer, and slurm has 16 / write zero_opt",
    ),
    "zero2_with_pipeline": (
        slurm(),
        {"pipe_parallel_size": 2, "zero_optimization": {"stage": 2}},
        {},
        "zero_optimization.stage: ZeRO stage 2 cannot be combined with 2 pipeline stages",
    ),
    "quantized_without_gpus": (
        site("local"),
        {"zero_optimization": {"stage": 3, "zero_quantized_weights": True}},
        {},
        "zero_optimization.zero_quantized_weights: zero_quantized_weights is a CUDA kernel",
    ),
    "fp16_without_gpus": (site("local"), {"precision": "fp16"}, {}, "precision: fp16 needs GPUs"),
    "walltime_beyond_the_queue": (
        site("frontier"),
        {},
        {"nodes": 50, "walltime_s": 7201, "account": "a"},
        "--time: 02:00:01 is beyond the 02:00:00 of queue batch for 50 nodes / write --time 02:00:00 or less",
    ),
    "nodes_beyond_the_queue": (
        site("frontier"),
        {},
        {"nodes": 65, "queue": "extended", "account": "a"},
        "--nodes: queue extended takes no job of 65 nodes / it takes 1 to 64 nodes",
    ),
    "unknown_queue": (
        site("frontier"),
        {},
        {"queue": "bacth", "account": "a"},
        "--queue: frontier has no queue 'bacth' / did you mean batch?",
    ),
    "name_with_shell_characters": (
        slurm(),
        {},
        {"name": "a;rm -rf $HOME"},
        "--name: 'a;rm -rf $HOME' does not fit slurm: it holds ';' / use letters",
    ),
    "account_with_shell_characters": (slurm(), {}, {"account": "a b"}, "--account: 'a b' does not fit slurm"),
    "queue_with_a_newline": (slurm(), {}, {"queue": "a\n#SBATCH -N9"}, "--queue: 'a\\n#SBATCH -N9' does not fit slurm"),
    "output_directory_with_a_pattern": (slurm(), {}, {"run_dir": "/a%j"}, "--output-dir: '/a%j' does not fit slurm"),
    "walltime_where_nothing_takes_it": (site("local"), {}, {"walltime_s": 60}, "--time: local has no scheduler that takes one"),
    "account_where_nothing_takes_it": (site("local"), {}, {"account": "a"}, "--account: local has no scheduler that takes one"),
}


@pytest.mark.parametrize("name", WRONG)
def test_plan_refuses(name: str) -> None:
    where, keys, asked, problem = WRONG[name]
    found = planned(where, keys=keys, asked=asked)
    assert found.plan is None
    assert any(problem in line for line in wrongs(found)), "\n".join(wrongs(found))


@pytest.mark.parametrize(
    "keys",
    [
        {"pipe_parallel_size": 3},
        {"pipe_parallel_size": 3, "num_layers": 5, "pipe_partition_method": "parameters"},
        {"model_parallel_size": 4, "num_kv_heads": 1},
        {"model_parallel_size": 2, "num_attention_heads": 8, "num_kv_heads": 4},
        {"model_parallel_size": 4, "sequence_parallel": True},
        {"model_parallel_size": 4} | ROW_HEAD,
    ],
    ids=str,
)
def test_uneven_layers_and_shared_kv_heads_have_a_plan(keys: dict[str, Any]) -> None:
    assert planned(slurm(), keys=keys).plan is not None


def test_a_pipeline_with_few_micro_batches_is_told_how_long_it_waits() -> None:
    keys = {"pipe_parallel_size": 4, "gradient_accumulation_steps": 2}
    [note] = [line for line in planned(slurm(), keys=keys).notes if line.startswith("pipeline: ")]
    assert note.startswith("pipeline: 2 micro-batches a step for 4 stages leaves them idle 60% of the time")
    full = planned(slurm(), keys=keys | {"gradient_accumulation_steps": 4})
    assert not [line for line in full.notes if line.startswith("pipeline: ")]


def test_sequence_parallel_on_one_tensor_rank_is_told_to_change_nothing() -> None:
    note = "layout: sequence_parallel changes nothing with model_parallel_size 1"
    assert note in planned(slurm(), keys={"sequence_parallel": True}).notes
    assert note not in planned(slurm(), keys={"sequence_parallel": True, "model_parallel_size": 2}).notes


def test_all_problems_are_found_at_once() -> None:
    keys = {"train_batch_size": 33, "gradient_accumulation_steps": 2, "pipe_parallel_size": 2, "zero_optimization": {"stage": 3}}
    asked = {"name": "a b", "queue": "nowhere", "nodes": 1, "walltime_s": 10**6}
    found = planned(site("frontier"), keys=keys, asked=asked)
    starts = {line.split(":")[0] for line in wrongs(found)}
    assert starts == {"--name", "--queue", "small.yml"}
    assert len(wrongs(found)) == 4
    assert [line.split(":")[0].split("  ")[-1] for line in wrongs(found, "here")] == ["--account", "software"]


def test_20b_on_this_machine_says_what_would_hold_it() -> None:
    keys = {"num_attention_heads": 64, "hidden_size": 6144, "num_layers": 44, "model_parallel_size": 2, "pipe_parallel_size": 4}
    [problem] = wrongs(planned(site("local"), keys=keys))
    assert "tensor 2 x pipe 4 needs a multiple of 8 ranks and local gives 2: take more nodes or a larger site" in problem
    assert "; 8 GPUs of " in problem and " GiB each would hold it (weights " in problem


# Wrong here ------------------------------------------------------------------------------------------------------------


def test_a_missing_account_is_shown_as_a_word_that_submit_refuses() -> None:
    found = planned(site("frontier", "software.python=/p"), asked={"nodes": 2})
    assert found.plan is not None
    assert found.plan.account == "MISSING_ACCOUNT"
    assert wrongs(found, "here") == [
        "--account: frontier charges every job to an account and none is given / write --account NAME, or keep it in "
        "~/.config/neox-hpc/config.yml (sites: {frontier: {account: NAME}})",
    ]


def test_missing_software_is_named_with_what_to_do() -> None:
    found = planned(site("slurm", "node.gpus=4"))
    assert found.plan is not None
    assert found.plan.step.python == "MISSING_SOFTWARE"
    [problem] = wrongs(found, "here")
    assert "software: no Python with torch and DeepSpeed is known / write --site-set software.python=/" in problem


def test_a_missing_fact_is_named_with_the_command_that_tells_it_and_the_remark_beside() -> None:
    where = site("slurm", "find={'node.gpus': 'count them  # with `module load x`, on a node'}")
    [problem] = wrongs(planned(where))
    assert "/ `count them` tells (with `module load x`, on a node); write --site-set node.gpus=4" in problem


def test_absent_inputs_are_named_with_their_line() -> None:
    absent = {"/home/user/data/text.bin": True, "/home/user/data/text.idx": False, "/home/user/data/tokenizer.json": False}
    found = planned(slurm(), facts=Facts(exists=absent))
    assert found.plan is not None
    assert [line.split(" / ")[0] for line in wrongs(found, "here")] == [
        "small.yml:9  data_path: no such file here: /home/user/data/text.idx",
        "small.yml:10  vocab_file: no such file here: /home/user/data/tokenizer.json",
    ]


def test_no_data_at_all_is_wrong_here() -> None:
    found = planned(slurm(), keys={"data_path": None})
    assert found.plan is not None
    assert wrongs(found, "here")[0].startswith("small.yml  data_path: no training data is given / write data_path: PREFIX")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"activation": "swiglu", "intermediate_size": 14336}, ["width 4779 ", "for a width of 14336 write 43008"]),  # Mistral's
        ({"activation": "swiglu", "intermediate_size": 43008}, None),
        ({"activation": "swiglu", "intermediate_size": 32768, "mlp_multiple_of": 256}, None),  # LLaMA's
        ({"intermediate_size": 1000}, None),
    ],
)
def test_a_gated_mlp_of_an_odd_width_is_told_what_to_write(keys: dict[str, Any], told: list[str] | None) -> None:
    notes = [note for note in planned(slurm(), keys=keys).notes if note.startswith("mlp: ")]
    assert (notes == []) if told is None else all(word in notes[0] for word in told)


def test_what_cannot_be_seen_is_a_note() -> None:
    found = planned(slurm())
    assert wrongs(found, "here") == []
    assert "not checked, cannot be seen from here: data_path, vocab_file" in found.notes


ON_NODE = {
    "optimizer": {"type": "cpu_adam"},
    "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    "pipe_parallel_size": 0,
}


def test_deepspeeds_adam_on_the_cpu_is_told_what_it_needs_and_what_does_without() -> None:
    notes = "\n".join(planned(slurm(), keys=ON_NODE).notes)
    assert "no job compiles" in notes and "deepspeed_extra_args: {zero_force_ds_cpu_optimizer: false}" in notes
    without = {"deepspeed_extra_args": {"zero_force_ds_cpu_optimizer": False}}
    assert "no job compiles" not in "\n".join(planned(slurm(), keys=ON_NODE | without).notes)


def test_its_operation_is_a_file_that_must_be_there_and_comes_into_the_run_by_its_whole_path() -> None:
    keys = ON_NODE | {"neox_hpc": {"cpu_adam_op": "ops/cpu_adam.so"}}
    found = planned(slurm(), keys=keys, facts=Facts(exists={"/home/user/ops/cpu_adam.so": False}))
    assert any("neox_hpc.cpu_adam_op: no such file here: /home/user/ops/cpu_adam.so" in text for text in wrongs(found, "here"))
    assert found.plan is not None
    assert found.plan.run.config.own.neox_hpc.cpu_adam_op == "/home/user/ops/cpu_adam.so"


def test_a_key_that_does_not_train_yet_plans() -> None:
    found = planned(slurm(), keys={"tokenizer_type": "SPMTokenizer"})
    assert found.plan is not None
    [problem] = wrongs(found, "untrained")
    assert "  tokenizer_type: SPMTokenizer does not train yet" in problem


def test_a_whole_submit_has_no_problems() -> None:
    there = dict.fromkeys(("/home/user/data/text.bin", "/home/user/data/text.idx", "/home/user/data/tokenizer.json"), True)
    found = planned(site("local"), facts=Facts(exists=there, machine=TWO_CORES.machine))
    assert (found.problems, found.plan is not None) == ((), True)


# The launcher ----------------------------------------------------------------------------------------------------------------


def test_arguments_of_the_launcher_come_from_site_configuration_and_command_line() -> None:
    where = slurm('launcher_args=["--mpi=none"]')
    found = plan(where, keys={"neox_hpc": {"launcher_args": ["--nice 5"]}}, launcher_args=("--comment='a b'",))
    assert found.step.launcher_args == ("--mpi=none", "--nice", "5", "--comment=a b")


def test_arguments_that_the_plan_decides_are_refused_where_they_stand() -> None:
    where = slurm('launcher_args=["--distribution=cyclic"]')
    found = planned(where, keys={"neox_hpc": {"launcher_args": ["-n 8"]}}, asked={"launcher_args": ("--export=NONE", "-x 'a")})
    assert wrongs(found) == [
        f"{where.file}  launcher_args: --distribution=cyclic is decided by the plan / remove it: ranks of a node are neighbours",
        "small.yml:14  neox_hpc.launcher_args: -n is decided by the plan / write --nodes",
        """--launcher-args: "--export=NONE -x 'a" has no closing quotation / close the quote""",
    ]


def test_a_launcher_that_cannot_part_gpus_is_not_asked_to() -> None:
    [wrong] = wrongs(planned(slurm("launcher=openmpi", "gpus_visible=one")))
    assert "the launcher openmpi cannot show each rank one GPU / write gpus_visible: all" in wrong
    assert not wrongs(planned(slurm("gpus_visible=one")))


def test_the_launcher_of_one_node_is_not_asked_for_two() -> None:
    [wrong] = wrongs(planned(slurm("launcher=local"), asked={"nodes": 2}))
    assert "2 nodes, and the launcher local starts ranks on its own one / write launcher: pdsh, or --nodes 1" in wrong


@pytest.mark.parametrize(("launcher", "note"), [("srun", ""), ("jsrun", "in a row"), ("pdsh", "binds no ranks to cores")])
def test_a_map_of_cores_that_is_not_followed_is_told(launcher: str, note: str) -> None:
    masks = '["0-15", "16-31", "32-47", "48,50-64"]'  # four even rows are what jsrun gives
    notes = [note for note in planned(slurm(f"launcher={launcher}", f"node.cpu_masks={masks}")).notes if "cpu_masks" in note]
    assert len(notes) == bool(note) and all(note in text for text in notes)


def test_ranks_are_told_the_names_of_the_jobs_variables() -> None:
    names = plan(slurm("env.FOO=bar", 'modules.load=["rocm"]')).step.env
    assert {"FOO", "MASTER_ADDR", "NEOX_HPC_ATTEMPT_DIR", "LD_LIBRARY_PATH"} <= set(names)
    assert "LD_LIBRARY_PATH" not in plan(slurm()).step.env


@pytest.mark.parametrize(("launcher", "refused"), [("srun", False), ("openmpi", False), ("pdsh", True)])
def test_a_signal_is_asked_for_only_where_the_launcher_brings_it_to_the_ranks(launcher: str, refused: bool) -> None:
    asked = {"early_signal": EarlySignal(signal="USR1", seconds=300), "walltime_s": 3600}
    told = [wrong for wrong in wrongs(planned(slurm(f"launcher={launcher}"), asked=asked)) if "--signal" in wrong]
    assert [("does not reach the ranks" in wrong) for wrong in told] == [True] * refused


@pytest.mark.parametrize(
    ("value", "text"), [(0.0312, "0.0312"), (3, "3"), (99.96, "100"), (47.34, "47.3"), (999.7, "1,000"), (113_812.4, "113,812")]
)
def test_numbers_are_told_by_their_digits(value: float, text: str) -> None:
    assert show_number(value) == text
