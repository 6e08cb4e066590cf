"""The first start on a machine, the next ones, and all that may be wrong with what lies between.

Most tests run processes that share a folder for compiled kernels. `LORA_STEP` is what a user does,
and is long in compiling; so most tests make do with `TWO_OPS`, or with `PROBE`, a kernel that is
compiled in a moment.
"""

import logging
import multiprocessing.process
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import minigrad
from minigrad import __main__ as command_line
from minigrad import progress
from minigrad.kernels import cache, first_run, launch, threads, warmup
from minigrad.kernels.jit import JIT_ENABLED, dispatcher
from minigrad.kernels.launch import KERNELS, Kernel

ROOT = Path(__file__).parents[3]
needs_jit = pytest.mark.skipif(not JIT_ENABLED, reason="nothing is compiled")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

LORA_STEP = """
import numpy as np
import lora, minigrad
model = minigrad.nn.MLP([4, 8, 3], activation=minigrad.nn.GELU())
lora.attach(model, lora.LoRAConfig(rank=2, alpha=4))
optimizer = minigrad.optim.Adam(model.trainable_parameters(), lr=0.01)
loss = minigrad.mse(model(minigrad.randn(5, 4)), minigrad.randn(5, 3))
loss.backward()
optimizer.step()
"""

ONE_OP = "import minigrad; minigrad.gelu(minigrad.ones(4, 4))"
TWO_OPS = ONE_OP + "; minigrad.softmax(minigrad.ones(4, 4))"

PROBE = """
import numpy as np
from numba import types
from minigrad.kernels.launch import Kernel, span

def double(piece, pieces, x, out):
    for i in span(piece, pieces, x.size):
        out[i] = 2 * x[i]

KERNEL = Kernel(double, (types.Array(types.float32, 1, "C"),) * 2)

def right(seconds=0.0):
    x = np.arange(1000, dtype=np.float32)
    out = np.empty_like(x)
    KERNEL(seconds, x, out)
    return np.array_equal(out, x + x)
"""

RUN_PROBE = """
import probe
assert probe.right()
"""

PROBE_PARTS = ["double", "entry"]  # the loop, and what takes its arguments from Python

REPORT = """
from minigrad.kernels import cache
print(*cache.COMPILED)
print(*cache.LOADED)
"""


class Machine:
    """Processes that share a folder for compiled kernels, at first an empty one."""

    def __init__(self, folder, root=ROOT):
        self.home = folder
        self.folder = folder / "compiled"
        self.paths = os.pathsep.join([str(root), str(folder)])
        (folder / "probe.py").write_text(PROBE)

    def start(self, script, stderr=subprocess.PIPE, start_new_session=False, **environment):
        variables = {"PYTHONPATH": self.paths, "NUMBA_CACHE_DIR": str(self.folder), "CI": "1"}
        variables |= environment
        everything = {**os.environ, **variables}
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script) + REPORT],
            cwd=self.home,
            env={name: value for name, value in everything.items() if value is not None},
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=start_new_session,
            text=True,
        )

    def finish(self, process):
        """What was compiled, what was loaded, and what was said."""
        out, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
        *_, compiled, loaded = out.split("\n")[:-1]
        return compiled.split(), loaded.split(), said.splitlines()

    def run(self, script, **environment):
        return self.finish(self.start(script, **environment))

    def files(self):
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def copy_kernels(self):
        """Copy what this session has compiled by now; return the folder."""
        here = cache.writable_folder()
        there = self.folder / "minigrad" / here.name
        there.mkdir(parents=True)
        for file in here.glob("*.nbc"):  # and no draft, which another process may still be writing
            shutil.copy(file, there)
        return there


def copy_sources(folder):
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "minigrad", folder / "site/minigrad", ignore=ignored)
    return folder / "site"


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def open_machine():
    """A machine outside of pytest's folder, which each other run of pytest closes to others."""
    with tempfile.TemporaryDirectory() as folder:
        yield Machine(Path(folder))


@pytest.mark.full
@needs_jit
def test_a_second_process_compiles_nothing_and_loads_only_what_it_uses(machine):
    compiled, loaded, said = machine.run(TWO_OPS)
    assert any("gelu" in name for name in compiled)
    assert any("softmax" in name for name in compiled)
    assert loaded == []
    assert len(said) == 1
    assert said[0].startswith("minigrad: compiling kernels for this machine, once")
    assert str(machine.folder) in said[0]
    count = len(warmup.kernels_of(double=False))
    assert f"of the {count} that are not compiled yet" in said[0]
    kept = machine.files()
    assert len(kept) == len(compiled)

    compiled, loaded, said = machine.run(TWO_OPS)
    assert (compiled, said) == ([], [])
    assert {name.strip("_").split("_")[0] for name in loaded} == {"entry", "gelu", "softmax"}

    compiled, loaded, said = machine.run(ONE_OP)
    assert (compiled, said) == ([], [])
    assert sorted(loaded) == ["entry", "gelu_loop"]
    assert machine.files() == kept

    *_, said = machine.run("import minigrad; minigrad.sigmoid(minigrad.ones(4, 4))")
    assert f"of the {count - 2} that are not compiled yet" in said[0]


