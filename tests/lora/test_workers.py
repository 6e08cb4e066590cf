"""Workers: merges, checks and extractions by several processes, which may be killed."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import lora
from lora.__main__ import FAILED, STOPPED
from lora.offline import check_adapter, extract_files, merge_files
from lora.offline.inspection import Findings
from lora.offline.workers import WorkerPool
from minigrad.io import TensorInfo, writing_set
from minigrad.nn import Linear
from minigrad.progress import NoBar
from tests.chaos import seeds
from tests.lora.folders import Net, adapted_copy, snapshot

ROOT = Path(__file__).parents[2]
SHARDS, LAYERS = 6, 7

full = partial(pytest.param, marks=pytest.mark.full)

posix = pytest.mark.skipif(os.name != "posix", reason="signals, locks and limits of POSIX")


def sharded(arrays, folder, dtype=None):
    """Arrays in several files with an index, and files beside them."""
    names = list(arrays)
    infos = {n: TensorInfo(n, dtype or x.dtype.name, x.shape) for n, x in arrays.items()}
    shards = {
        f"model-{i + 1:05}-of-{SHARDS:05}.safetensors": [infos[n] for n in names[i::SHARDS]]
        for i in range(SHARDS)
    }
    with writing_set(folder, shards, {"format": "pt"}, {"config.json": b"{}"}) as writers:
        for name, x in arrays.items():
            writers[name].write(name, x)
    return folder


@pytest.fixture
def net(rng):
    made = Net(rng)
    for i in range(4):
        setattr(made, f"more_{i}", Linear(40, 30, rng=rng))
    return made


@pytest.fixture
def files(net, rng, tmp_path):
    """A base of several shards, an adapter for it, and a path to write to."""
    lora.save(adapted_copy(net, rng, use_dora=True, bias="lora_only"), tmp_path / "adapter")
    return sharded(net.state_dict(), tmp_path / "base"), tmp_path / "adapter", tmp_path / "out"


def clean(folder):
    """Check that a folder has no rest of a save, and return the content of its files."""
    assert [each.name for each in folder.iterdir() if each.name.startswith(".")] == []
    return snapshot(folder)


# ----------------------------------------------------------------------------------------------
# The bits of one
# ----------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize(("dtype", "count"), [(None, 2), ("bfloat16", 3)])
def test_any_number_of_workers_writes_the_same_bytes(dtype, count, files, tmp_path):
    base, adapter, out = files
    right = merge_files(base, adapter, out, dtype=dtype)
    found = merge_files(base, adapter, tmp_path / "found", dtype=dtype, workers=count)
    assert clean(tmp_path / "found") == clean(out)
    assert found.certificate == right.certificate
    assert found.kept == []


@pytest.mark.parametrize("count", [1, full(2)])
def test_bars_count_all_that_is_done(count, files, monkeypatch):
    done = []

    class Counting(NoBar):
        def __init__(self, items, *, what, total, **_):
            super().__init__(items)
            self.what, self.total = what, total

        def __iter__(self):
            for number, item in enumerate(super().__iter__(), 1):
                yield item
                done.append((self.what, number, self.total))

    monkeypatch.setattr("lora.offline.workers.progress_bar", Counting)
    merge_files(*files, workers=count)
    totals = {"certifying the merge": LAYERS, "merge": SHARDS, "hash of the inputs": SHARDS + 1}
    totals["hash of the base"] = LAYERS
    assert set(done) == {(n, i + 1, total) for n, total in totals.items() for i in range(total)}


@pytest.mark.full
def test_one_file_is_written_by_one_worker(files, tmp_path):
    base, adapter, _ = files
    right, out = tmp_path / "right.safetensors", tmp_path / "out.safetensors"
    one = merge_files(base, adapter, right)
    found = merge_files(base, adapter, out, workers=2)
    assert out.read_bytes() == right.read_bytes()
    assert found.certificate == one.certificate


@pytest.mark.full
@pytest.mark.parametrize("against", ["base and merged", "base"])
def test_a_check_by_workers_finds_the_same(against, files):
    base, adapter, out = files
    merge_files(base, adapter, out)
    path = sorted(out.glob("*.safetensors"))[1]
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    path.write_bytes(content)
    compared = {"base and merged": (adapter, base, out), "base": (adapter, out)}
    right = check_adapter(*compared[against])
    assert isinstance(right, Findings)
    assert not right.is_right
    assert check_adapter(*compared[against], workers=2) == right


@pytest.mark.full
def test_an_adapter_that_workers_extract_is_the_same(net, rng, tmp_path):
    base = sharded(net.state_dict(), tmp_path / "base")
    tuned = {n: x + rng.standard_normal(x.shape) for n, x in net.state_dict().items()}
    sharded(tuned, tmp_path / "tuned", "float32")
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # or one process would extract all
    for count in (1, 2):
        command = ["extract", base, tmp_path / "tuned", tmp_path / f"{count}", "--rank", 3]
        run(*command, "--lossy", "--workers", count, env=environment)
    assert clean(tmp_path / "1") == clean(tmp_path / "2")


@pytest.mark.parametrize("count", [0, -1, True, 1.5])
def test_a_number_of_workers_is_positive(count, files, tmp_path):
    base, adapter, out = files
    message = "workers must be a positive integer, not"
    for function, arguments in (
        (merge_files, (base, adapter, out)),
        (extract_files, (base, base, out, 1)),
        (check_adapter, (adapter, base)),
        (check_adapter, (adapter,)),  # the files of an adapter need no workers
    ):
        with pytest.raises(ValueError, match=message):
            function(*arguments, workers=count)
    assert not out.exists()


# ----------------------------------------------------------------------------------------------
# Errors, kills and interrupts
# ----------------------------------------------------------------------------------------------


def run(*command, env=None, status=0, **options):
    """Run a command of lora; return what it prints, with errors."""
    done = subprocess.run(
        [sys.executable, "-m", "lora", *map(str, command)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


SCRIPT = """
import os, signal, sys
from lora.__main__ import main
from lora.offline import workers
from tests.lora import stalling
name, left, *arguments = sys.argv[1:]
left, before = int(left), workers.progress_bar
workers.do_task = stalling.call
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it

