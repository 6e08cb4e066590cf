"""Workers: merges, checks and extractions by several processes, which may be killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import lora
from lora.__main__ import FAILED, STOPPED, main
from lora.offline import check_adapter, extract_files, merge_files, workers
from lora.offline.inspection import Findings
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


@pytest.mark.parametrize("dtype", [None, full("bfloat16")])
def test_any_number_of_workers_writes_the_same_bytes(dtype, files, tmp_path):
    base, adapter, out = files
    right = merge_files(base, adapter, out, dtype=dtype)
    assert right.unused == 0
    for count in (2, 3):
        found = merge_files(base, adapter, tmp_path / f"{count}", dtype=dtype, workers=count)
        assert clean(tmp_path / f"{count}") == clean(out)
        assert found.certificate == right.certificate
        assert (found.kept, found.unused) == ([], 0)


@pytest.mark.parametrize("count", [1, full(2)])
def test_bars_count_all_that_is_done(count, files, monkeypatch):
    bars = {}

    class Counting(NoBar):
        def __init__(self, items=None, *, what, total, **_):
            super().__init__(items)
            self.total, self.done = total, 0
            bars[what] = self

        def update(self, n=1):
            self.done += n

    monkeypatch.setattr("lora.offline.merging.progress_bar", Counting)
    merged = merge_files(*files, workers=count)
    assert bars["merge"].done == bars["merge"].total == merged.nbytes
    assert bars["certifying the merge"].done == bars["certifying the merge"].total > 0
    read = sum(path.stat().st_size for path in files[0].glob("*.safetensors"))
    assert bars["hash of the base"].done == bars["hash of the base"].total == read


def test_one_file_is_written_by_one_worker(files, tmp_path):
    base, adapter, _ = files
    right, out = tmp_path / "right.safetensors", tmp_path / "out.safetensors"
    one = merge_files(base, adapter, right)
    found = merge_files(base, adapter, out, workers=2)
    assert out.read_bytes() == right.read_bytes()
    assert found.certificate == one.certificate
    assert "1 worker wrote no file: a worker writes whole files" in repr(found)
    assert "worker" not in repr(one)


def test_a_check_by_workers_finds_the_same(files, rng):
    base, adapter, out = files
    merge_files(base, adapter, out)
    path = sorted(out.glob("*.safetensors"))[1]
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    path.write_bytes(content)
    for arguments in ((adapter, base, out), (adapter, base, base), (adapter, out)):
        right = check_adapter(*arguments)
        assert isinstance(right, Findings)
        assert not right.is_right
        assert check_adapter(*arguments, workers=2) == right


@pytest.mark.parametrize("threads", [full(None), "1"])
def test_an_adapter_that_workers_extract_is_the_same(threads, net, rng, tmp_path):
    base = sharded(net.state_dict(), tmp_path / "base")
    tuned = {n: x + rng.standard_normal(x.shape) for n, x in net.state_dict().items()}
    sharded(tuned, tmp_path / "tuned", "float32")
    environment = {n: x for n, x in os.environ.items() if not n.endswith("_NUM_THREADS")}
    environment |= {"OPENBLAS_NUM_THREADS": threads} if threads else {}
    for count in (1, 2):
        command = ["extract", base, tmp_path / "tuned", tmp_path / f"{count}", "--rank", 3]
        text = run(*command, "--lossy", "--workers", count, env=environment)
        assert ("one process has computed" in text) is (count == 2 and threads is None)
    assert clean(tmp_path / "1") == clean(tmp_path / "2")


@pytest.mark.parametrize("count", [0, -1, True, 1.5])
def test_a_number_of_workers_is_positive(count, files, tmp_path):
    base, adapter, out = files
    message = "workers must be a positive integer, not"
    for function, arguments in (
        (merge_files, (base, adapter, out)),
        (extract_files, (base, base, out, 1)),
        (check_adapter, (adapter, base)),
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
import os, signal, subprocess, sys
from lora.__main__ import main
from lora.offline import merging
name, left, action, *arguments = sys.argv[1:]
left, before = int(left), getattr(merging, name)

def children():
    with open(f"/proc/self/task/{{os.getpid()}}/children") as file:
        return [int(pid) for pid in file.read().split()]

def watched(*args):
    global left
    before(*args)
    left -= 1
    if not left:
        print(*children(), flush=True)
        {action}

setattr(merging, name, watched)
sys.exit(main(arguments))
"""