def screen_of(output):
    """The lines that a terminal shows after this output, without blanks at their ends."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[A|.", output, re.DOTALL):
        if part == "\x1b[A":
            row -= 1
        elif part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        else:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + part + line[column + 1 :]
            column += 1
    return [line.rstrip() for line in lines if line.rstrip()]


@pytest.mark.full
@needs_jit
def test_in_a_terminal_a_bar_counts_kernels_and_goes_when_they_are_compiled(machine):
    script = """
        import numpy as np, probe, sys
        from minigrad.kernels.launch import Kernel
        from minigrad.progress import progress_bar
        assert probe.right(seconds=1.0)  # on threads
        print("a line of the program", file=sys.stderr)
        kinds = (probe.types.Array(probe.types.float64, 1, "C"),) * 2
        options = {"shown": True, "leave": True, "delay": 0.0}
        for i in progress_bar(range(3), what="training", unit="step", **options):
            if i == 1:
                Kernel(probe.double, kinds)(0.0, np.ones(3), np.ones(3))
    """
    termios = pytest.importorskip("termios")
    terminal, its_end = os.openpty()
    termios.tcsetwinsize(its_end, (24, 100))
    process = machine.start(script, stderr=its_end, NUMBA_NUM_THREADS="2")
    os.close(its_end)
    output = b""
    with suppress(OSError):  # which Linux raises when the other end is closed
        while part := os.read(terminal, 4096):
            output += part
    os.close(terminal)
    process.communicate(timeout=240)
    assert process.returncode == 0
    written = output.decode().replace("\r\n", "\n\r")
    count = len(warmup.kernels_of(double=False)) + 1  # and the probe's
    assert f"compiling: 0 of at most {count} kernels |" in written
    assert f"compiling: 1 of at most {count} kernels |" in written
    assert ", double" in written
    assert ", entry" in written
    line, own, bar = screen_of(written)
    assert line.startswith("minigrad: compiling kernels for this machine, once")
    assert own == "a line of the program"
    assert bar.startswith("training: 100%")


def test_in_a_notebook_too_a_bar_counts_what_any_process_has_compiled(monkeypatch, capsys):
    ready = set()
    kernels = [SimpleNamespace(is_compiled=lambda i=i: i in ready) for i in range(5)]
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(progress, "in_a_notebook", lambda: True)
    monkeypatch.setattr(progress, "find_spec", lambda name: None)  # there are no widgets
    monkeypatch.setattr(progress, "bar_class", progress.bar_class.__wrapped__)
    monkeypatch.setattr(first_run, "kernels_of", lambda double: kernels)
    announcement = first_run.Announcement(double=False)
    announcement.show("gelu_loop")
    ready.add(3)
    announcement.show("entry")
    announcement.hide()
    said = capsys.readouterr().err
    assert "0 of at most 5 kernels" in said
    assert "gelu_loop" in said
    assert "1 of at most 5 kernels" in said
    assert "entry" in said


def is_running(process_id):
    state = subprocess.run(
        ["ps", "-p", str(process_id), "-o", "stat="], capture_output=True, text=True
    ).stdout.strip()
    return state not in ("", "Z", "Z+", "Zs")  # one that has ended may wait to be asked


def ends(process_id, seconds=20.0):
    """Whether a process ends in time."""
    deadline = time.monotonic() + seconds
    while is_running(process_id) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(process_id)


needs_load = pytest.mark.skipif(not hasattr(os, "getloadavg"), reason="this system has no load")

SECOND_PROCESS = """
import os, signal, sys, time
from minigrad.kernels import cache, first_run
second = first_run.start_second_process()
sys.stdout.write(f"{second}\\n")
sys.stdout.flush()
"""


@needs_jit
@needs_load
@pytest.mark.full
@pytest.mark.parametrize(
    ("work", "first", "needed_later"),
    [
        ("minigrad.gelu(minigrad.ones(4, 4))", "gelu_loop", "adam_loop"),
        (
            # So large that threads share it, by a loop that is compiled too.
            "minigrad.conv2d(minigrad.ones(32, 16, 28, 28), minigrad.ones(32, 16, 3, 3))",
            "sums_of_pixels",
            "sums_of_taps",
        ),
    ],
)
def test_a_second_process_compiles_what_a_training_step_needs(machine, work, first, needed_later):
    script = f"""
        import os, time
        os.getloadavg = lambda: (0.0, 0.0, 0.0)
        import minigrad
        {work}
        from minigrad.kernels.warmup import kernels_of
        kernels = (k for k in kernels_of(double=False) if k.function.__name__ == "{needed_later}")
        kernel = next(kernels)
        deadline = time.monotonic() + 200
        while not kernel.is_compiled() and time.monotonic() < deadline:
            time.sleep(0.1)
        kernel.compile()
    """
    environment = {"CI": None, "PYTEST_VERSION": None, "NUMBA_NUM_THREADS": "2"}
    if threads.get_max_threads() < 2:
        pytest.skip("there is one core")
    compiled, loaded, said = machine.run(script, **environment)
    assert first in compiled
    assert needed_later not in compiled
    assert needed_later in loaded
    assert len(said) == 1
    assert {".nbc", ".lock"} <= {path.suffix for path in machine.files()}


IS_NO_CHILD = """
os.kill(second, 0)  # which raises an error if there is no such process
try:
    os.waitpid(-1, os.WNOHANG)
    raise AssertionError("whoever waits for children of its own would get it")
