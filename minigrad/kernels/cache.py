"""Compiled kernels on disk: each kernel has a file, named by a digest of all it was made from.

This module replaces numba's cache, for four reasons:

* numba's key depends on the file that a function is written in, but not on the files with the
  functions that it calls. If the register tile in one file changes, loops in another file still
  pack panels for the old tile, and write to memory out of bounds.
* numba numbers the files of a function in an index. Two processes that compile at once may give the
  same number to two kernels, and then each runs the machine code of the other.
* A truncated file, for example after a full disk, raises an arbitrary error when it is read.
* Nothing is ever deleted.

Here, the name of a file is a digest of everything that its machine code depends on, so no index can
be out of date: if the file does not exist, the kernel is compiled. Two processes that compile the
same kernel write the same file, both atomically. A file begins with a digest of the rest, so a
damaged file is noticed and made again. All files made from one state of the sources in this package
are in one folder, and the last few such folders stay.

A function that is compiled once and called from many kernels (`minigrad.kernels.jit.external`) has
a file too. Its name is the symbol by which machine code calls the function. So a file names the
files that it needs, and these are loaded first.

The key does not depend on the values of global variables, although numba compiles them in. So they
must be constants of the sources, or follow from the processor, which the key includes. What depends
on the machine in another way, such as the size of a cache, must be an argument.

A kernel is read from any of the `FOLDERS`, if the folder can be trusted (`minigrad.kernels.trust`),
and stored in the first that can be written to. Only this user may read it. Kernels that root has
compiled, as when a container was built, can be used by all users after `chmod -R go+rX` of their
folder and the one above.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import pickle
import re
import shutil
import struct
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
import numpy
from numba.core import compiler, serialize
from numba.core.registry import cpu_target
from numba.core.runtime.nrt import rtsys
from numba.misc import appdirs

from minigrad.kernels import start
from minigrad.kernels.start import WORKING_FOLDER, interrupts_held_back
from minigrad.kernels.trust import PACKAGE, known_suspect, others_may_write, suspect

GENERATIONS = 4  # how many states of this package's sources have kernels that stay on disk

LOADED: list[str] = []
"""The functions that this process has read from disk."""

COMPILED: list[str] = []
"""The functions that this process has compiled: kernels and functions that kernels call."""


@cache
def _digest(path: Path) -> str:
    """Return a digest of a source file; empty if it cannot be read, for example in an archive."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


_DIGESTS = "".join(_digest(path) for path in sorted(PACKAGE.rglob("*.py")))
_SOURCES = _DIGESTS and hashlib.sha256(_DIGESTS.encode()).hexdigest()  # "" if there are none


_VERSIONS = numba.__version__, llvmlite.__version__, numpy.__version__, sys.version
_OPTIONS = (
    "OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "USING_SVML",
)  # fmt: skip


def _folders() -> list[Path]:
    parents = [PACKAGE / "__pycache__", Path(appdirs.AppDirs("minigrad", False).user_cache_dir)]
    if numba.config.CACHE_DIR:
        parents = [Path(WORKING_FOLDER, numba.config.CACHE_DIR, "minigrad")]
    # If the user has no home folder, the path begins with "~" and would be relative to the working
    # folder, which may have been deleted.
    parents = [parent for parent in parents if parent.is_absolute() and _SOURCES]
    # Without symbolic links, which others may change after `suspect` has looked where they lead.
    return [(parent / f"kernels-{_SOURCES[:16]}").resolve() for parent in parents]


FOLDERS = _folders()
"""The folders where compiled kernels may be, in the order in which they are searched.

They are in `NUMBA_CACHE_DIR` if it is set, or else beside minigrad's sources and in the user's
cache folder. A relative `NUMBA_CACHE_DIR` counts from the working folder in which minigrad was
imported. The list is empty if that had been deleted, or if the sources cannot be read one by one,
as in a zip archive.
"""