def children():
    with open(f"/proc/self/task/{{os.getpid()}}/children") as file:
        pids = map(int, file.read().split())
    return [pid for pid in pids if b"spawn_main" in open(f"/proc/{{pid}}/cmdline", "rb").read()]

def watched(items, *, what, **options):
    for number, item in enumerate(before(items, what=what, **options), 1):
        yield item
        if (what, number) == (name, left):
            print(*children(), flush=True)
            {action}

workers.progress_bar = watched
sys.exit(main(arguments))
"""

KILL_ALL = "os.killpg(0, signal.SIGKILL)"
KILL_ITSELF = "os.kill(os.getpid(), signal.SIGKILL)"
KILL_WORKERS = "[os.kill(pid, signal.SIGKILL) for pid in children()]"
INTERRUPT = "os.killpg(0, signal.SIGINT)"


def merge_until(action, files, count, what="merge", done=1):
    """Merge, and do something when so much is done; return the status and the error message.

    Workers never write the last two files, so that the merge is not done before that.
    """
    return run_until(action, ["merge", *files], count, what, done)


def run_until(action, command, count, what, done):
    """Run a command, and do something when so much is done."""
    script = SCRIPT.format(action=action)
    arguments = [what, done, *command, "--workers", count]
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        text, errors = process.communicate(timeout=100)
    pids = [int(pid) for pid in text.split("\n")[0].split()]
    assert len(pids) == (count if count > 1 else 0)
    end = time.monotonic() + 20
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.02)
    return process.returncode, errors


def is_alive(pid):
    """Whether a process runs, and is not just waiting to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


linux = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="children in /proc")


def rest_of(out):
    """The one folder that a killed merge has left."""
    [stage] = [each for each in out.iterdir() if each.name.startswith(".saving-")]
    return stage


@linux
@pytest.mark.parametrize(
    ("action", "killed", "then"),
    [(KILL_ALL, 2, 1), full(KILL_ALL, 1, 2), full(KILL_ITSELF, 2, 2)],
    ids=["all of two", "one", "the first of two"],
)
def test_a_merge_that_was_killed_goes_on(action, killed, then, files, tmp_path):
    base, adapter, out = files
    right = merge_files(base, adapter, tmp_path / "right")
    out.mkdir()
    (out / "card.md").write_text("old")
    assert merge_until(action, files, killed, done=2)[0] == -signal.SIGKILL
    assert {each.name for each in out.iterdir()} == {"card.md", rest_of(out).name}
    before = {each.name: each.stat() for each in rest_of(out).glob("model-*")}
    assert 2 <= len(before) < SHARDS
    found = merge_files(base, adapter, out, workers=then)
    assert found.kept == sorted(before)
    assert f"killed: {', '.join(found.kept)}" in repr(found)
    assert found.certificate == right.certificate
    same = [(each.st_ino, each.st_mtime_ns) for each in before.values()]
    after = [(out / name).stat() for name in before]
    assert [(each.st_ino, each.st_mtime_ns) for each in after] == same
    assert clean(out) == {**clean(tmp_path / "right"), "card.md": b"old"}