except ChildProcessError:
    pass
"""

ENDINGS = {
    "at its end": "",
    "by an error": "raise SystemExit(3)",
    "by the system": "os.kill(os.getpid(), signal.SIGKILL)",
    "by Ctrl-C": "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "os.killpg(os.getpgid(0), signal.SIGINT); time.sleep(60)",
    "by becoming another program": "os.execvp('sleep', ['sleep', '60'])",
    "with a child that goes on": "if os.fork() == 0: os.close(1), os.close(2), time.sleep(15)",
}


@needs_jit
@needs_load
@pytest.mark.full
@pytest.mark.parametrize("how", ENDINGS)
def test_the_second_process_ends_with_the_first(machine, how):
    process = machine.start(SECOND_PROCESS + IS_NO_CHILD + ENDINGS[how], start_new_session=True)
    second = int(process.stdout.readline())
    assert ends(second)
    if how.startswith("by becoming"):
        assert process.poll() is None
        process.kill()
    _, said = process.communicate(timeout=60)
    assert "Error" not in said


@needs_jit
@needs_load
def test_a_second_process_is_started_only_where_it_is_of_use(monkeypatch, tmp_path):
    def starts():
        return first_run.may_start_a_process()

    def unknown():
        raise OSError

    for name in first_run.NOBODY_WAITS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.9, 9.0, 9.0))
    monkeypatch.setattr(cache, "writable_folder", lambda: tmp_path)
    assert starts()
    assert {"CI", "TF_BUILD", "JENKINS_URL"} < set(first_run.NOBODY_WAITS)
    for name in first_run.NOBODY_WAITS:
        with monkeypatch.context() as patch:
            patch.setenv(name, "true")
            assert not starts()
    for owner, name, value in (
        (os, "getloadavg", lambda: (1.1, 0.0, 0.0)),
        (os, "getloadavg", unknown),
        (threads, "forked", True),
        (threads, "get_num_threads", lambda: 1),
        (cache, "writable_folder", lambda: None),
        (sys, "executable", "/usr/bin/blender"),
        (sys, "executable", None),
        (multiprocessing.process, "parent_process", lambda: "another"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            assert not starts()
    assert starts()


@pytest.mark.full
@needs_jit
def test_the_line_is_a_message_of_logging_and_can_be_silenced(machine):
    quiet = 'import logging; logging.getLogger("minigrad").setLevel(logging.ERROR)'
    compiled, _, said = machine.run(quiet + RUN_PROBE)
    assert (compiled, said) == (PROBE_PARTS, [])


@pytest.mark.full
@needs_jit
def test_without_a_folder_each_process_compiles_and_says_so(machine):
    # Below a regular file nobody can make a folder, the superuser neither.
    machine.folder.write_text("")
    compiled, loaded, said = machine.run(RUN_PROBE)
    assert (compiled, loaded) == (PROBE_PARTS, [])
    assert len(said) == 1
    assert "anew in each process" in said[0]
    assert str(machine.folder) in said[0]
    assert machine.folder.read_text() == ""


@pytest.mark.full
@needs_jit
def test_beside_read_only_sources_the_folder_of_the_user_serves(tmp_path):
    sources = copy_sources(tmp_path)
    (sources / "minigrad/kernels/__pycache__").write_text("")
    machine = Machine(tmp_path, root=sources)
    home = tmp_path / "home"
    place = {"NUMBA_CACHE_DIR": None, "PYTHONDONTWRITEBYTECODE": "1"}
    place |= dict.fromkeys(("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"), str(home))
    assert machine.run(RUN_PROBE, **place)[:2] == (PROBE_PARTS, [])
    assert sorted(path.name.split("-")[0] for path in home.rglob("*.nbc")) == PROBE_PARTS
    assert machine.run(RUN_PROBE, **place) == ([], PROBE_PARTS, [])


@pytest.mark.full
@needs_jit
def test_processes_that_compile_at_once_do_not_disturb_each_other(machine):
    processes = [machine.start(RUN_PROBE) for _ in range(3)]
    for process in processes:
        compiled, loaded, _ = machine.finish(process)
        assert sorted(compiled + loaded) == PROBE_PARTS
    assert len(machine.files()) == 2  # nor is a draft left
    assert machine.run(RUN_PROBE) == ([], PROBE_PARTS, [])


@pytest.mark.full
@needs_jit
@needs_fork
def test_a_forked_child_runs_what_its_parent_has_loaded_and_what_it_has_not(machine):
    script = """
        import os, probe
        assert probe.right(seconds=1.0)  # on threads, which a child has not
        child = os.fork()
        if child == 0:
            os._exit(0 if probe.right(seconds=1.0) else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert probe.right(seconds=1.0)
    """
    assert machine.run(script, NUMBA_NUM_THREADS="2")[0] == ["double", "entry"]


@pytest.mark.full
@needs_jit
def test_code_for_another_processor_or_numba_is_not_loaded(machine):
    here = machine.run(RUN_PROBE)[:2]
    assert here == (PROBE_PARTS, [])
    assert machine.run(RUN_PROBE, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")[:2] == here
    assert machine.run('import numba; numba.__version__ += ".0"' + RUN_PROBE)[:2] == here
    assert len(machine.files()) == 3 * len(PROBE_PARTS)
    assert machine.run(RUN_PROBE)[:2] == ([], PROBE_PARTS)


@pytest.mark.full
@needs_jit
def test_another_source_or_constant_in_it_is_not_taken_for_the_first(machine, tmp_path):
    machine.run(RUN_PROBE)
    (tmp_path / "probe.py").write_text(PROBE.replace("2 * x[i]", "3 * x[i] - x[i]"))
    assert machine.run(RUN_PROBE)[:2] == (["double"], ["entry"])


@pytest.mark.full
@needs_jit
def test_a_change_of_any_file_beside_the_kernels_changes_the_keys_of_all(tmp_path):
    machine = Machine(tmp_path, root=copy_sources(tmp_path))
    script = """
        import importlib
        from minigrad.kernels import cache, trust, warmup

        kernels = warmup.kernels_of(double=True)
        for kernel in kernels:
            cache.name_apart(kernel.function)

        def keys():
            importlib.reload(cache)  # so that it reads the sources again
            return {cache.KernelCache(k.function, ()).symbol(k.signature) for k in kernels}

        before = keys()
        assert len(before) == len(kernels)
        for file in trust.PACKAGE.rglob("*.py"):
            source = file.read_text()
            file.write_text(source + "# a kernel may call what is written here\\n")
            assert not before & keys(), file
            file.write_text(source)
        assert keys() == before
        """
    machine.run(script)


DAMAGES = {
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "one bit flipped": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "of numba": lambda content: content[32:],
}


@pytest.mark.full
@needs_jit
def test_a_damaged_file_is_made_anew(machine):
    machine.run(RUN_PROBE)
    whole = {file: file.read_bytes() for file in machine.files()}
    for name, damage in DAMAGES.items():
        for file, content in whole.items():
            file.write_bytes(damage(content))
            assert cache.read_file(file) is None, (name, file)
    assert machine.run(RUN_PROBE)[:2] == (PROBE_PARTS, [])
    assert machine.run(RUN_PROBE) == ([], PROBE_PARTS, [])


@pytest.mark.full
@needs_jit
def test_a_file_with_a_right_digest_and_wrong_content_is_made_anew(probe, tmp_path, monkeypatch):
    double = (probe.types.Array(probe.types.float64, 1, "C"),) * 2
    Kernel(probe.double, double)(0.0, np.ones(3), np.ones(3))
    other = next(tmp_path.rglob("double-*.nbc"))
    assert probe.right()
    file = next(file for file in tmp_path.rglob("double-*.nbc") if file != other)
    parts = {name: next(tmp_path.rglob(f"{name}*.nbc")) for name in ("entry", other.stem)}
    parts = {name: pickle.loads(cache.read_file(path))[1] for name, path in parts.items()}

    own = pickle.loads(cache.read_file(file))[1]
    code, bitcode = own[0][2]
    other_code, other_bitcode = parts[other.stem][0][2]

    def with_codes(*codes):
        return pickle.dumps((file.stem, ((*own[0][:2], codes), *own[1:])))

    contents = {
        "another file": cache.read_file(other),
        "another function": pickle.dumps((file.stem, parts["entry"])),
        "other types": pickle.dumps((file.stem, parts[other.stem])),
        "needs itself": cache.read_file(file) + f"minigrad.{file.stem}\0".encode(),
        "no pickle": b"no pickle",
        "nothing": pickle.dumps(None),
        "machine code of another": with_codes(other_code, bitcode),
        "bitcode of another": with_codes(code, other_bitcode),
        "no machine code": with_codes(b"", bitcode),
        "garbage as machine code": with_codes(bytes(range(256)), bitcode),
        "garbage as bitcode": with_codes(code, bytes(range(256))),
    }
    if code.startswith(b"\x7fELF"):
        lengths = (4, len(code) // 2, len(code) - 100, len(code) - 1)
        contents |= {f"the first {n} bytes": with_codes(code[:n], bitcode) for n in lengths}
    for name, content in contents.items():
        cache.write_file(file, content)
        monkeypatch.setattr(cache, "SYMBOLS", {})
        before = len(cache.COMPILED)
        again, out = Kernel(probe.double, probe.KERNEL.signature), np.empty(3, np.float32)
        again(0.0, np.ones(3, np.float32), out)
        assert cache.COMPILED[before:] == ["double"], name
        assert (out == 2).all(), name


@needs_jit
@pytest.mark.full
def test_a_function_whose_parts_are_missing_is_compiled_and_ends_no_process(machine):
    script = """
        import numpy as np
        from minigrad.kernels import gemm
        x = np.ones((9, 9), np.float32)
        assert (gemm.matmul(x, x) == 9).all()
        """
    machine.copy_kernels()
    machine.run(script)  # compiles what no test has used
    compiled, loaded, _ = machine.run(script)
    assert compiled == []
    assert {"gemm", "multiply_run", "multiply", "multiply_piece", "macro_kernel"} <= set(loaded)
    for file in machine.folder.rglob("macro_kernel-*.nbc"):  # of each dtype
        file.unlink()
    compiled, *_ = machine.run(script)
    assert compiled[-1] == "macro_kernel"  # and the first function that was to call it
    assert "multiply_block" in compiled
    assert machine.run(script)[0] == []


needs_owners = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system has no owners")


@needs_jit
@needs_owners
def test_what_others_may_write_is_not_loaded(probe, tmp_path, monkeypatch, caplog):
    def is_read():
        cache.known_suspect.cache_clear()
        return cache.read_file(file) is not None

    def modes():
        return [path.stat().st_mode & 0o777 for path in (folder.parent, folder, file)]

    usual = os.umask(0)
    try:
        assert probe.right()
    finally:
        os.umask(usual)
    folder = tmp_path / "here/kernels-1"
    file = next(folder.glob("*.nbc"))
    assert modes() == [0o700, 0o700, 0o600]
    # This user's own are mended.
    folder.parent.chmod(0o777)
    folder.chmod(0o777)
    file.chmod(0o666)
    assert is_read()
    assert modes() == [0o755, 0o755, 0o644]
    # Another user's are left alone, those of root are not.
    owner_is_root = file.stat().st_uid == 0
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert is_read() == owner_is_root
        file.chmod(0o666)
        assert not is_read()
    assert f"since {file} belongs to another user" in caplog.text
    # Nobody else may exchange a folder above, as in one that all may write to and is not sticky.
    grp, pwd = import_module("grp"), import_module("pwd")  # which Windows lacks
    user = pwd.getpwuid(os.geteuid()).pw_name
    of_several, of_one = (SimpleNamespace(gr_name=user, gr_mem=m) for m in (["another"], []))
    cases = (0o777, of_one, False), (0o775, of_several, False), (0o775, of_one, True)
    for mode, group, is_safe in (*cases, (0o1777, of_several, True)):
        monkeypatch.setattr(grp, "getgrgid", lambda _, group=group: group)
        tmp_path.chmod(mode)
        assert is_read() == is_safe
        assert (cache.writable_folder() is not None) == is_safe
        assert (f"since {tmp_path} belongs to" in cache.why_nowhere()) == (not is_safe)
    assert f"since {tmp_path} belongs to another user" in caplog.text
    assert "NUMBA_CACHE_DIR may name a folder of your own" in caplog.text


@needs_owners
def test_nothing_is_made_where_others_may_write(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FOLDERS", [tmp_path / "shared/minigrad/kernels-1"])
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    assert cache.writable_folder.__wrapped__() is None
    assert list((tmp_path / "shared").iterdir()) == []


@pytest.mark.full
@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root has another user's folder"
)
@needs_jit
def test_what_root_has_compiled_is_left_alone_until_all_may_read_it(open_machine):
    # What is imported later comes before, since nobody may be unable to read our environment.
    as_nobody = """
        import os
        import numba
        import minigrad.kernels.first_run
        import probe

        numba.njit(lambda x: x)(1)
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        assert probe.right()
        """
    for folder in (open_machine.home, *open_machine.home.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    compiled, *_ = open_machine.run(RUN_PROBE)
    assert compiled == PROBE_PARTS
    compiled, _, said = open_machine.run(as_nobody)
    assert compiled == PROBE_PARTS
    assert len(said) == 1
    assert f"chmod -R go+rX {open_machine.folder / 'minigrad'}" in said[0]
    subprocess.run(["chmod", "-R", "go+rX", open_machine.folder / "minigrad"], check=True)
    assert open_machine.run(as_nobody) == ([], PROBE_PARTS, [])


@pytest.mark.full
@needs_jit
@pytest.mark.parametrize("module", ["numba.core.dispatcher", "numba.cpython.charseq"])
def test_ctrl_c_waits_until_numba_has_imported_what_it_needs(machine, module):
    """The second module is imported by numba when it compiles for the first time."""
    script = f"""
        import os, signal, sys
        from minigrad import kernels

        class Interrupts:
            def find_spec(self, name, *_):
                if name == {module!r}:
                    os.kill(os.getpid(), signal.SIGINT)

        def use():
            kernels.threads.get_num_threads()
            import probe
            assert probe.right()

        sys.meta_path.insert(0, Interrupts())
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            use()
        except KeyboardInterrupt:
            use()
        else:
            raise SystemExit("the signal is lost")
        """
    assert set(machine.run(script)[0]) == set(PROBE_PARTS)


TOO_FEW = "NUMBA_NUM_THREADS is '0'; it must be a whole number of at least 1, or not set"


def test_a_number_of_threads_below_1_is_refused_by_the_name_of_its_variable(machine):
    process = machine.start(ONE_OP, NUMBA_NUM_THREADS="0")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    last = said.splitlines()[-1]
    assert TOO_FEW in last
    assert "gelu" not in last


@needs_jit
def test_ctrl_c_during_a_compilation_waits_for_its_end(machine):
    script = """
        import signal, sys
        from minigrad.kernels import start
        import probe
        start.before_compiling = lambda *_: signal.raise_signal(signal.SIGINT)
        try:
            probe.KERNEL.compile()
        except KeyboardInterrupt:
            print("interrupted", probe.KERNEL.is_compiled(), file=sys.stderr)
        start.before_compiling = None
        probe.KERNEL.compile()
    """
    *_, said = machine.run(script)
    assert said == ["interrupted True"]


@needs_jit
@pytest.mark.full
def test_without_optimisation_kernels_are_compiled_in_each_process(machine):
    script = """
        import minigrad
        minigrad.tanh(minigrad.ones(64, 64, requires_grad=True)).sum().backward()
    """
    for _ in range(2):
        compiled, _, said = machine.run(script, NUMBA_OPT="0")
        assert "tanh_gradient_loop" in compiled
        assert "NUMBA_OPT=0" in said[-1]


@pytest.mark.full
def test_commands_refuse_a_number_of_threads_below_1_in_one_line(machine):
    script = """
        import sys
        from minigrad.__main__ import main
        try:
            main(["config"])
        except SystemExit as error:
            print(error.code, file=sys.stderr)
        main(["warmup"])
    """
    process = machine.start(script, NUMBA_NUM_THREADS="0")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    of_config, of_warmup = said.splitlines()
    assert of_config.startswith("minigrad config: ")
    assert of_warmup.startswith("minigrad warmup: ")
    assert TOO_FEW in of_config
    assert TOO_FEW in of_warmup


@pytest.mark.full
@needs_jit
def test_a_relative_folder_is_one_of_the_first_working_folder(machine, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    script = "import minigrad, os; os.chdir('elsewhere')" + RUN_PROBE
    assert machine.run(script, NUMBA_CACHE_DIR="relative")[0] == PROBE_PARTS
    assert len(list((tmp_path / "relative").rglob("*.nbc"))) == len(PROBE_PARTS)


@pytest.mark.full
@needs_jit
@needs_owners  # Windows keeps the folder in which a process works
def test_where_the_working_folder_has_been_deleted_kernels_run_and_a_compilation_says_why(machine):
    leave = "import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')\n"
    compiles = """
        try:
            probe.right()
        except FileNotFoundError as error:
            print(error)
        """
    for script in (f"import probe\n{leave}", f"{leave}import probe\n"):
        process = machine.start(script + textwrap.dedent(compiles), NUMBA_CACHE_DIR="relative")
        out, said = process.communicate(timeout=60)
        assert out.startswith("the working folder has been deleted")
    assert "it may name a folder by its whole path" in said
    assert machine.run(RUN_PROBE)[0] == PROBE_PARTS
    assert machine.run(leave + RUN_PROBE) == ([], PROBE_PARTS, [])


@needs_jit
def test_without_a_home_nothing_is_made_in_the_working_folder(machine):
    script = """
        import os
        os.path.expanduser = lambda path: path  # as where nobody knows this user
        from minigrad.kernels import cache
        assert all(folder.is_absolute() for folder in cache.FOLDERS)
        """
    machine.run(script, NUMBA_CACHE_DIR=None, XDG_CACHE_HOME=None)


def test_a_kernel_that_cannot_be_written_is_no_error(tmp_path, caplog):
    (tmp_path / "folder").write_text("")
    with caplog.at_level(logging.WARNING, "minigrad"):
        cache.write_file(tmp_path / "folder/kernel.nbc", b"code")
    assert "could not be kept" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """The module of `PROBE`, and a folder of its own for compiled kernels."""
    (tmp_path / "a_probe.py").write_text(PROBE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cache, "FOLDERS", [tmp_path / "here/kernels-1"])
    monkeypatch.setattr(cache, "writable_folder", cache.writable_folder.__wrapped__)
    monkeypatch.setattr(cache, "SYMBOLS", {})  # as if this process had compiled nothing so far
    monkeypatch.setattr(launch, "entry", launch.entry.__wrapped__)
    import a_probe

    yield a_probe
    del sys.modules["a_probe"]
    KERNELS[:] = [each for each in KERNELS if each.function.__module__ != "a_probe"]


@needs_jit
def test_a_kernel_is_compiled_at_its_first_call(probe, tmp_path):
    compiled, loaded = len(cache.COMPILED), len(cache.LOADED)
    assert list(tmp_path.rglob("*.nbc")) == []
    assert probe.right()
    assert probe.right()
    assert sorted(cache.COMPILED[compiled:]) == PROBE_PARTS
    assert cache.LOADED[loaded:] == []  # the second call looks nothing up
    assert len(list(tmp_path.rglob("*.nbc"))) == len(PROBE_PARTS)


@pytest.mark.full
@needs_jit
@needs_fork
def test_a_child_that_is_forked_during_a_compilation_can_compile(machine):
    script = """
        import os, signal, threading, warnings
        import probe
        from minigrad.kernels import start

        begun = threading.Event()
        start.before_compiling = lambda *_: begun.set()
        threading.Thread(target=probe.right).start()
        begun.wait()
        warnings.simplefilter("ignore")  # Python advises against it
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            os._exit(not probe.right())
        assert os.waitpid(child, 0)[1] == 0
        """
    assert set(machine.run(script)[0]) == set(PROBE_PARTS)


@needs_jit
def test_kernels_are_read_where_they_cannot_be_written(probe, tmp_path, monkeypatch):
    assert probe.right()
    folders = [tmp_path / "nothing", tmp_path / "here/kernels-1"]
    monkeypatch.setattr(cache, "FOLDERS", folders)
    monkeypatch.setattr(cache, "writable_folder", lambda: None)
    monkeypatch.setattr(cache, "SYMBOLS", {})
    compiled, loaded = len(cache.COMPILED), len(cache.LOADED)
    second = Kernel(probe.KERNEL.function, probe.KERNEL.signature)
    out = np.empty(3, np.float32)
    second(0.0, np.ones(3, np.float32), out)
    assert (out == 2).all()
    assert (len(cache.COMPILED), len(cache.LOADED)) == (compiled, loaded + 2)


@needs_jit
def test_code_that_holds_an_address_is_refused(probe):
    table = np.arange(1_000_000)

    def look_up(i):
        return table[i]

    from numba import types

    with pytest.raises(TypeError, match=r"look_up: .* holds an address .* make that an argument"):
        dispatcher(look_up).compile((types.intp,))


def test_only_the_last_states_of_the_sources_are_kept(tmp_path, monkeypatch):
    for age in range(6):
        folder = tmp_path / f"kernels-{age}"
        folder.mkdir()
        (folder / "kernel.nbc").write_text("")
        os.utime(folder, (1e9 - age, 1e9 - age))
    (tmp_path / "something else").mkdir()
    monkeypatch.setattr(cache, "FOLDERS", [tmp_path / "kernels-new"])
    assert cache.writable_folder.__wrapped__() == tmp_path / "kernels-new"
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["kernels-0", "kernels-1", "kernels-2", "kernels-new", "something else"]


# The command line, and what it shows.

FACTS = ["Python", "numpy", "numba", "processor", "vectors", "tile", "threads", "kernels"]
FACTS += ["packed weights"]


def test_show_config_prints_the_facts(capsys, tmp_path, monkeypatch):
    # Other tests save kernels in the usual folder meanwhile, which would change what is counted.
    monkeypatch.setattr(cache, "writable_folder", lambda: tmp_path)
    minigrad.show_config()
    lines = capsys.readouterr().out.splitlines()
    names = [line.split("  ")[0] for line in lines]
    assert set(FACTS) <= set(names)
    assert any(line.split() == ["numpy", np.__version__] for line in lines)
    command_line.main(["config"])
    assert capsys.readouterr().out.splitlines() == lines


def test_show_config_without_compilation(machine):
    script = "import minigrad; minigrad.show_config()"
    process = machine.start(script, NUMBA_DISABLE_JIT="1")
    out, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    assert "NUMBA_DISABLE_JIT is set" in out


def test_no_command_shows_the_commands(capsys):
    command_line.main([])
    out = capsys.readouterr().out
    assert "warmup" in out
    assert "config" in out


@needs_jit
def test_warmup_says_what_it_did(probe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(warmup, "kernels_of", lambda double: [probe.KERNEL])
    # Other processes would not know of this list.
    monkeypatch.setattr(warmup, "ProcessPoolExecutor", lambda n, *_: ThreadPoolExecutor(n))
    for summary in ("1 kernels compiled, 0 were there", "0 kernels compiled, 1 were there"):
        command_line.main(["warmup"])
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith(summary)
        assert last.endswith(f"MB in {tmp_path / 'here/kernels-1'}")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a full device")
def test_a_report_that_cannot_be_written_is_an_error_in_one_line():
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "minigrad", "config"],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3],
        )  # fmt: skip
    assert ended.returncode == 1
    said = r"minigrad config: the report cannot be written: .* No space left on device\n"
    assert re.fullmatch(said, ended.stderr)


@needs_jit
def test_warmup_knows_the_kernels():
    names = {kernel.function.__name__ for kernel in warmup.kernels_of(double=False)}
    assert any("gelu" in name for name in names)
    assert any("adam" in name for name in names)
    assert {"gemm", "gemm_batch", "dots", "sweep", "gemm_packed"} <= names
    known = names | {"_write_addresses"}  # which only processors with a matrix unit have
    assert known.issuperset(first_run.TRAINING)
    assert all(known.issuperset(before) for before in first_run.BEFORE.values())
    assert set(warmup.kernels_of(double=False)) < set(warmup.kernels_of(double=True))


@needs_jit
def test_warmup_compiles_first_what_others_call():
    kernels = sorted(warmup.kernels_of(double=True), key=warmup.turn)
    names = [kernel.function.__name__ for kernel in kernels]
    assert names[:2] == ["gemm", "gemm"]  # of float32 and float64
    callers = {"forward_loop", "backward_loop", "gemm_batch", "_forward_loop", "_backward_loop"}
    first = min(map(names.index, callers))
    assert first > len(names) // 2
    assert names[-2:] == ["backward_loop"] * 2


def test_warmup_refuses_where_it_would_be_in_vain(monkeypatch):
    if JIT_ENABLED:
        monkeypatch.setattr(cache, "writable_folder", lambda: None)
        reason = "no folder for them can be used"
    else:
        reason = "NUMBA_DISABLE_JIT is set"
    with pytest.raises(SystemExit, match=reason):
        command_line.main(["warmup"])


@needs_jit
@needs_owners  # for the name of the signal
@pytest.mark.full
def test_the_processes_of_a_warmup_end_with_the_first(machine):
    script = """
        import multiprocessing, os, signal, threading, time
        from minigrad.kernels import warmup

        def kill():
            while len(processes := multiprocessing.active_children()) < 2:
                time.sleep(0.1)
            time.sleep(1.0)  # they import and compile
            print(*(process.pid for process in processes), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

        if __name__ == "__main__":
            threading.Thread(target=kill).start()
            warmup.warmup()
    """
    process = machine.start(script, NUMBA_NUM_THREADS="2")
    workers = process.stdout.readline().split()
    assert len(workers) == 2
    assert all(map(ends, workers))
    process.communicate(timeout=60)


@needs_jit
@pytest.mark.full
def test_after_warmup_nothing_is_compiled(machine):
    """Two kernels are missing in a copy of this session's folder."""

    def warm():
        script = "from minigrad.__main__ import main; main(['warmup'])"
        out, said = machine.start(script).communicate(timeout=900)
        assert said == ""
        return out

    there, count = machine.copy_kernels(), len(warmup.kernels_of(double=False))
    for name in ("gelu_loop", "adam_loop"):
        for file in there.glob(f"{name}-*.nbc"):
            file.unlink()
    first = re.match(r"(\d+) kernels compiled, (\d+) were there", warm())
    compiled, found = map(int, first.groups())  # also what no test has used so far
    assert (compiled >= 2, compiled + found) == (True, count)
    assert warm().startswith(f"0 kernels compiled, {count} were there")
    compiled, loaded, _ = machine.run(LORA_STEP)
    assert compiled == []
    assert len(loaded) > 5
