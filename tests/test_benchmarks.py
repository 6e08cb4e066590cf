"""The benchmarks' own logic, on made-up work: who runs when, what is refused, what is shown.

Nothing is timed here. The processes that the driver starts find `WORKLOADS` in this very module.
"""

import json
import os
import sys
import sysconfig

import numpy as np
import pytest

import minigrad
from minigrad import nn
from minigrad.kernels.jit import JIT_ENABLED
from tests.benchmarks import __main__ as command
from tests.benchmarks import driver, picture, report
from tests.benchmarks.driver import BenchmarkError, Figure, Measured, check_agreement
from tests.benchmarks.workload import BEST, OURS, Contender, Goal, Point, Workload, checksum
from tests.benchmarks.workloads import WORKLOADS as REAL
from tests.benchmarks.workloads import capture, lora, matmul, neural
from tests.benchmarks.workloads.process import check_compiled
from tests.hosts import HOSTS, PEERS

LOG = "BENCHMARK_TEST_LOG"


def _logged(who):
    def prepare(case):
        print("a library that prints, which is not an answer")

        def run():
            with open(os.environ[LOG], "a") as file:
                file.write(f"{who} {case} {os.getpid()}\n")
            return 10.0 if who == OURS else 25.0

        return run

    return prepare


def _constant(value):
    return Contender(lambda _: lambda: value)


def _dies(_):
    os._exit(3)


WORKLOADS = {
    "order": Workload(
        "who runs when",
        {
            OURS: Contender(_logged(OURS)),
            "peer": Contender(_logged("peer")),
            "absent": Contender(_dies, ("no_such_module",)),
        },
        [Point("first", 1), Point("second", 2)],
        steps=0,
        unit="B",
    ),
    "other work": Workload("", {OURS: _constant(1.0), "peer": _constant(1.001)}),
    "dies": Workload("", {OURS: _constant(1.0), "peer": Contender(_dies)}),
}


def measure(name, rounds=1, threads=1):
    return driver.measure(name, WORKLOADS[name], threads, rounds, 0.0, module=__name__)


def measured(label="", ours=1.0, **peers):
    figures = {OURS: ours, **peers}
    return Measured(label, 0.0, 0.0, {who: Figure(x, x, x, x) for who, x in figures.items()})


@pytest.mark.full
def test_contenders_alternate_each_in_a_process_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    first, second = measure("order", rounds=2)
    calls = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    # At each point the first calls of both, then two rounds of one call each.
    assert [tuple(call[:2]) for call in calls] == [
        (who, point) for point in "12" for _ in range(3) for who in (OURS, "peer")
    ]
    processes = {(who, pid) for who, _, pid in calls}
    assert len(processes) == 2
    assert len({pid for _, pid in processes} | {str(os.getpid())}) == 3
    assert (first.label, second.label) == ("first", "second")
    assert list(first.figures) == [OURS, "peer"]  # and not the one that is not installed
    assert first.figures["peer"] == Figure(25.0, 25.0, 25.0, 25.0)
    assert first.ratio("peer") == 2.5


@pytest.mark.full
def test_different_results_are_refused():
    with pytest.raises(BenchmarkError, match=r"minigrad 1, peer 1\.001"):
        measure("other work")


def test_agreement():
    check_agreement("", {OURS: 1.0, "peer": 1 + 1e-7, "draws its own": None}, 1e-6)
    check_agreement("", {OURS: None, "peer": None}, 1e-6)
    for wrong in (1 + 1e-5, np.nan, np.inf):
        with pytest.raises(BenchmarkError, match="at 8: results differ"):
            check_agreement("at 8", {OURS: 1.0, "peer": wrong}, 1e-6)
    with pytest.raises(BenchmarkError):  # nan beside nan is not an agreement
        check_agreement("", {OURS: np.nan, "peer": np.nan}, 1e-6)


@pytest.mark.full
def test_a_dead_contender_is_named():
    with pytest.raises(BenchmarkError, match="the process of peer has stopped"):
        measure("dies")


