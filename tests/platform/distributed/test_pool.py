"""Jobs on Ray actors: what their user can fix comes back as one error, and without a traceback."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from mergevq.errors import InputError
from mergevq_platform.distributed import cluster, ordered_map
from mergevq_platform.recipe import ClusterConfig


class Odd:
    def __init__(self, subject: str) -> None:
        if subject == "unmade":
            raise InputError("no file 'weights.pth' here")

    def answer(self, job: int) -> int:
        if job % 2:
            raise InputError("an image cannot be decoded")
        return job


@pytest.mark.ray
def test_an_input_error_of_a_worker_is_one_line(ray_home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for subject, said in (("unmade", "no file 'weights.pth' here"), ("made", "an image cannot be decoded")):
        answers = ordered_map.answers(Odd, subject, workers=2)
        with pytest.raises(InputError, match=f"^{said}$"):
            list(answers(range(8)))
    assert list(answers([2, 4])) == [2, 4]
    del answers
    gc.collect()  # Ray prints the errors of answers that nobody took when it drops them
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("asked", "gpus", "expected", "said"),
    [
        ({"workers": 4}, 0, (4, "cpu"), None),
        ({"workers": 4}, 4, (4, "cuda"), None),
        ({"workers": 4}, 3, (4, "cpu"), None),
        ({"workers": 4, "device": "cpu"}, 8, (4, "cpu"), None),
        (
            {"workers": 4, "min_workers": 2},
            3,
            (3, "cuda"),
            "3 GPUs now, cluster.workers is 4: evaluating on 3",
        ),
        (
            {"workers": 4, "device": "cuda"},
            1,
            (1, "cuda"),
            "1 GPU now, cluster.workers is 4: evaluating on 1",
        ),
        (
            {"workers": 2, "device": "cuda"},
            0,
            (2, "cpu"),
            "0 GPUs now, cluster.workers is 2: evaluating on CPUs",
        ),
    ],
)
def test_a_run_that_ended_with_fewer_workers_is_evaluated_by_those_there_are(
    asked: dict, gpus: int, expected: tuple[int, str], said: str | None
) -> None:
    workers, device, line = cluster.evaluators_on(ClusterConfig(**asked), gpus)
    assert (workers, device) == expected
    assert (line is None) if said is None else (said in str(line))


def test_without_ray_an_input_error_is_raised_where_it_is() -> None:
    class Odd:
        def __init__(self, subject: str) -> None:
            self.subject = subject

        def answer(self, job: int) -> int:
            raise InputError(f"{self.subject} {job}")

    with pytest.raises(InputError, match="x 3"):
        list(ordered_map.answers(Odd, "x")([3]))
