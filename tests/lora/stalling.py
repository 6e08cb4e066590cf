"""Workers that never end their last tasks, so that they are killed in the middle of a merge."""

import time

from lora.offline import workers
from lora.offline.merging import _write


def call(function, task):
    """Do the task of a worker, but stay in it if it is one of the last two of six files."""
    if function is _write and task[0].name.startswith(("model-00005", "model-00006")):
        time.sleep(1000)
    return workers.do_task(function, task)