def test_n_threads_get_n_cores_and_we_keep_ours(monkeypatch):
    ours, calls = {0, 1, 2, 3}, []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: ours, raising=False)
    monkeypatch.setattr(
        os, "sched_setaffinity", lambda _, cores: calls.append(set(cores)), raising=False
    )
    for count in (1, 2):
        with pytest.raises(KeyError), driver.on_cores(count):
            raise KeyError
    assert calls == [{3}, ours, {2, 3}, ours]


def test_every_library_gets_the_same_threads(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--mine")
    one, two = driver.environment(1), driver.environment(2)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        assert (one[name], two[name]) == ("1", "2")
    assert one["XLA_FLAGS"].startswith("--mine ")
    assert "multi_thread_eigen=false" in one["XLA_FLAGS"]
    assert two["XLA_FLAGS"] == "--mine"


def test_checksum_sees_size_and_not_sign():
    assert checksum(None) is None
    assert checksum(np.array([[1, -2], [3, -4]], np.float32)) == 10
    assert checksum(0.5) == 0.5


def test_verdicts():
    points = [measured("a", 1.0, x=2.0, y=1.0), measured("b", 1.0, x=0.5, y=4.0)]
    best = report.Verdict(Goal(BEST, each=0.5, mean=0.7), points)
    assert best.ratios == {"a": 1.0, "b": 0.5}
    assert best.mean == pytest.approx(0.5**0.5, rel=1e-15)
    assert best.met
    assert not report.Verdict(Goal(BEST, each=0.51), points).met
    assert not report.Verdict(Goal(BEST, mean=0.72), points).met
    x = report.Verdict(Goal("x", each={"a": 3.0}), points)
    assert [x.met_at("a"), x.met_at("b"), x.met] == [False, True, False]
    assert not report.Verdict(Goal("absent", each=1.0), points).ratios


def test_goals_depend_on_threads():
    workload = Workload("", {}, goals=[Goal("x", 1.0, threads=1), Goal("x", 2.0, threads=2)])
    assert [goal.each for goal in report.goals_of(workload, 2)] == [2.0]
    assert report.goals_of(workload, 3) == []


def test_table():
    workload = Workload("", {}, goals=[Goal(BEST, each=0.95, mean=1.0)])
    points = [measured("a", 1e-3, x=2e-3, y=3e-3), measured("b", 1e-3, x=5e-4, y=9e-4)]
    lines = report.table(workload, points, threads=1).splitlines()
    assert len({len(line) for line in lines[:-1]}) == 1
    assert "1 ms +-0 %" in lines[2]
    assert "(2.00)" in lines[2]
    assert "MISSED" not in lines[2]
    assert lines[3].endswith("best >= 0.95 MISSED |")
    assert [cell.strip() for cell in lines[4].split("|")[3:7]] == [
        "1.00",
        "1.64",
        "1.00",
        "best >= 1",
    ]
    assert lines[5].split("|")[5].strip() == "0.50"


def test_summary_has_a_row_for_each_goal_and_a_column_for_each_number_of_threads():
    workloads = {
        "w": Workload("work", {}, goals=[Goal("x", {"a": 3.0, "b": 1.0}, threads=2)]),
        "alone": Workload("no peer", {}, limit=20.0),
    }
    points = [measured("a", 1.0, x=2.0), measured("b", 1.0, x=0.5)]
    results = {1: {"w": points, "alone": [measured(ours=4.0)]}, 2: {"w": points}}
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in report.summary(workloads, results).splitlines()
    ]
    assert rows[0][2:] == ["1 thread: ratio (wanted)", "2 threads: ratio (wanted)"]
    assert rows[2] == ["w: work", "x", "mean 1.00, least 0.50", "2.00 (3), 0.50 (1)"]
    assert rows[3] == ["alone: no peer", "", "4 s (at most 20 s)", ""]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(1.5, "s", "1.5 s"), (2e-5, "s", "20 us"), (0.0, "s", "0 ns"), (1.893e8, "B", "189 MB")],
)
def test_quantity(value, unit, text):
    assert report.quantity(value, unit) == text


