"""Several files replaced together: kills, links, leftovers, two savers at once, interrupts."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from minigrad import io
from tests.chaos.forks import forks
from tests.chaos.lines import Lines

if sys.platform != "win32":
    import fcntl

ENTRY, OTHER = "entry", "in/side"

posix = pytest.mark.skipif(os.name != "posix", reason="links, locks and users of POSIX")


def put(folder, text, names=(ENTRY, OTHER)):
    with io.replacing_together(folder, ENTRY) as stage:
        for name in names:
            write_inside(stage / name, text)


def write_inside(path, text):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)


def read(paths):
    return tuple(path.read_text() if path.is_file() else None for path in paths)


def seen(folder, names=(ENTRY, OTHER)):
    """What somebody who asks `find` reads, and what others do."""
    return [
        read([io.find(folder, name) for name in names]),
        read([folder / name for name in names]),
    ]


def hidden(folder):
    return sorted(each.name for each in folder.iterdir() if each.name.startswith("."))


CALLS = "fsync rename unlink replace rmdir"


@pytest.fixture(scope="module")
def put_and_be_killed():
    """Write "newer" in another process, killed at a call; tell whether it was.

    The processes are forked from one that has imported all they need.
    """
    with forks("tests.minigrad.io.killed") as start:

        def put_there(folder, moment, calls=CALLS, names=(ENTRY, OTHER)):
            status, _ = start(folder, moment, calls, *names).end()
            assert status in (0, -signal.SIGKILL)
            return status != 0

        yield put_there


@pytest.fixture(scope="module")
def killed_between_two(tmp_path_factory, put_and_be_killed):
    folder = tmp_path_factory.mktemp("killed") / "out"
    put(folder, "old")
    assert put_and_be_killed(folder, 1, "replace")
    assert seen(folder) == [("newer", "newer"), ("old", "newer")]
    return folder


@pytest.fixture
def unfinished(killed_between_two, tmp_path):
    """A folder whose save was killed between the two files that it replaces."""
    return shutil.copytree(killed_between_two, tmp_path / "out")  # with the times of the files


def test_files_appear_together_and_others_stay(tmp_path):
    (tmp_path / "README.md").write_text("card")
    put(tmp_path, "one")
    put(tmp_path, "two")
    assert sorted(os.listdir(tmp_path)) == ["README.md", ENTRY, "in"]
    assert seen(tmp_path) == [("two", "two")] * 2


@pytest.mark.full
@pytest.mark.parametrize("names", [(ENTRY, OTHER), (ENTRY, OTHER, "third")], ids=["2", "3"])
@pytest.mark.parametrize("there", [True, False], ids=["old files", "no files"])
def test_a_kill_at_any_moment_leaves_the_old_files_or_the_new_ones(
    tmp_path, there, names, put_and_be_killed
):
    old, new, none = (tuple([text] * len(names)) for text in ("old", "newer", None))
    states, before = [], old if there else none
    for moment in range(40):
        folder = tmp_path / str(moment)
        folder.mkdir()
        if there:
            put(folder, "old", names)
        was_killed = put_and_be_killed(folder, moment, names=names)
        asked, plain = seen(folder, names)
        assert asked in (before, new)
        # Others see the same; of two files the one or the other may be new for a moment, and of
        # more there is no entry then, without which nobody looks at the rest.
        between = plain[0] is None if len(names) > 2 else set(plain) == {before[0], "newer"}
        assert plain in (before, new) or between
        states.append(asked)
        put(folder, "newest", names)  # whatever was left does not stand in the way
        assert seen(folder, names) == [tuple(["newest"] * len(names))] * 2
        assert hidden(folder) == []
        if not was_killed:
            break
    assert not was_killed
    assert states == sorted(states, key=lambda state: state == new)
    assert {before, new} == set(states)


@pytest.mark.parametrize("name", ["fsync", "rename"])
@pytest.mark.parametrize("there", [True, False], ids=["old files", "no folder"])
def test_a_failure_before_all_is_written_leaves_everything_as_it_was(
    tmp_path, monkeypatch, name, there
):
    folder = tmp_path / "deep" / "out"
    if there:
        put(folder, "old")

    def fail(*args, **options):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        with pytest.raises(OSError, match="no space left"):
            put(folder, "new")
    if there:
        assert sorted(os.listdir(folder)) == [ENTRY, "in"]
        assert seen(folder) == [("old", "old")] * 2
    else:
        assert os.listdir(tmp_path) == []


def test_a_failure_of_the_first_replacement_leaves_everything_as_it_was(tmp_path, monkeypatch):
    put(tmp_path, "old")

    def fail(*args, **options):
        raise PermissionError("in use")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(PermissionError, match="in use"):
            put(tmp_path, "new")
    assert seen(tmp_path) == [("old", "old")] * 2
    assert hidden(tmp_path) == []


@posix
def test_private_files_stay_private(tmp_path):
    put(tmp_path, "one")
    (tmp_path / OTHER).chmod(0o600)
    put(tmp_path, "two")
    assert seen(tmp_path) == [("two", "two")] * 2
    assert stat.S_IMODE((tmp_path / OTHER).stat().st_mode) == 0o600


@pytest.mark.parametrize("fails", [False, True])
def test_the_block_may_go_to_another_folder(tmp_path, monkeypatch, fails):
    monkeypatch.chdir(tmp_path)
    with suppress(KeyError), io.replacing_together("out", ENTRY) as stage:
        os.chdir("/")
        (stage / ENTRY).write_text("one")
        if fails:
            raise KeyError
    assert [path.name for path in tmp_path.rglob("*")] == ([] if fails else ["out", ENTRY])


def test_the_entry_must_be_written(tmp_path):
    with (
        pytest.raises(ValueError, match="entry has not been written"),
        io.replacing_together(tmp_path, ENTRY) as stage,
    ):
        write_inside(stage / OTHER, "x")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("taken", "message"), [(ENTRY, "is a folder, and would be"), ("in", "is not a folder, and")]
)
def test_a_path_that_is_taken_is_refused_before_anything_is_replaced(taken, message, tmp_path):
    put(tmp_path, "old")
    if taken == "in":
        (tmp_path / OTHER).unlink()
        (tmp_path / "in").rmdir()
        (tmp_path / "in").write_text("a file")
    else:
        (tmp_path / ENTRY).unlink()
        (tmp_path / ENTRY).mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match=message):
        put(tmp_path, "new")
    assert sorted(tmp_path.rglob("*")) == before


@posix
def test_a_link_that_leads_out_is_refused_with_advice(tmp_path):
    folder, other = tmp_path / "out", tmp_path / "other"
    put(folder, "old")
    (folder / "in").rename(other)
    (folder / "in").symlink_to(other)
    with pytest.raises(ValueError, match=r"'in/side' leads out of .*through a link; remove it"):
        put(folder, "new")
    assert seen(folder) == [("old", "old")] * 2


@posix
def test_more_old_files_than_may_be_open_are_replaced(tmp_path):
    import resource  # Windows has none

    names = [ENTRY, *map(str, range(100))]
    put(tmp_path, "old", names)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as lowest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest.fileno() + 20, hard))
        try:
            put(tmp_path, "new", names)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert {(tmp_path / name).read_text() for name in names} == {"new"}
    assert hidden(tmp_path) == []


# ----------------------------------------------------------------------------------------------
# What lies in the folder
# ----------------------------------------------------------------------------------------------


@posix
def test_a_link_to_another_folder_is_neither_read_nor_emptied(tmp_path):
    folder, other = tmp_path / "out", tmp_path / "other"
    put(folder, "old")
    put(other, "theirs")
    (folder / ".saved").symlink_to(other)
    (folder / ENTRY).unlink()
    assert seen(folder)[0] == (None, "old")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match=r"\.saved' is a link or no folder.*remove it"):
        put(folder, "new")
    assert sorted(tmp_path.rglob("*")) == before
    assert seen(other) == [("theirs", "theirs")] * 2


def test_a_manifest_with_files_outside_does_not_count(unfinished):
    saved, secret = unfinished / ".saved", unfinished.parent / "secret"
    secret.write_text("secret")
    shutil.copystat(saved / ENTRY, secret)
    [manifest] = [each for each in saved.iterdir() if each.name.startswith(".")]
    content = manifest.read_text()
    assert content.count('"entry"') == 1
    manifest.write_text(content.replace('"entry"', '"../../secret"'))
    assert io.find(unfinished, "../../secret") == unfinished / "../../secret"
    assert seen(unfinished)[0] == ("old", "newer")
    put(unfinished, "newest")
    assert seen(unfinished) == [("newest", "newest")] * 2
    assert secret.read_text() == "secret"
    assert hidden(unfinished) == []


@pytest.mark.parametrize("name", [ENTRY, OTHER])
def test_what_others_wrote_since_counts(unfinished, name):
    (unfinished / name).write_text("theirs")
    assert seen(unfinished)[0] == seen(unfinished)[1]
    put(unfinished, "newest")
    assert seen(unfinished) == [("newest", "newest")] * 2
    assert hidden(unfinished) == []


NO_MANIFESTS = ["", "{", "[]", '{"entry": 1}', '{"entry": [0, 0, 0]}', "\xff", "[" * 200_000]


@pytest.mark.parametrize("content", NO_MANIFESTS, ids=[text[:20] for text in NO_MANIFESTS])
def test_a_manifest_that_is_none_does_not_count(unfinished, content):
    [manifest] = [each for each in (unfinished / ".saved").iterdir() if each.name[0] == "."]
    manifest.write_text(content, encoding="latin-1")
    assert seen(unfinished)[0] == ("old", "newer")
    put(unfinished, "newest")
    assert hidden(unfinished) == []


def left_by_version_0_1(folder, names=(ENTRY, OTHER)):
    for name in names:
        write_inside(folder / ".saved" / name, "of 0.1")


def test_what_version_0_1_left_counts_where_files_are_missing_and_is_announced(tmp_path):
    left_by_version_0_1(tmp_path)
    with pytest.warns(UserWarning, match=r"entry.*\.saved.*version 0\.1"):
        assert seen(tmp_path) == [("of 0.1", "of 0.1"), (None, None)]
    put(tmp_path, "new")
    assert seen(tmp_path) == [("new", "new")] * 2
    assert hidden(tmp_path) == []


def test_what_version_0_1_left_does_not_count_where_files_are_there(tmp_path):
    put(tmp_path, "downloaded")
    left_by_version_0_1(tmp_path)
    assert seen(tmp_path) == [("downloaded", "downloaded")] * 2
    put(tmp_path, "new")
    assert seen(tmp_path) == [("new", "new")] * 2
    assert hidden(tmp_path) == []


def test_a_folder_of_that_name_with_other_files_stays(tmp_path):
    put(tmp_path, "old")
    left_by_version_0_1(tmp_path, [ENTRY, "letters"])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match=r"\.saved' has files.*letters.*remove it"):
        put(tmp_path, "new")
    assert sorted(tmp_path.rglob("*")) == before


@posix
def test_other_users_may_read_what_is_not_finished(unfinished):
    mask = os.umask(0)
    os.umask(mask)
    modes = [stat.S_IMODE(each.stat().st_mode) for each in (unfinished / ".saved", unfinished)]
    assert modes == [0o777 & ~mask] * 2


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs two users")
def test_another_user_reads_what_was_there_if_the_new_may_not_be_read():
    import pwd

    with tempfile.TemporaryDirectory() as name:  # unlike pytest's, its parents are open to others
        folder = Path(name)
        folder.chmod(0o755)
        put(folder, "old")
        left_by_version_0_1(folder)
        (folder / ".saved").chmod(0o700)
        os.seteuid(pwd.getpwnam("nobody").pw_uid)
        try:
            text = io.find(folder, "entry").read_text()
        finally:
            os.seteuid(0)
    assert text == "old"


# ----------------------------------------------------------------------------------------------
# Leftovers, and two savers at once
# ----------------------------------------------------------------------------------------------


@posix
def test_what_a_kill_has_left_is_removed_at_the_next_save(tmp_path, put_and_be_killed):
    assert put_and_be_killed(tmp_path, 0)
    assert len(hidden(tmp_path)) == 1
    put(tmp_path, "x")
    assert hidden(tmp_path) == []
    script = (
        "import os, signal, sys\nfrom minigrad import io\n"
        "with io.replacing(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "x[1]"])
    assert len(hidden(tmp_path)) == 1
    io.write_atomically(tmp_path / "x1", b"x")
    assert len(hidden(tmp_path)) == 1  # it is of another file
    io.write_atomically(tmp_path / "x[1]", b"x")
    assert hidden(tmp_path) == []


def test_without_locks_what_is_a_day_old_is_removed(tmp_path, monkeypatch):
    def lock(file):
        raise OSError

    monkeypatch.setattr("minigrad.io.atomic.try_lock", lock)
    old, new = tmp_path / ".saving-old", tmp_path / ".saving-new"
    for path in (old / "in", new / "in"):
        path.mkdir(parents=True)
        (path / "side").write_text("x")
    for path in (old / ".manifest.json", new / ".manifest.json"):
        path.touch()
    past = time.time() - 2 * 24 * 3600
    # A folder is as new as what is in it.
    for path in (*old.rglob("*"), old, new / ".manifest.json", new / "in", new):
        os.utime(path, (past, past))
    put(tmp_path, "x")
    assert hidden(tmp_path) == [".saving-new"]


@posix
@pytest.mark.parametrize("plan", [None, "plan"])
@pytest.mark.parametrize("is_made_again", [False, True])
def test_a_leftover_that_another_save_takes_meanwhile_is_left_alone(
    plan, is_made_again, tmp_path, monkeypatch
):
    left, flock = tmp_path / ".saving-plan", fcntl.flock

    def make():
        left.mkdir()
        return open(left / ".manifest.json", "xb")

    with ExitStack() as stack:

        def lock(file, how):
            """Lock a file that was opened before another save ended, and perhaps one more began."""
            monkeypatch.setattr("fcntl.flock", flock)
            shutil.rmtree(left)
            if is_made_again:
                flock(stack.enter_context(make()), how)
            flock(file, how)

        make().close()
        monkeypatch.setattr("fcntl.flock", lock)
        with io.replacing_together(tmp_path, ENTRY, plan) as stage:
            (stage / ENTRY).write_text("x")
    assert (tmp_path / ENTRY).read_text() == "x"
    assert left.exists() == is_made_again


@posix
def test_what_is_being_written_stays(tmp_path):
    with (
        io.replacing_together(tmp_path, ENTRY) as stage,
        io.replacing(tmp_path / "file") as file,
    ):
        put(tmp_path, "one")
        io.write_atomically(tmp_path / "file", b"one")
        assert stage.is_dir()
        assert seen(tmp_path) == [("one", "one")] * 2
        (stage / ENTRY).write_text("two")
        write_inside(stage / OTHER, "two")
        file.write(b"two")
    assert seen(tmp_path) == [("two", "two")] * 2
    assert (tmp_path / "file").read_bytes() == b"two"
    assert hidden(tmp_path) == []


@posix
def test_a_folder_in_which_another_save_is_about_to_create_its_lock_stays(tmp_path, monkeypatch):
    other = tmp_path / ".saving-0123abcd"
    other.mkdir()
    is_created = []

    def after_the_other_save(remove):
        def removing(path, *args, **options):
            if os.fspath(path) == os.fspath(other) and not is_created:
                is_created.append((other / ".manifest.json").touch())
            return remove(path, *args, **options)

        return removing

    monkeypatch.setattr(os, "rmdir", after_the_other_save(os.rmdir))
    monkeypatch.setattr(shutil, "rmtree", after_the_other_save(shutil.rmtree))
    put(tmp_path, "one")
    assert other.is_dir()
    assert seen(tmp_path) == [("one", "one")] * 2


@posix
def test_what_an_interrupted_removal_has_left_is_removed(tmp_path):
    left = tmp_path / ".saving-0123abcd"
    write_inside(left / OTHER, "old")
    put(tmp_path, "one")
    assert hidden(tmp_path) == []


SAVER = """
import sys
from minigrad import io
for i in range(60):
    with io.replacing_together(sys.argv[1], "entry") as stage:
        for name in ("entry", "side"):
            (stage / name).write_text(sys.argv[2] + str(i))
    io.write_atomically(sys.argv[1] + "/file", sys.argv[2].encode())