@cache
def writable_folder() -> Path | None:
    """Return the first of the `FOLDERS` that can be written to, or None; make it if necessary."""
    for folder in FOLDERS:
        try:
            if suspect(folder):
                continue
            is_new = not folder.exists()
            for each in reversed([folder, *folder.parents]):
                is_ours = each in (folder, folder.parent)
                each.mkdir(mode=0o700 if is_ours else 0o755, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            continue
        if is_new:
            with suppress(OSError):  # another process may be deleting the same folders
                states = sorted(folder.parent.glob("kernels-*"), key=os.path.getmtime)
                for old in states[:-GENERATIONS]:
                    shutil.rmtree(old, ignore_errors=True)
        return folder
    return None


def describe() -> str:
    """Describe in words where compiled kernels are stored, and how many."""
    folder = writable_folder()
    if folder is None:
        return f"kept nowhere: {why_nowhere()}"
    sizes = [path.stat().st_size for path in folder.glob("*.nbc")]
    return f"{len(sizes)} files of {sum(sizes) / 1e6:.1f} MB in {folder}"


def name_apart(function: Callable[..., Any]) -> None:
    """Add a digest of the values that a function closes over to its name.

    Two functions that one factory has made would otherwise have the same name, and the linker,
    which finds functions by their names, might confuse them.
    """
    cells = function.__closure__ or ()
    if cells and not function.__qualname__.endswith("]"):
        parts = [_identity(cell.cell_contents) for cell in cells]
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()
        function.__qualname__ += f"[{digest[:16]}]"


def _identity(value: Any) -> object:
    """Return what identifies a value in every process: for a function, its name and its source."""
    function = inspect.unwrap(value)
    code = getattr(function, "__code__", None)
    if code is None:
        return serialize.dumps(value)
    source = _digest(Path(code.co_filename))
    return function.__module__, function.__qualname__, source, code.co_firstlineno


SYMBOLS: dict[str, Any] = {}
"""The compiled functions that machine code in this process may call, by their symbols.

These are numba's objects, which keep the machine code alive.
"""

_SYMBOL = re.compile(rb"minigrad\.(\w+-[0-9a-f]{32})\0")  # as in the string table of a file


def provide(symbol: str, compiled: Any) -> None:
    """Make a function known to the linker by its symbol; the caller holds numba's compiler lock."""
    address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    llvm.add_symbol(symbol, address)
    SYMBOLS[symbol] = compiled


def load(name: str, target: Any, callers: tuple[str, ...] = ()) -> Any:
    """Return the compiled function in a file, or None if the file is missing or unusable.

    The functions that it calls through symbols are loaded first, because the linker ends the
    process if one is missing. `callers` are the names of those that wait for this one.
    """
    if name in callers:  # no function needs itself, so another program has written the file
        return None
    for folder in FOLDERS:
        content = read_file(folder / f"{name}.nbc")
        if content is None:
            continue
        for called in sorted(set(_SYMBOL.findall(content))):
            symbol = f"minigrad.{called.decode()}"
            if symbol not in SYMBOLS:
                function = load(called.decode(), target, (*callers, name))
                if function is None:
                    return None
                provide(symbol, function)
        try:
            stored_as, parts = pickle.loads(content)
            (_, _, codes), function, *_ = parts
            function_name = function.qualname.split("[")[0].rpartition(".")[2]
            if (stored_as, function_name) != (name, name.rpartition("-")[0]):
                continue  # the file was renamed, or holds the parts of another function
            if not _are_whole(codes, function.llvm_func_name.encode()):
                continue
            compiled = compiler.CompileResult._rebuild(target, *parts)
        except Exception:  # the digest is right, but another program has written the content
            continue
        LOADED.append(name.rpartition("-")[0])
        return compiled
    return None


def _are_whole(codes: tuple[bytes, bytes], function: bytes) -> bool:
    """Return whether machine code and bitcode have a function, and the former is not cut off.

    If not, LLVM ends the process when it reads the machine code, or when it is called.
    """
    machine_code, _ = codes
    if machine_code.startswith(b"\x7fELF\2"):  # of 64 bits, as on Linux; it ends with a table
        first, size, count = struct.unpack_from("=40xQ10x2H", machine_code)
        if first + size * count != len(machine_code):
            return False
    return all(function in code for code in codes)


class KernelCache:
    """The files of one function, compiled with these options, in place of numba's cache."""

    def __init__(self, function: Callable[..., Any], options: tuple[object, ...]) -> None:
        self.function = function
        self.options = options
        self.source = _digest(Path(function.__code__.co_filename))

    def symbol(self, signature: Any) -> str:
        """Return the name by which compiled code calls the function with these argument types."""
        return f"minigrad.{_name(self, signature)}"

    def has(self, signature: Any) -> bool:
        """Return whether the function is in this process or on disk for these argument types."""
        name = _name(self, signature)
        # `Path.exists` may raise an error in a folder of another user; this returns False.
        on_disk = (os.path.exists(folder / f"{name}.nbc") for folder in FOLDERS)
        return f"minigrad.{name}" in SYMBOLS or any(on_disk)

    def load_overload(self, signature: Any, target: Any) -> Any:
        """Return the function for these argument types, or None if it must be compiled."""
        # numba would call target.refresh(), which takes 0.1 to 0.2 s because it imports everything
        # that a compilation may need. Code that is already compiled needs only the memory manager.
        rtsys.initialize(target)
        found = load(_name(self, signature), target) if self.source else None
        if found is None or found.signature.args != signature:
            found = None
            name = self.function.__name__
            COMPILED.append(name)
            if start.before_compiling is not None:
                start.before_compiling(name, self.function.__module__, str(signature))
            with interrupts_held_back():  # while numba imports what it needs to compile
                cpu_target.typing_context.refresh()
                target.refresh()
        return found

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Store a compiled function, if a folder can be written to."""
        if compiled.library.has_dynamic_globals:
            if not numba.config.OPT:  # without it, LLVM leaves in the addresses that no code reads
                say_once("kernels are compiled anew in each process, because of NUMBA_OPT=0")
                return
            raise TypeError(
                f"{self.function.__name__}: its machine code holds an address of this process (of "
                "a large global array, or of a function of ctypes), so that it cannot be kept for "
                "others; make that an argument"
            )
        folder = writable_folder()
        if folder is not None and self.source:
            name = _name(self, signature)
            write_file(folder / f"{name}.nbc", serialize.dumps((name, compiled._reduce())))


@cache  # since a warm start asks for each twice, and a progress bar again and again
def _name(kept: KernelCache, signature: Any) -> str:
    """Return the name of the file of a function for these argument types."""
    parts = (
        kept.source,
        kept.function.__code__.co_firstlineno,
        kept.function.__module__,
        kept.function.__qualname__,  # with the digest of what the function closes over
        str(signature),
        kept.options,
        cpu_target.target_context.codegen().magic_tuple(),  # the processor, its instructions
        _SOURCES,
        _VERSIONS,
        [str(getattr(numba.config, name, None)) for name in _OPTIONS],
    )
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()
    return f"{kept.function.__name__}-{digest[:32]}"


def read_file(path: Path) -> bytes | None:
    """Return the content of a file; None if it is missing, damaged, or others may write to it."""
    try:
        path.stat()  # if this fails, others may still make the folder, so nothing is known of it
        unsafe = known_suspect(path.parent)
        if unsafe is None:
            with open(path, "rb") as file:  # once, so that no other file is read than is examined
                unsafe = path if others_may_write(file.fileno()) else None
                content = file.read()
    except OSError:
        return None
    if unsafe is not None:
        say_once(
            f"compiled kernels in {path.parent} are not loaded, since {unsafe} belongs to another "
            "user, or others may write there; NUMBA_CACHE_DIR may name a folder of your own"
        )
        return None
    digest, rest = content[:32], content[32:]
    return rest if hashlib.sha256(rest).digest() == digest else None


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically: a process that reads it at the same time finds all of it or none."""
    draft = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    for_this_user = partial(os.open, mode=0o600)
    try:
        # Another process may have deleted the folder because it is old.
        draft.parent.mkdir(mode=0o700, exist_ok=True)
        with open(draft, "wb", opener=for_this_user) as file:
            file.write(hashlib.sha256(content).digest() + content)
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        if not os.path.exists(path):  # Windows keeps the file that another process is reading
            say_once(
                "kernels that this process compiles are compiled anew in the next, for they could "
                f"not be kept: {error}"
            )


def why_nowhere() -> str:
    """Say why compiled kernels cannot be stored, and what to do."""
    if not _SOURCES:
        return (
            "the files of minigrad cannot be read one by one, as in a zip archive; install it, or "
            "unpack it"
        )
    if not FOLDERS:
        return (
            f"NUMBA_CACHE_DIR is {numba.config.CACHE_DIR!r}, and there was no working folder when "
            "minigrad was imported; it may name a folder by its whole path"
        )
    found = "; ".join(f"{folder}{_why_not(folder)}" for folder in FOLDERS)
    return f"no folder for them can be used ({found}); NUMBA_CACHE_DIR may name one of your own"


def _why_not(folder: Path) -> str:
    """Say why a folder cannot be used."""
    if above := suspect(folder):
        return f", since {above} belongs to another user, or others may write there"
    for each in (folder.parent, folder):
        if os.path.exists(each) and not os.access(each, os.R_OK | os.X_OK):
            return f", which others may use after its owner's chmod -R go+rX {each}"
    return ", which cannot be written to"


@cache
def say_once(text: str) -> None:
    """Log a line, unless this process has logged it before."""
    # Through `logging`, so that a program can silence or redirect it. As a warning, because without
    # a configuration only warnings and errors are shown.
    logging.getLogger("minigrad").warning("minigrad: %s", text)
