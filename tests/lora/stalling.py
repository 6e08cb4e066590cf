"""Workers that never end their last tasks, so that they are killed in the middle of a merge."""

import time
from pathlib import Path

from lora.offline import workers


def call(function, task):
    """Do the task of a worker, but stay in it if it writes one of the last two of six files."""
    target = task[0] if isinstance(task, tuple) else task
    if isinstance(target, Path) and target.name.startswith(("model-00005", "model-00006")):
        time.sleep(1000)
    return workers.do_task(function, task)