@pytest.mark.full
def test_picture(tmp_path):
    roof = {
        point.label: Measured(
            point.label, point.flops, point.bytes, {OURS: Figure(1e-3, 1e-3, 1e-3, 1e-3)}
        )
        for point in REAL["roof"].points
    }
    products = [
        Measured(p.label, p.flops, p.bytes, measured(x=1.0, numpy=2.0).figures)
        for p in REAL["matmul"].points
    ]
    results = {1: {"roof": list(roof.values()), "matmul": products}}
    rows = picture.chart_rows(REAL, results[1], 1)
    assert [row.label for row in rows] == ["matmul"]  # 27 points share a row; the roof has no peer
    assert {v.goal.peer for v in rows[0].verdicts} == {BEST, "numpy", "x"}
    path = tmp_path / "picture.png"
    assert picture.draw(path, {"processor": "made up"}, REAL, results)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert not picture.draw(tmp_path / "none.png", {}, REAL, {1: {"roof": results[1]["roof"]}})


def test_the_command_writes_what_it_shows(tmp_path, monkeypatch, capsys):
    def fake(name, workload, threads, rounds, seconds, *, tick):
        if name == "mlp":
            raise BenchmarkError("results differ")
        tick()
        return [measured(ours=1.0, torch=1.5)]

    monkeypatch.setattr(driver, "measure", fake)
    assert command.main(["mlp", "chain", "--quick", "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "error: mlp: results differ" in shown.err
    assert "torch >= 1.35" in shown.out
    written = json.loads((tmp_path / "benchmarks.json").read_text())
    assert [r["workload"] for r in written["results"]] == ["chain"]
    assert written["results"][0]["points"][0]["figures"]["torch"]["median"] == 1.5
    assert "1.50 (1.35)" in (tmp_path / "benchmarks.md").read_text()
    assert (tmp_path / "benchmarks.png").exists()
    assert command.main(["chain", "--out", str(tmp_path)]) == 0


def test_a_target_is_set_for_every_contender_and_named(tmp_path, monkeypatch):
    variables = HOSTS["AVX2"] | PEERS["AVX2"]
    for name in variables:
        monkeypatch.setenv(name, "")  # which is restored afterwards
    seen = []

    def fake(*args, tick):
        seen.append(driver.environment(1))
        return [measured(ours=1.0, torch=1.5)]

    monkeypatch.setattr(driver, "measure", fake)
    assert command.main(["chain", "--target", "avx2", "--out", str(tmp_path)]) == 0
    for name, value in variables.items():
        assert value in seen[0][name]
    written = json.loads((tmp_path / "benchmarks.json").read_text())
    assert written["conditions"]["instructions of all contenders"] == "AVX2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chian"], "there is no chian; there are roof,"),
        (["--threads", "9999"], "but there are"),
        (["--threads", "0"], "a whole number from 1"),
        (["--rounds", "0"], "a whole number from 1"),
        (["--target", "mmx"], "invalid choice: 'mmx'"),
    ],
)
def test_the_command_refuses(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(driver, "measure", None)  # nothing may run
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", REAL)
def test_a_workload_is_consistent(name):
    workload = REAL[name]
    labels = [point.label for point in workload.points]
    assert OURS in workload.contenders
    assert len(set(labels)) == len(labels)
    for goal in workload.goals:
        assert goal.peer == BEST or goal.peer in workload.peers
        assert not isinstance(goal.each, dict) or goal.each.keys() <= set(labels)


def test_layouts_are_of_memory_and_not_of_values():
    for layout in matmul.LAYOUTS:
        x, y = matmul.Case(3, 4, 5, layout).operands()
        assert (x.shape, y.shape) == ((3, 4), (4, 5))
        assert [x.flags.c_contiguous, y.flags.c_contiguous] == [part == "N" for part in layout]
    point = matmul.Case(3, 4, 5, batch=(2,)).point("")
    assert (point.flops, point.bytes) == (2 * 2 * 60, 4 * 2 * (12 + 20 + 15))


@pytest.mark.parametrize("update", ["LoRA", "DoRA"])
def test_lora_trains_the_adapters_of_every_layer_and_nothing_else(update):
    case = lora.Case(8, 3, 4, 2, update)
    given = lora.arrays(case)
    assert len(given.weights) == 3
    assert all((b != 0).any() for b in given.b)
    run = lora.with_minigrad(case)
    losses = [run() for _ in range(3)]
    first = _loss_by_numpy(given, update == "DoRA")
    assert losses[0] == pytest.approx(first, rel=1e-5)  # float32 against float64
    assert losses[2] < losses[1] < losses[0]


SMALL_BLOCK = neural.Size(width=8, heads=2, depth=1, batch=2, length=4)


def test_a_block_begins_with_the_loss_of_its_merged_weights_and_learns():
    weights = neural.block_weights(SMALL_BLOCK)
    adapters = capture.block_adapters(SMALL_BLOCK)
    assert len(adapters) == 6
    for name, (a, b) in adapters.items():
        weights[f"{name}.weight"] += lora.ALPHA_OVER_RANK * b @ a
    block = nn.TransformerBlock(8, 2, causal=True)
    block.load_state_dict(weights)
    x, target = map(minigrad.tensor, neural.batch_of(SMALL_BLOCK))
    run = capture.CONTENDERS[capture.EAGER].prepare(SMALL_BLOCK)
    losses = [run() for _ in range(3)]
    assert losses[0] == pytest.approx(minigrad.mse(block(x), target).item(), rel=1e-5)
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize("case", [lora.Case(8, 2, 4, 2), SMALL_BLOCK], ids=["mlp", "block"])
def test_only_ours_runs_what_capture_returns(case, monkeypatch):
    def twice(step):
        return lambda x, target: 2 * step(x, target)

    monkeypatch.setattr(minigrad, "capture", twice, raising=False)
    ours, eager = (capture.CONTENDERS[who].prepare(case) for who in (OURS, capture.EAGER))
    assert ours() == 2 * eager() > 0


def test_who_compiles_is_left_out_without_a_compiler_or_headers(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no_such_compiler")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert Contender(_dies, compiles=True).missing() == [
        "C++ compiler (no_such_compiler)",
        "Python.h",
    ]
    assert Contender(_dies).missing() == []
    monkeypatch.setenv("CXX", sys.executable)
    (tmp_path / "Python.h").touch()
    assert Contender(_dies, compiles=True).missing() == []
    assert capture.CONTENDERS[capture.COMPILED].compiles


def _loss_by_numpy(given, use_dora):
    from math import erf

    x = given.x.astype(float)
    for i, (weight, bias, a, b) in enumerate(
        zip(given.weights, given.biases, given.a, given.b, strict=True)
    ):
        x = x * (1 + np.vectorize(erf)(x / 2**0.5)) / 2 if i else x
        changed = weight + lora.ALPHA_OVER_RANK * b.astype(float) @ a
        if use_dora:  # each row has the norm that it had before
            changed *= (np.linalg.norm(weight, axis=1) / np.linalg.norm(changed, axis=1))[:, None]
        x = x @ changed.T + bias
    return ((x - given.target) ** 2).mean()


def test_a_first_start_that_compiles_nothing_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="found them compiled"):
        check_compiled(tmp_path)
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "gemm.nbc").touch()
    check_compiled(tmp_path)


@pytest.mark.skipif(not JIT_ENABLED, reason="emits machine code")
def test_the_loop_under_the_peak_does_every_multiply_add():
    from tests.benchmarks import peak

    # Chain i begins at i: after three times s / 2 + 1 it is i / 8 + 7 / 4.
    expected = sum(i / 8 + 1.75 for i in range(peak.CHAINS))
    assert peak.chains("float64")(3, 0.5, 1.0) == expected