@linux
def test_a_file_that_was_cut_is_written_again(files, tmp_path):
    base, adapter, out = files
    merge_files(base, adapter, tmp_path / "right")
    merge_until(KILL_ALL, files, 1, done=2)
    cut, *others = sorted(rest_of(out).glob("model-*"))
    cut.write_bytes(cut.read_bytes()[:-1])
    assert merge_files(base, adapter, out).kept == [each.name for each in others]
    assert clean(out) == clean(tmp_path / "right")


CHANGES = ["the base", "the adapter", "an option"]


@pytest.mark.full
@linux
@pytest.mark.parametrize("what", CHANGES)
def test_a_merge_of_something_else_begins_anew(what, files, tmp_path):
    base, adapter, out = files
    options = {"check_base": False, "progress": False}
    assert merge_until(KILL_ALL, [*files, "--any-base"], 1, done=2)[0] == -signal.SIGKILL
    path = base / f"model-00006-of-{SHARDS:05}.safetensors"
    if what == "the adapter":
        path = adapter / "adapter_model.safetensors"
    if what in ("the base", "the adapter"):
        times, content = path.stat(), path.read_bytes()
        for name in (b"minigrad.sha256", b"minigrad.header.sha256"):
            assert name in content
            content = content.replace(name, b"l" + name[1:])  # so that it is not a checksum
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    else:
        options["radius"] = 2.0
    found = merge_files(base, adapter, out, **options)
    assert found.kept == []
    right = merge_files(base, adapter, tmp_path / "right", **options)
    assert found.certificate == right.certificate
    assert clean(out) == clean(tmp_path / "right")


def done_in(out):
    """The number of files that are complete in a merge that is going on; -1 if there is none."""
    try:
        [stage] = out.glob(".saving-*")
        return len(list(stage.glob("model-*-of-*")))
    except (OSError, ValueError):
        return -1


@posix
@pytest.mark.full
def test_a_kill_at_any_time_leaves_what_goes_on(files, tmp_path):
    base, adapter, out = files
    merge_files(base, adapter, tmp_path / "right")
    merge_files(base, adapter, out, dtype="float64")  # what there was
    shutil.copytree(out, tmp_path / "old")
    old, right, attacks, kept = clean(out), clean(tmp_path / "right"), seeds(6), 0
    command = [sys.executable, "-m", "lora", "merge", *map(str, files), "--workers", "2"]
    for seed in attacks:
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True
        ) as process:
            done = random.Random(seed).randrange(SHARDS)
            while process.poll() is None and done_in(out) < done:
                time.sleep(0.001)
            with suppress(ProcessLookupError):  # it has ended
                os.killpg(process.pid, signal.SIGKILL)
        now = {name: x for name, x in snapshot(out).items() if not name.startswith(".")}
        assert now in (old, right)
        kept += len(merge_files(base, adapter, out).kept)
        assert clean(out) == right
        shutil.rmtree(out)
        shutil.copytree(tmp_path / "old", out)
    assert kept or len(attacks) < 6


