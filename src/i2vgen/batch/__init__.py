"""Many videos from a list, with one model, resumable.

from i2vgen.batch import model_identity, plan_items, read_list, run_batch
from i2vgen.pipelines import load_cascade

items = plan_items(read_list("shots.csv"), seed=0, repeats=2)
result = run_batch(items, "videos", load=lambda: load_cascade("nano"), model=model_identity("nano"))
print(len(result.done), len(result.skipped), [entry["error"] for entry in result.failed])
"""

from i2vgen.batch.items import Item, image_identity, model_identity, plan_items
from i2vgen.batch.lists import ListError, Row, read_list
from i2vgen.batch.lock import FolderBusyError
from i2vgen.batch.results import read_entries
from i2vgen.batch.run import BatchReport, BatchResult, run_batch
from i2vgen.batch.states import ItemState, item_states

__all__ = [
    "BatchReport",
    "BatchResult",
    "FolderBusyError",
    "Item",
    "ItemState",
    "ListError",
    "Row",
    "image_identity",
    "item_states",
    "model_identity",
    "plan_items",
    "read_entries",
    "read_list",
    "run_batch",
]
