from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from align.circumstances import cores
from align.pipeline.background import BackgroundWorker, share_cores


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_cores_are_shared_until_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    share_cores()
    assert torch.get_num_threads() == max(1, cores() // 2)
    share_cores(1)
    assert torch.get_num_threads() == cores()


def test_the_users_number_of_threads_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    share_cores(1)
    assert torch.get_num_threads() == 1


def test_without_a_second_process_calls_run_at_once() -> None:
    with BackgroundWorker(parallel=False) as worker:
        assert worker.submit(divmod, 7, 2).result() == (3, 1)
        with pytest.raises(ZeroDivisionError):
            worker.submit(divmod, 7, 0)


def test_a_second_process_runs_calls_in_order() -> None:
    with BackgroundWorker(parallel=True) as worker:
        jobs = [worker.submit(divmod, 7, k) for k in (2, 3)]
        assert [job.result() for job in jobs] == [(3, 1), (2, 1)]
