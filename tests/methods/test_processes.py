"""Pairs and several processes: a pair is never parted, also not by a process that only joins in."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from forgetting import CONFIG, begin, steps

from duet_unlearn.methods.preference import Dpo

WORKER = """
import json, os, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {here!r}]
import torch
from accelerate import PartialState
from test_processes import losses
torch.set_num_threads(1)
rank = os.environ["RANK"]
found = losses(Path({out!r}, rank))
Path({out!r}, rank + ".json").write_text(json.dumps([found, PartialState().num_processes]))
PartialState().destroy_process_group()
"""


def losses(directory: Path) -> list[tuple[float, float]]:
    """Four pairs in batches of three: the second step has one pair alone."""
    config, method = replace(CONFIG, batch_size=3), Dpo()
    logs = steps(method, begin(method), directory, num_steps=4, config=config)
    return [(log.loss, log.grad_norm) for log in logs]


@pytest.mark.slow
def test_a_process_without_a_pair_of_its_own_joins_in_with_a_whole_one(tmp_path: Path) -> None:
    expected = losses(tmp_path / "alone")
    here, script = Path(__file__).parent, tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(here.parent), here=str(here), out=str(tmp_path)))
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        got, num_processes = json.loads((tmp_path / f"{rank}.json").read_text())
        assert num_processes == 2
        assert [tuple(row) for row in got] == [pytest.approx(row, rel=1e-5) for row in expected]