@linux
@pytest.mark.parametrize(("action", "killed"), [(KILL_ALL, 1), full(KILL_WORKERS, 2)])
def test_an_extraction_that_was_killed_goes_on(action, killed, net, rng, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # or one process would extract all
    base, out = sharded(net.state_dict(), tmp_path / "base"), tmp_path / "out"
    tuned = {n: x + rng.standard_normal(x.shape) for n, x in net.state_dict().items()}
    tuned = sharded(tuned, tmp_path / "tuned", "float32")
    command = ["extract", base, tuned, out, "--rank", 2, "--lossy"]
    assert run_until(action, command, killed, "extract", done=2)[0] in (-signal.SIGKILL, FAILED)
    assert [each.name for each in out.iterdir()] == [rest_of(out).name]
    done = list(rest_of(out).glob(".layer-*.safetensors"))
    other = extract_files(base, tuned, tmp_path / "other", 3, lossy=True)
    found = extract_files(base, tuned, out, 2, lossy=True)
    assert other.kept == ()
    assert len(found.kept) == len(done) == 2 or killed == 2
    assert f"killed: {', '.join(found.kept)}" in repr(found)
    right = extract_files(base, tuned, tmp_path / "right", 2, lossy=True)
    assert found.layers == right.layers
    assert clean(out) == clean(tmp_path / "right")


@linux
def test_an_extraction_from_something_else_begins_anew(net, rng, tmp_path):
    base, out = sharded(net.state_dict(), tmp_path / "base"), tmp_path / "out"
    for seed in (1, 2):
        noise = np.random.default_rng(seed)
        tuned = {n: x + noise.standard_normal(x.shape) for n, x in net.state_dict().items()}
        sharded(tuned, tmp_path / f"{seed}", "float32")
    command = ["extract", base, tmp_path / "1", out, "--rank", 2, "--lossy"]
    assert run_until(KILL_ALL, command, 1, "extract", done=2)[0] == -signal.SIGKILL
    assert extract_files(base, tmp_path / "2", out, 2, lossy=True).kept == ()
    extract_files(base, tmp_path / "2", tmp_path / "right", 2, lossy=True)
    assert clean(out) == clean(tmp_path / "right")


@pytest.mark.full
@linux
def test_two_merges_do_not_go_on_with_one_rest(files, tmp_path):
    base, adapter, out = files
    merge_files(base, adapter, tmp_path / "right")
    merge_until(KILL_ALL, files, 1)
    command = [sys.executable, "-m", "lora", "merge", *map(str, files), "--json"]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    kept = [json.loads(each.communicate()[0])["kept"] for each in both]
    assert sorted(map(len, kept)) == [0, 1]
    assert clean(out) == clean(tmp_path / "right")


@pytest.mark.full
@linux
def test_a_merge_whose_worker_was_killed_says_so_and_can_go_on(files, tmp_path):
    base, adapter, out = files
    merge_files(base, adapter, tmp_path / "right")
    status, errors = merge_until(KILL_WORKERS, files, 2)
    assert status == FAILED
    assert errors.startswith("lora merge: a worker was killed or could not start; if memory has")
    assert "Traceback" not in errors
    assert [each.name for each in out.iterdir()] == [rest_of(out).name]
    assert merge_files(base, adapter, out).kept
    assert clean(out) == clean(tmp_path / "right")


@pytest.mark.full
@linux
def test_an_interrupt_ends_workers_and_changes_nothing(files):
    status, errors = merge_until(INTERRUPT, files, 2)
    out = files[-1]
    assert (status, errors) == (STOPPED, f"lora merge: stopped; {out} is as before, or complete\n")
    assert not files[-1].exists()


@pytest.mark.full
def test_workers_that_cannot_start_are_an_error(files):
    base, adapter, out = files
    script = out.with_suffix(".py")
    script.write_text(
        "from lora.offline import merge_files\n"
        "try:\n"
        f"    merge_files({str(base)!r}, {str(adapter)!r}, {str(out)!r}, workers=2)\n"
        "except ChildProcessError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    message = 'could not start; .* a script needs `if __name__ == "__main__":` around its calls'
    assert len(re.findall(message, done.stdout)) == 1
    assert not out.exists()


def sleep(_, seconds):
    """Do a task that takes so long."""
    time.sleep(seconds)
    return seconds


@pytest.mark.full
def test_workers_end_in_the_middle_of_a_task():
    begin = time.monotonic()
    with WorkerPool(nullcontext, 2, False) as pool:
        results = pool.map(sleep, [0, 120, 120], "sleep", "nap")
        assert next(results) == 0
    assert time.monotonic() < begin + 60


def raise_it(_, message):
    """Do a task that fails."""
    raise ValueError(message)


@pytest.mark.full
@pytest.mark.filterwarnings("error")  # an exception of the pool's own thread is one
def test_an_error_ends_workers_that_have_more_to_do():
    with WorkerPool(nullcontext, 2, False) as pool:
        results = pool.map(raise_it, ["bad"] * 100, "raise", "error")
        with pytest.raises(ValueError, match="bad"):
            next(results)


@pytest.mark.full
@posix
def test_a_full_disk_is_the_error_of_a_worker(files):
    base, adapter, out = files
    merge_files(base, adapter, out)
    before = clean(out)
    script = (
        "import resource, sys\n"
        "from lora.__main__ import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = ["merge", base, adapter, out, "--dtype", "float64", "--workers", 2]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, command)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (FAILED, "")
    assert done.stderr == f"lora merge: [Errno 27] File too large: '{out}'\n"
    assert clean(out) == before


@pytest.mark.full
def test_an_error_of_a_worker_is_that_of_the_merge(net, files, tmp_path):
    _, adapter, out = files
    state = {**net.state_dict(), "norm.weight": np.full(8, 1e6, np.float32)}
    base = sharded(state, tmp_path / "large")
    with pytest.raises(ValueError, match=r"norm.weight has numbers that float16 has not") as raised:
        merge_files(base, adapter, out, dtype="float16", workers=2)
    assert "in _write" in str(raised.value.__cause__)  # where in the worker
    assert not out.exists()