"""


@posix
@pytest.mark.full
def test_several_savers_at_once_wait_for_each_other(tmp_path):
    savers = [
        subprocess.Popen([sys.executable, "-c", SAVER, tmp_path, text], stderr=subprocess.PIPE)
        for text in "abc"
    ]
    errors = [saver.communicate()[1].decode() for saver in savers]
    assert errors == [""] * 3
    [asked, plain] = seen(tmp_path, (ENTRY, "side"))
    assert asked == plain
    assert asked[0] == asked[1]
    assert hidden(tmp_path) == []


HOLDING = """
import os, signal, sys
from minigrad import io
replace = os.replace
def wait(*args):
    print("waiting", flush=True)
    sys.stdin.readline()
    replace(*args)
os.replace = wait
with io.replacing_together(sys.argv[1], "entry") as stage:
    (stage / "entry").write_text("slow")
"""


@pytest.mark.full
@posix
def test_a_save_that_waits_too_long_for_another_one_is_refused(tmp_path, monkeypatch):
    put(tmp_path, "old", [ENTRY])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDING, tmp_path], **pipes) as saver:
        assert saver.stdout.readline() == "waiting\n"
        monkeypatch.setattr("minigrad.io.together.PATIENCE", 0.2)
        with pytest.raises(TimeoutError, match=r"another process is saving.*wait until"):
            put(tmp_path, "new", [ENTRY])
        saver.communicate("go on\n")
    assert seen(tmp_path, [ENTRY]) == [("slow",)] * 2
    assert hidden(tmp_path) == []


@posix
def test_the_names_are_on_disk_too(tmp_path, monkeypatch):
    put(tmp_path, "old")
    calls, sync, replace, rename = [], os.fsync, os.replace, os.rename

    def spy_sync(handle):
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        calls.append(f"fsync {kind}")
        sync(handle)

    def spy(name, function):
        def call(source, target):
            calls.append(name)
            function(source, target)

        return call

    monkeypatch.setattr(os, "fsync", spy_sync)
    monkeypatch.setattr(os, "replace", spy("replace", replace))
    monkeypatch.setattr(os, "rename", spy("rename", rename))
    io.write_atomically(tmp_path / "file", b"x")
    assert calls == ["fsync file", "replace", "fsync folder"]
    calls.clear()
    put(tmp_path, "new")
    first, last = calls.index("replace"), len(calls) - calls[::-1].index("replace")
    assert calls[first:last] == ["replace", "replace"]  # with nothing between the two
    assert "fsync folder" in calls[:first]
    assert calls[last] == "fsync folder"


# ----------------------------------------------------------------------------------------------
# Interrupts
# ----------------------------------------------------------------------------------------------


def interrupted_at(number, run):
    """Run, with a KeyboardInterrupt at a line of `minigrad.io`; tell whether it came so far."""
    lines = Lines(str(Path(io.__file__).parent), stop=number + 1)
    try:
        with lines:
            run()
    except KeyboardInterrupt:
        assert lines.count > number
        return True
    assert lines.count <= number, "the interrupt was lost"
    return False


# An interrupt may come before the line that closes a file.
unclosed = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.mark.full
@unclosed
@pytest.mark.parametrize("names", [(ENTRY, OTHER), (ENTRY, OTHER, "third")], ids=["2", "3"])
def test_an_interrupt_at_any_line_leaves_all_or_nothing(tmp_path, names, monkeypatch):
    old, new = (tuple([text] * len(names)) for text in ("old", "new"))
    put(tmp_path, "old", names)
    states, number = [], 0
    while interrupted_at(number, lambda: put(tmp_path, "new", names)):
        [asked, plain] = seen(tmp_path, names)
        assert asked == plain
        assert asked in (old, new)
        states.append(asked)
        number += 1
        put(tmp_path, "old", names)
        assert hidden(tmp_path) == []
        assert number < 1000
    assert states == sorted(states, key=lambda state: state == new)
    assert set(states) == {old, new}


@unclosed
def test_an_interrupt_at_any_line_of_one_file_is_an_interrupt(tmp_path, monkeypatch):
    path, number, states = tmp_path / "file", 0, []
    io.write_atomically(path, b"old")
    while interrupted_at(number, lambda: io.write_atomically(path, b"new")):
        states.append(path.read_bytes())
        number += 1
        io.write_atomically(path, b"old")
        assert hidden(tmp_path) == []
        assert number < 1000
    assert states == sorted(states, reverse=True)
    assert set(states) == {b"old", b"new"}


def test_the_manifest_names_what_it_replaces(unfinished):
    [manifest] = [each for each in (unfinished / ".saved").iterdir() if each.name[0] == "."]
    content = json.loads(manifest.read_text())
    assert list(content) == [OTHER, ENTRY]
    found = (unfinished / ENTRY).stat()
    assert content[ENTRY][0] == [found.st_size, found.st_mtime_ns]


# ----------------------------------------------------------------------------------------------
# Saves that go on after a kill
# ----------------------------------------------------------------------------------------------

PLANNED = """
import os, signal, sys
from minigrad import io
with io.replacing_together(sys.argv[1], "entry", sys.argv[2]) as stage:
    (stage / "in").mkdir()
    for name in ("in/side", "entry", ".notes"):
        (stage / name).write_text("first")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def killed_before_the_end(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    subprocess.run([sys.executable, "-c", PLANNED, str(folder), "one"], check=False)
    assert len(hidden(folder)) == 1
    return folder


@pytest.fixture
def left(killed_before_the_end, tmp_path):
    """A folder in which a save of the plan "one" was killed."""
    return shutil.copytree(killed_before_the_end, tmp_path, dirs_exist_ok=True)


@posix
def test_a_save_goes_on_with_what_is_left(left):
    with io.replacing_together(left, ENTRY, "one") as stage:
        assert [stage.name] == hidden(left)
        assert {(stage / name).read_text() for name in (OTHER, ENTRY, ".notes")} == {"first"}
        with io.replacing_together(left, ENTRY, "one") as other:  # the first is at work
            assert other != stage
            assert not (other / OTHER).exists()
            write_inside(other / ENTRY, "other")
        write_inside(stage / ENTRY, "second")
    assert seen(left) == [("second", "first")] * 2
    assert hidden(left) == []


def test_a_planned_folder_without_a_manifest_is_removed(tmp_path):
    (tmp_path / ".saving-one").mkdir()  # a save was killed before it made the manifest
    with io.replacing_together(tmp_path, ENTRY, "one") as stage:
        write_inside(stage / ENTRY, "new")
    assert hidden(tmp_path) == []


@posix
@pytest.mark.parametrize("plan", ["two", "on", "", None])
def test_what_a_save_of_another_plan_has_left_is_removed(plan, left):
    with io.replacing_together(left, ENTRY, plan) as stage:
        assert [stage.name] == hidden(left)
        assert not (stage / OTHER).exists()
        write_inside(stage / ENTRY, "second")
    assert seen(left) == [("second", None)] * 2
    assert hidden(left) == []


@posix
def test_a_link_is_not_gone_on_with(left, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "x"
    [name] = hidden(left)
    os.rename(left / name, elsewhere)
    (left / name).symlink_to(elsewhere)
    before = sorted(each.name for each in elsewhere.rglob("*"))
    with io.replacing_together(left, ENTRY, "one") as stage:
        assert not (stage / OTHER).exists()
        write_inside(stage / ENTRY, "second")
    assert sorted(each.name for each in elsewhere.rglob("*")) == before


@pytest.mark.sampled(3)
@posix
@pytest.mark.parametrize(
    ("error", "plan", "is_kept"),
    [(ChildProcessError, "two", True), (ChildProcessError, None, False), (OSError, "two", False)],
)
def test_what_is_left_when_a_process_of_a_save_is_killed(error, plan, is_kept, tmp_path):
    def save(folder):
        with io.replacing_together(folder, ENTRY, plan) as stage:
            write_inside(stage / ENTRY, "new")
            raise error

    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(error):
            save(folder)
        assert (folder.exists() and len(hidden(folder)) == 1) is is_kept
