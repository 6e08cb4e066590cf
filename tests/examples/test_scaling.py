"""The prediction for many hosts: its formula, and the demo in one process and on two ranks."""

import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytest.importorskip("matplotlib", reason="the examples need the `examples` extra")

from matplotlib.image import imread

from examples import scaling
from examples.scaling import FULL, LORA, Link, Work


def is_picture(path):
    """Whether a file is a PNG as wide as a page, and not blank."""
    pixels = imread(path)
    return pixels.shape[1] == 1200 and pixels.std() > 0.05


def test_a_step_is_its_micro_batches_an_update_and_two_messages_to_each_other_host():
    work = Work(micro_batch=0.5, update=0.25, gradients=1000 - 10 * scaling.ROW)
    link = Link(bandwidth=1e6, of_sum=0.1, of_message=0.01, latency=0.001)
    assert work.summed(10) == 1000
    assert [work.sent(hosts, 10) for hosts in (1, 2, 4, 5)] == [0, 1000, 1500, 1600]
    assert work.seconds(1, 10, link) == 10 * 0.5 + 0.25
    for hosts, most, sum_of_numbers in (
        (2, 5, 0.1 + 2 * 0.01 + 1000 / 1e6 + 3 * 0.001),
        (4, 3, 0.1 + 6 * 0.01 + 1500 / 1e6 + 4 * 0.001),
        (5, 2, 0.1 + 8 * 0.01 + 1600 / 1e6 + 5 * 0.001),
    ):
        seconds = most * 0.5 + 0.25 + sum_of_numbers
        assert work.seconds(hosts, 10, link) == pytest.approx(seconds)


def test_hosts_that_need_not_wait_are_efficient():
    work, slow = Work(0.5, 0.0, 10**6), Link(1e6)
    assert work.efficiency(1, 8, slow) == 1
    assert work.efficiency(8, 8, Link()) == 1
    assert work.efficiency(3, 8, Link()) == pytest.approx(8 / 9)  # one has only two
    assert work.efficiency(8, 8, slow) == pytest.approx(0.5 / (0.5 + 2 * 7 / 8), rel=1e-3)


def test_bytes_take_one_link_after_the_other():
    both = Link(2.0, 1.0, 0.5, 0.25).then(Link(2.0, 3.0, 5.0, 7.0))
    assert both == Link(1.0, 4.0, 5.5, 7.25)
    assert both.then(Link()) == both


def test_one_process_predicts_its_own_step_and_sends_nothing(tmp_path, capsys):
    out = tmp_path / "scaling.png"
    result = scaling.main(quick=True, out=out)
    assert result.here == Link()
    assert [(check.kind, check.ranks, check.sent) for check in result.checks] == [
        (FULL, 1, 0),
        (LORA, 1, 0),
    ]
    for kind, work in result.work.items():
        model = scaling.prepared(kind, scaling.QUICK)
        assert work.gradients == sum(p.data.nbytes for p in model.trainable_parameters())
        assert work.micro_batch > 0
    printed = capsys.readouterr().out
    assert "start two ranks to measure sums" in printed
    assert printed.count("n = 1: ") == 2
    assert printed.count("Gbit/s") == len(result.work) * len(scaling.NETWORKS)
    assert is_picture(out)


@pytest.mark.full
@pytest.mark.skipif(
    not (find_spec("mpi4py") and shutil.which("mpiexec")), reason="needs mpi4py and mpiexec"
)
@pytest.mark.parametrize("count", [2, 3])
def test_ranks_measure_sums_and_steps_on_one_and_on_all(count, tmp_path):
    out = tmp_path / "scaling.png"
    command = ["mpiexec", "-n", str(count), sys.executable, "-m", "examples", "scaling", "--quick"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for n in (1, count):
        for kind in (FULL, LORA):
            assert done.stdout.count(f"{kind}, n = {n}: ") == 1  # by one of the ranks
    assert "GB/s with packing and adding" in done.stdout
    assert is_picture(out)