KILL_ALL = "os.killpg(0, signal.SIGKILL)"
KILL_ITSELF = "os.kill(os.getpid(), signal.SIGKILL)"
KILL_WORKERS = "[os.kill(pid, signal.SIGKILL) for pid in children()]"
INTERRUPT = "os.killpg(0, signal.SIGINT)"


def merge_until(action, files, count, name="note_complete", left=1):
    """Merge, and do something at a note; return the status, the workers and the error message."""
    script = SCRIPT.format(action=action)
    arguments = [name, left, "-", "merge", *files, "--workers", count]
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
    return process.returncode, pids, errors


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
def test_a_merge_that_was_killed_goes_on(action, killed, then, files, tmp_path, monkeypatch):
    base, adapter, out = files
    right = merge_files(base, adapter, tmp_path / "right")
    out.mkdir()
    (out / "card.md").write_text("old")
    assert merge_until(action, files, killed, left=2)[0] == -signal.SIGKILL
    assert {each.name for each in out.iterdir()} == {"card.md", rest_of(out).name}
    lines = (rest_of(out) / ".notes.jsonl").read_text().splitlines()[1:]
    noted = list(map(json.loads, lines))
    complete = [each["complete"] for each in noted if isinstance(each, dict)]
    assert len(complete) == 2
    before = {name: (rest_of(out) / name).stat() for name in complete}
    monkeypatch.setattr("lora.offline.merging.certify_layer", None)  # all layers are noted
    found = merge_files(base, adapter, out, workers=then)
    assert found.kept == complete
    assert f"killed: {', '.join(complete)}" in repr(found)
    assert found.certificate == right.certificate
    after = {name: (out / name).stat() for name in complete}
    same = [(each.st_ino, each.st_mtime_ns) for each in before.values()]
    assert [(each.st_ino, each.st_mtime_ns) for each in after.values()] == same
    assert clean(out) == {**clean(tmp_path / "right"), "card.md": b"old"}


@linux
def test_the_certificate_of_a_merge_that_was_killed_goes_on(files, tmp_path, monkeypatch):
    base, adapter, out = files
    right = merge_files(base, adapter, tmp_path / "right")
    assert merge_until(KILL_ALL, files, 1, "note", 3)[0] == -signal.SIGKILL
    layers, certify = [], lora.offline.merging.certify_layer

    def certifying(part, *arguments):
        layers.append(part.name)
        return certify(part, *arguments)

    monkeypatch.setattr("lora.offline.merging.certify_layer", certifying)
    assert merge_files(base, adapter, out).certificate == right.certificate
    assert len(layers) == len(right.certificate.layers) - 3
    assert clean(out) == clean(tmp_path / "right")


CHANGES = [
    *("the base", full("the adapter"), full("an option")),
    *(full("a file that was complete"), full("a note cut short")),
]


@linux
@pytest.mark.parametrize("what", CHANGES)
def test_a_merge_of_something_else_begins_anew(what, files, tmp_path):
    base, adapter, out = files
    options = {"check_base": False, "progress": False}
    assert merge_until(KILL_ALL, [*files, "--any-base"], 1, left=2)[0] == -signal.SIGKILL
    path = base / f"model-00006-of-{SHARDS:05}.safetensors"
    if what == "the adapter":
        path = adapter / "adapter_model.safetensors"
    if what in ("the base", "the adapter"):
        times, content = path.stat(), bytearray(path.read_bytes())
        at = content.index(b"minigrad.sha256")
        content[at] ^= 1  # another name, so that it is no checksum
        content[-1] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif what == "an option":
        options["radius"] = 2.0
    elif what == "a file that was complete":
        [*_, last] = sorted(rest_of(out).glob("model-0000[12]*"))
        last.write_bytes(last.read_bytes())  # at another time
    else:
        notes = rest_of(out) / ".notes.jsonl"
        notes.write_bytes(notes.read_bytes()[:-20] + b"\n")
    found = merge_files(base, adapter, out, **options)
    assert len(found.kept) == (1 if "complete" in what else 0)
    right = merge_files(base, adapter, tmp_path / "right", **options)
    assert found.certificate == right.certificate
    assert clean(out) == clean(tmp_path / "right")


