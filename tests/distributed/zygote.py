"""Starts tiny runs fast: everything is imported once, and every process of a run is a fork of this one.

Jobs come as lines of JSON, exit codes go back as lines of JSON. What a launcher does is done here: the environment of
each process, and the end of all when one has died.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback

import tiny_run


TIMEOUT = 240.0


def start(job: dict, rank: int, count: int, port: int) -> int:
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        log = os.open(f"{job['report']}.{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if count > 1:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(count),
                LOCAL_WORLD_SIZE=str(count),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
                ACCELERATE_USE_CPU="true",
            )
        tiny_run.run(job)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def launch(job: dict) -> list[int]:
    """Exit codes of the processes of a run; negative ones are signals."""
    count = job.get("processes", 1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = {start(job, rank, count, port): rank for rank in range(count)}
    codes: list[int | None] = [None] * count
    deadline = time.monotonic() + TIMEOUT
    while running:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process:
            codes[running.pop(process)] = os.waitstatus_to_exitcode(status)
            if any(codes):
                deadline = min(deadline, time.monotonic() + 2)
        elif time.monotonic() > deadline:
            for process in running:
                os.kill(process, signal.SIGTERM if any(codes) else signal.SIGKILL)
            deadline = time.monotonic() + 5
        else:
            time.sleep(0.02)
    return [code or 0 for code in codes]


if __name__ == "__main__":
    tiny_run.torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(launch(json.loads(line))), flush=True)
