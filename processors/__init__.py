"""The stage that turns requests into outcomes: one Faust app reads all models' topics and calls their servers.

| package | what it does |
|---|---|
| `partitions` | windows of records, their acknowledgement, and recovery after an assignment |
| `scheduling` | the order of lines, and the lines that wait for another call |
| `calls` | makes a call, judges its answer, and decides whether a failed line is retried |
| `backends`, `limits` | the servers of a model, and how many calls each gets |
| `http` | the HTTP client |
| `joined` | calls with the inputs of several lines |
| `outcomes` | gathers results into records, and sends them |
| `reports` | what the servers do, for the api |

`dispatcher.py` connects them; `failures.py` has the value that describes a failed call. Imports go one way: see
the contract "Layers inside processors" in `pyproject.toml`. A failed call is decided in `backends/pool.py` (the
server) and `calls/retry.py` (the line), and waits in `scheduling/retry_queue.py`.
"""
