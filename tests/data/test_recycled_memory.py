"""Recycled memory of batches: it is never reused while a batch still refers to it."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from vox.data.batch import RecycledMemory

# Take a tensor of so many elements; or let go of the n-th of those held, keeping a view of it or not.
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 50)),
        st.tuples(st.sampled_from(["drop", "keep a view"]), st.integers(0, 10)),
    ),
    max_size=60,
)


@given(ACTIONS)
def test_what_is_held_keeps_its_content(actions: list[tuple[str, int]]) -> None:
    memory, held, most = RecycledMemory(), [], 0
    for number, (action, argument) in enumerate(actions):
        if action == "take":
            held.append((number, memory.take((2, argument), torch.float16).fill_(number)))
        elif held:
            name, tensor = held.pop(argument % len(held))
            if action == "keep a view":
                held.append((name, tensor[1:].T))
            del tensor
        most = max(most, len(held))
        assert all((tensor == name).all() for name, tensor in held)
        assert len(memory._free) + len(held) <= most  # no more blocks than were in use at once


def test_a_block_is_used_again_until_a_larger_one_takes_its_place() -> None:
    memory = RecycledMemory()
    first = memory.take((100,), torch.float32)
    address = first.data_ptr()
    del first
    smaller = memory.take((3, 5), torch.int64)
    assert smaller.data_ptr() == address and smaller.shape == (3, 5) and smaller.dtype is torch.int64
    del smaller
    larger = memory.take((1000,), torch.float32)
    assert memory._free == []
    del larger
    assert [block.nbytes for block in memory._free] == [4000]


class SlowList(list[np.ndarray]):
    """A list from which another thread may take an item while it is being searched."""

    def __iter__(self) -> Iterator[np.ndarray]:
        yield from list.__iter__(self)
        time.sleep(0.0001)


def test_threads_share_it() -> None:
    memory, wrong = RecycledMemory(), []
    memory._free = SlowList()

    def work(number: int) -> None:
        for step in range(300):
            tensor = memory.take((step % 7 + 1, 40), torch.float16).fill_(number)
            if not (tensor == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(memory._free) <= 8  # each thread holds one while it takes the next
