"""Layout and batch equation."""

from __future__ import annotations

import pytest

from model.config.layout import Layout, solve_batch


def test_data_parallel_ranks_are_what_tensor_and_pipe_leave() -> None:
    assert Layout(world_size=96, tensor=2, pipe=4).data == 12


def test_a_world_that_does_not_hold_the_cut_is_refused_with_the_multiple() -> None:
    with pytest.raises(ValueError, match="use a multiple of 8"):
        Layout(world_size=12, tensor=2, pipe=4)


@pytest.mark.parametrize(
    ("train", "micro", "accumulation", "expected"),
    [
        (None, 4, None, (8, 4, 1)),
        (None, 4, 3, (24, 4, 3)),
        (24, None, None, (24, 12, 1)),
        (24, None, 3, (24, 4, 3)),
        (24, 4, None, (24, 4, 3)),
        (24, 4, 3, (24, 4, 3)),
    ],
)
def test_the_batch_equation_is_solved_for_what_is_absent(
    train: int | None, micro: int | None, accumulation: int | None, expected: tuple[int, int, int]
) -> None:
    solved = solve_batch(train=train, micro=micro, accumulation=accumulation, data=2)
    assert (solved.train, solved.micro, solved.accumulation) == expected
    assert solved.train == solved.micro * solved.accumulation * solved.data


@pytest.mark.parametrize(
    ("train", "micro", "accumulation", "message"),
    [
        (None, None, 2, "no batch size"),
        (25, 4, None, "write 24 or 32"),
        (5, None, 4, "write 8"),
        (24, 4, 2, r"4 x gradient_accumulation_steps 2 x 2 data-parallel ranks = 16"),
    ],
)
def test_batch_numbers_that_do_not_multiply_out_name_all_factors(
    train: int | None, micro: int | None, accumulation: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        solve_batch(train=train, micro=micro, accumulation=accumulation, data=2)
