from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aioembed.errors import (
    ExecutorchError,
    InvalidConfig,
    ModelClosed,
    UnexpectedNumInputs,
    WrongDimensions,
)
from aioembed.runtime import EXECUTORCH_VERSION, MethodInfo, Program, TensorInfo, backends

PAIR = TensorInfo((2, 3), "float32")


def ones(*shape: int, dtype: str = "float32") -> np.ndarray[Any, Any]:
    return np.ones(shape, dtype)


def linear(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the linear programs compute."""
    weights = np.arange(32, dtype=np.float32).reshape(4, 8) / 100
    return batch @ weights.T + 1


def test_describes_methods_with_their_shapes_and_dtypes(programs: Path) -> None:
    program = Program.load(programs / "add.pte")
    assert program.path == programs / "add.pte"
    assert dict(program.methods) == {"forward": MethodInfo("forward", (PAIR, PAIR), (PAIR,))}
    masked = Program.load(programs / "masked_lookup.pte").methods["forward"]
    assert masked.inputs == (TensorInfo((1, 4), "int64"), TensorInfo((1, 4), "float32"))
    assert masked.outputs == (TensorInfo((1, 4, 2), "float32"), TensorInfo((), "float32"))


def test_says_which_tensors_are_dynamic_and_their_upper_bounds(programs: Path) -> None:
    method = Program.load(programs / "linear_dynamic_batch.pte").methods["forward"]
    assert method.inputs == (TensorInfo((16, 8), "float32", dynamic=True),)
    assert method.outputs == (TensorInfo((16, 4), "float32", dynamic=True),)
    assert str(method.inputs[0]) == "float32 (<=16, <=8)"


def test_runs_two_inputs_through_the_portable_kernels(programs: Path) -> None:
    a, b = np.random.default_rng(0).random((2, 2, 3), dtype=np.float32)
    (total,) = Program.load(programs / "add.pte").run(a, b)
    np.testing.assert_array_equal(total, a + b)


def test_runs_a_linear_through_xnnpack(programs: Path) -> None:
    batch = np.random.default_rng(1).random((1, 8), dtype=np.float32)
    (result,) = Program.load(programs / "linear_xnnpack.pte").run(batch)
    np.testing.assert_allclose(result, linear(batch), rtol=1e-6)


def test_takes_ids_and_a_mask_of_different_dtypes(programs: Path) -> None:
    ids = np.array([[3, 0, 7, 1]])
    mask = np.array([[1, 1, 0, 1]], np.float32)
    rows, count = Program.load(programs / "masked_lookup.pte").run(ids, mask)
    np.testing.assert_array_equal(rows[0], [[6, 7], [0, 1], [0, 0], [2, 3]])
    assert count.shape == ()
    assert count == 3


@pytest.mark.parametrize("batch", [16, 1, 7])
def test_runs_every_batch_size_up_to_the_bound(programs: Path, batch: int) -> None:
    program = Program.load(programs / "linear_dynamic_batch.pte")
    rows = np.random.default_rng(batch).random((batch, 8), dtype=np.float32)
    for size in (batch, 3, batch):
        (result,) = program.run(rows[:size])
        np.testing.assert_allclose(result, linear(rows[:size]), rtol=1e-6)


def test_runs_the_method_that_is_named(programs: Path) -> None:
    program = Program.load(programs / "two_methods.pte")
    a, b = ones(2, 3) * 5, ones(2, 3)
    assert (program.run(a, b, method="add")[0] == 6).all()
    assert (program.run(a, b, method="subtract")[0] == 4).all()


def test_outputs_are_fresh_arrays_that_outlive_the_program(programs: Path) -> None:
    program = Program.load(programs / "add.pte")
    (first,) = program.run(ones(2, 3), ones(2, 3))
    program.run(ones(2, 3) * 9, ones(2, 3))
    program.close()
    assert (first == 2).all()
    assert first.flags.c_contiguous
    first += 1
    assert (first == 3).all()


def test_inputs_may_be_read_only(programs: Path) -> None:
    array = ones(2, 3)
    array.setflags(write=False)
    assert (Program.load(programs / "add.pte").run(array, array)[0] == 2).all()


def test_reads_constant_methods_of_every_type(programs: Path) -> None:
    program = Program.load(programs / "constants.pte")
    assert list(program.methods) == ["forward"]
    constants = dict(program.constants)
    tensor, ids = constants.pop("a_tensor"), constants.pop("an_int_tensor")
    assert constants == {
        "a_bool": True,
        "a_float": 0.1,
        "a_float_list": [0.25, 0.5, 0.75],
        "a_string": "grün, 緑",
        "an_empty_string": "",
        "an_int": 1 << 40,
        "an_int_list": [1, 2, 3],
    }
    assert constants["a_bool"] is True
    assert isinstance(tensor, np.ndarray)
    np.testing.assert_array_equal(tensor, np.array([[1, 2], [3, 4]], np.float32))
    assert isinstance(ids, np.ndarray)
    assert ids.dtype == np.int64
    assert ids.tolist() == [5, 6]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_inputs_is_refused(programs: Path, count: int) -> None:
    program = Program.load(programs / "add.pte")
    with pytest.raises(
        UnexpectedNumInputs, match=rf"forward takes 2 inputs .* got {count}"
    ) as info:
        program.run(*[ones(2, 3)] * count)
    assert info.value.code == 121


@pytest.mark.parametrize(
    ("second", "seen"),
    [
        (ones(3, 2), r"float32 \(3, 2\)"),
        (ones(1, 3), r"float32 \(1, 3\)"),
        (ones(2, 3, 1), r"float32 \(2, 3, 1\)"),
        (ones(6), r"float32 \(6,\)"),
        (ones(2, 3, dtype="float64"), r"float64 \(2, 3\)"),
        (ones(2, 3, dtype=">f4"), r">f4 \(2, 3\)"),
        (np.asfortranarray(ones(2, 3)), "not C-contiguous"),
        (ones(2, 6)[:, ::2], "not C-contiguous"),
        ([[1.0] * 3] * 2, "of type list"),
    ],
)
def test_a_wrong_input_is_refused_with_what_came_and_what_is_wanted(
    programs: Path, second: Any, seen: str
) -> None:
    program = Program.load(programs / "add.pte")
    wanted = rf"forward: input 1 is .*{seen}.* must be float32 \(2, 3\), C-contiguous"
    with pytest.raises(WrongDimensions, match=wanted) as info:
        program.run(ones(2, 3), second)
    assert info.value.code == 116
    assert (program.run(ones(2, 3), ones(2, 3))[0] == 2).all()


@pytest.mark.parametrize("batch", [0, 17])
def test_a_batch_outside_the_bounds_is_refused(programs: Path, batch: int) -> None:
    with pytest.raises(WrongDimensions, match="<=16"):
        Program.load(programs / "linear_dynamic_batch.pte").run(ones(batch, 8))


def test_an_unknown_method_is_refused_and_the_known_ones_are_named(programs: Path) -> None:
    with pytest.raises(InvalidConfig, match="no method 'forward'; it has add, subtract"):
        Program.load(programs / "two_methods.pte").run(ones(2, 3), ones(2, 3))


def test_a_failing_run_raises_the_runtimes_error_and_the_program_stays_usable(
    programs: Path,
) -> None:
    program = Program.load(programs / "lookup.pte")
    with pytest.raises(ExecutorchError, match=r"InvalidArgument \(18\).*weight_height") as info:
        program.run(np.full((1, 4), 99))
    assert (info.value.code, info.value.name) == (18, "InvalidArgument")
    assert any("weight_height" in line for line in info.value.log)
    assert program.run(np.full((1, 4), 2))[0].tolist() == [[[4, 5]] * 4]


def test_close_is_idempotent_and_a_run_after_it_is_refused(programs: Path) -> None:
    program = Program.load(programs / "add.pte")
    program.close()
    program.close()
    with pytest.raises(ModelClosed, match=r"add\.pte"):
        program.run(ones(2, 3), ones(2, 3))
    assert program.methods["forward"].inputs == (PAIR, PAIR)


def test_says_what_is_built_in() -> None:
    assert backends() == ("XnnpackBackend",)
    assert EXECUTORCH_VERSION.startswith("1.5.1")
