"""The environment that a process inherits: streams, plotting backend, open files, shared memory."""

import atexit
import errno
import os
import resource
import shutil
import sys
import tempfile
from contextlib import suppress
from io import TextIOWrapper
from typing import Final

from utils.errors import UserError

HOME_CACHES: Final = ("MPLCONFIGDIR", "TRITON_CACHE_DIR", "WANDB_CACHE_DIR")
_ELSEWHERE: Final = (
    "make it writable, or name another folder: output_dir= for runs, dataset_root_dir= for data and backbones, "
    "dataset.cache_dir= for decoded images"
)
_ROOM: Final = "free disk space, or name another disk: output_dir= for runs, dataset.cache_dir= for decoded images"
_FILES: Final = "allow more with 'ulimit -n 4096', or set dataset.num_workers=0"
DIED: Final = (
    "a loading process died, usually because memory or shared memory was full: start the container with more "
    "(docker run --shm-size=8g), or set dataset.num_workers=0 or a lower dataset.eval_batch_size"
)
LOST_WORKERS: Final = {  # how PyTorch's message begins -> the sentence for the user
    "DataLoader worker (pid": DIED,
    "Too many open files": f"loading processes need more open files than this shell allows: {_FILES}",
    "received 0 items of ancdata": f"loading processes need more open files than this shell allows: {_FILES}",
}
REFUSALS: Final = {
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.EROFS: _ELSEWHERE,
    errno.ENOTDIR: "a part of that path is a file: remove it, or name another folder",
    errno.EEXIST: "it is a file: remove it, or name another folder",
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.ENAMETOOLONG: "give a shorter run_name= or output_dir=",
}
SHARED_MEMORY: Final = "/dev/shm"
PREFETCHED: Final = 2  # batches that a PyTorch worker loads ahead
MANY_FILES: Final = 65_536
FILES_OF_A_WORKER: Final = 40  # pipes, and one handle for each tensor of its batches


def settle_surroundings() -> None:
    """Sets streams, plotting backend, caches and file limit for this process and the processes that it starts."""
    os.environ["MPLBACKEND"] = "Agg"  # a notebook's backend cannot be imported here
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a character that the terminal lacks must not end a run
    encoding = os.environ.get("PYTHONIOENCODING", "").partition(":")[0]
    os.environ["PYTHONIOENCODING"] = f"{encoding}:backslashreplace"
    if not os.access(os.environ.get("HOME", ""), os.W_OK):
        _keep_caches_elsewhere()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < MANY_FILES:  # infinity is negative
        with suppress(ValueError, OSError):  # a system may allow less than it reports
            resource.setrlimit(resource.RLIMIT_NOFILE, (MANY_FILES if hard < 0 else min(hard, MANY_FILES), hard))


def refusal(error: OSError) -> str | None:
    """Returns a sentence on an error of the operating system and its remedy, or None for other errors."""
    if error.errno not in REFUSALS:
        return None
    where = f"{str(error.filename)[-250:]}: " if error.filename else ""
    return f"{where}{error.strerror}; {REFUSALS[error.errno]}"


def lost_worker(message: str) -> str | None:
    """Returns the sentence for PyTorch's message about workers that died or lack open files, else None."""
    return next((told for begins, told in LOST_WORKERS.items() if message.startswith(begins)), None)


def _keep_caches_elsewhere() -> None:
    """Gives libraries that write to the user's home a folder that is deleted when this process ends."""
    missing = [name for name in HOME_CACHES if name not in os.environ]
    if missing:
        folder = tempfile.mkdtemp(prefix="tbps-caches-")  # in the working folder if the system has no other
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ.update({name: os.path.join(folder, name.lower()) for name in missing})


def check_room_for_workers(workers: int, batch_bytes: int, processes: int = 1) -> None:
    """Checks that there is enough shared memory and that enough files may be open for the loading processes.

    If not, PyTorch would die with a bus error or hang in the middle of an epoch.

    Args:
        workers: number of loading processes for each training process.
        batch_bytes: size of the largest batch in bytes.
        processes: number of training processes on this machine.

    Raises:
        UserError: if there is too little of either.
    """
    if not workers:
        return
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 64
    files = opened + FILES_OF_A_WORKER * workers
    if soft != resource.RLIM_INFINITY and soft < files:
        raise UserError(
            f"dataset.num_workers={workers} needs about {files} open files, and this shell allows {soft}: allow more "
            "with 'ulimit -n 4096', or set dataset.num_workers=0"
        )
    try:
        disk = os.statvfs(SHARED_MEMORY)
    except OSError:
        return  # this system shares memory in another way
    free, wanted = disk.f_bavail * disk.f_frsize, batch_bytes * PREFETCHED * workers * processes
    if free < wanted:
        raise UserError(
            f"dataset.num_workers={workers}: loading processes keep up to {wanted / 2**20:,.1f} MiB of batches in "
            f"{SHARED_MEMORY}, which has {free / 2**20:,.1f} MiB left: start the container with more (docker run "
            f"--shm-size={-(-2 * wanted // 2**30)}g), or set dataset.num_workers=0 or a lower dataset.eval_batch_size"
        )
