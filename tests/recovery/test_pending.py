"""SIGKILL of a scheduled trace: the next one goes on with the same batch, whatever was submitted in between."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import worlds

from storage.catalog import run_user_sql
from storage.inbox import submit
from storage.prompts import make_prompt
from storage.store import create_store
from tasks.corpus import CorpusParameters, ingest
from tasks.fanout import Workers

pytestmark = pytest.mark.e2e
TESTS = Path(__file__).parents[1]
PROGRAM = """
import json, os, signal, sys
sys.path.insert(0, {tests!r})
from recovery import walks
import flows.pending, flows.trace
from flows.parameters import PendingParameters

walks._make_plain(["start"])  # stages as functions: no server
flows.pending.trace, flows.pending.screen = flows.trace.trace.fn, flows.pending.screen.fn
if sys.argv[2] == "kill":
    flows.trace.score_tokens = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
print(json.dumps(flows.pending.trace_pending.fn(PendingParameters.model_validate_json(sys.argv[1]))))
"""


def test_a_scheduled_trace_that_is_killed_goes_on_with_the_run_that_it_had_begun(tmp_path, gpt2):
    store = create_store(tmp_path / "s")
    corpus = worlds.write_jsonl(tmp_path / "fables.jsonl", worlds.documents())
    ingest.fn(store, gpt2, CorpusParameters(inputs=(str(corpus),)), Workers())
    asked = {
        "store": str(store.root), "model": {"name": str(gpt2)}, "fit": {"sequences": 40}, "cluster": "none",
        "method": {"rescore": 2},
    }  # fmt: skip

    def trace_pending(how: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", PROGRAM.format(tests=str(TESTS)), json.dumps(asked), how]
        return subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, timeout=200, check=False)

    submit(store, [make_prompt("The otter went to the", f" {place}.", place) for place in ("harbour", "quarry")])
    assert trace_pending("kill").returncode == -9
    (begun,) = [path.name for path in (store.root / "work").glob("run-*")]
    submit(store, [make_prompt("The otter went to the", " chapel.", "chapel")])
    done = trace_pending("on")
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = json.loads(done.stdout.splitlines()[-1])
    assert first == begun
    answers = run_user_sql(store, "select query_id, run_id from query_states where state = 'answered' order by all")[1]
    assert answers == [("chapel", second), ("harbour", begun), ("quarry", begun)]
