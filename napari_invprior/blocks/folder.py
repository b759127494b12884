"""What lies in the folder of a job.

| path | holds |
|---|---|
| ``result.ome.zarr/<name>-incomplete`` | an image that grows; ``<name>`` when it is finished |
| ``job/plan.json``, ``job/prior.safetensors`` | everything that was settled |
| ``job/inputs/`` | inputs that were in memory only |
| ``job/done/``, ``job/failed/`` | the journal: a file per block |
| ``job/lock.json`` | who works on it |
| ``job/stop`` | asks the workers of the client that it names to stop, or all if it is empty |
| ``recipe.json``, ``metrics.json`` | as every run writes them, at the end |
"""

from __future__ import annotations

FOLDER, PLAN, PRIOR, INPUTS, STOP = "job", "plan.json", "prior.safetensors", "inputs", "stop"
DONE, FAILED, LOCK = "done", "failed", "lock.json"
RESULT, RECIPE, METRICS = "result.ome.zarr", "recipe.json", "metrics.json"