def noted_in(out):
    """The number of lines of notes in a folder, of which the first is the plan."""
    try:
        [path] = out.glob(".saving-*/.notes.jsonl")
        return path.read_bytes().count(b"\n")
    except (OSError, ValueError):
        return 0


@posix
@pytest.mark.full
def test_a_kill_at_any_time_leaves_what_goes_on(files, tmp_path):
    base, adapter, out = files
    merge_files(base, adapter, tmp_path / "right")
    merge_files(base, adapter, out, dtype="float64")  # what there was
    old, kept = clean(out), 0
    command = [sys.executable, "-m", "lora", "merge", *map(str, files), "--workers", "2"]
    for seed in seeds(12):
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True
        ) as process:
            lines = random.Random(seed).randrange(1, 1 + LAYERS + SHARDS)
            while process.poll() is None and noted_in(out) < lines:
                time.sleep(0.001)
            with suppress(ProcessLookupError):  # it has ended
                os.killpg(process.pid, signal.SIGKILL)
        now = {name: x for name, x in snapshot(out).items() if not name.startswith(".")}
        assert now in (old, clean(tmp_path / "right"))
        found = merge_files(base, adapter, out)
        assert clean(out) == clean(tmp_path / "right")
        kept += len(found.kept)
        merge_files(base, adapter, out, dtype="float64")
    print(f"{kept} files of {12 * SHARDS} were complete")


@linux
def test_two_merges_do_not_go_on_with_one_rest(files, tmp_path):
    base, adapter, out = files
    merge_files(base, adapter, tmp_path / "right")
    merge_until(KILL_ALL, files, 2)
    command = [sys.executable, "-m", "lora", "merge", *map(str, files), "--json"]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    kept = [json.loads(each.communicate()[0])["kept"] for each in both]
    assert sorted(map(len, kept)) == [0, 1]
    assert clean(out) == clean(tmp_path / "right")


@linux
def test_a_worker_that_was_killed_is_named_and_the_merge_can_go_on(files, tmp_path):
    base, adapter, out = files
    merge_files(base, adapter, tmp_path / "right")
    status, pids, errors = merge_until(KILL_WORKERS, files, 2)
    assert status == FAILED
    assert any(
        f"lora merge: worker {pid} was killed (Killed) at work on " in errors for pid in pids
    )
    assert "; if memory has run out, take fewer; a merge into a folder can go on" in errors
    assert "Traceback" not in errors
    assert [each.name for each in out.iterdir()] == [rest_of(out).name]
    assert merge_files(base, adapter, out).kept
    assert clean(out) == clean(tmp_path / "right")


@linux
def test_an_interrupt_ends_workers_and_changes_nothing(files):
    status, _, errors = merge_until(INTERRUPT, files, 2)
    assert (status, errors) == (STOPPED, "lora merge: stopped; nothing was changed\n")
    assert not files[-1].exists()


def test_workers_that_never_begin_are_an_error(files, monkeypatch):
    base, adapter, out = files

    class Killed(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.kill()
            self.wait()

    monkeypatch.setattr(workers, "Popen", Killed)
    with pytest.raises(ChildProcessError, match="was killed"):
        merge_files(base, adapter, out, workers=2)
    assert not out.exists()
    with pytest.raises(ChildProcessError, match="was killed"):
        check_adapter(adapter, base, workers=2)


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
    assert done.stderr == "lora merge: [Errno 27] File too large\n"
    assert clean(out) == before


def test_an_error_of_a_worker_is_that_of_the_merge(net, files, tmp_path, capsys):
    _, adapter, out = files
    state = {**net.state_dict(), "norm.weight": np.full(8, 1e6, np.float32)}
    base = sharded(state, tmp_path / "large")
    with pytest.raises(ValueError, match=r"norm.weight has numbers that float16 has not") as raised:
        merge_files(base, adapter, out, dtype="float16", workers=2)
    assert "in a worker" in raised.value.__notes__[0]
    assert not out.exists()
    command = ["merge", base, adapter, out, "--dtype", "float16", "--workers", 2]
    assert main(list(map(str, command))) == FAILED
    assert capsys.readouterr().err.startswith("lora merge: norm.weight has numbers that")
