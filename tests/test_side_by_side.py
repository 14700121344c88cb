"""Tasks at once: really at once, in order, on their share of the threads."""

import threading

import pytest
import torch

from fedmitr_app.side_by_side import side_by_side

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
def test_tasks_meet_and_share_the_threads():
    barrier = threading.Barrier(2)

    def task(name):
        barrier.wait(timeout=30)  # one after the other would never meet
        return name, torch.get_num_threads()

    found = side_by_side([lambda: task("first"), lambda: task("second")], CPU)
    assert found == [("first", 2), ("second", 2)]
    assert torch.get_num_threads() == 4
    # A thread that begins later isn't left with a share either.
    assert side_by_side([torch.get_num_threads], CPU) == [4]


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize(("device", "tasks"), [(GPU, 2), (CPU, 5)])
def test_a_gpu_or_too_few_cores_take_them_one_after_the_other(device, tasks):
    here = threading.current_thread()
    found = side_by_side([threading.current_thread for _ in range(tasks)], device)
    assert found == [here] * tasks


@pytest.mark.usefixtures("four_threads")
def test_an_error_comes_out_when_all_are_over():
    done = threading.Event()
    failed = threading.Event()

    def fail():
        failed.set()
        raise ValueError("first")

    def finish():
        assert failed.wait(timeout=30)
        done.set()

    with pytest.raises(ValueError, match="first"):
        side_by_side([fail, finish], CPU)
    assert done.is_set() and torch.get_num_threads() == 4
