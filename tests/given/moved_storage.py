"""A copy of a storage that can be spoilt: what is given to a session's tests is shared by them."""

import shutil
import sqlite3

PATHS = {
    "experiments": ["artifact_location"],
    "runs": ["artifact_uri"],
    "model_versions": ["storage_location"],
    "logged_models": ["artifact_location"],
    "tags": ["value"],
    "model_version_tags": ["value"],
    "datasets": ["dataset_source"],
}
"""where MLflow's database has the storage's path in it"""


UNTOUCHED = "untouched"
"""beside a storage that tests add to: as it was before"""


def moved(storage, to, uri="", ago_s=0):
    """A copy of a storage: its files at `to`, its database knowing them as being at `uri`, all runs so long over."""
    before = storage.parent / UNTOUCHED
    shutil.copytree(before if before.exists() else storage, to, symlinks=True)
    with sqlite3.connect(to / "mlflow.db") as database:
        for table, columns in PATHS.items():
            for column in columns:
                database.execute(
                    f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(storage), uri or str(to))
                )
        shift = int(1000 * ago_s)
        database.execute("UPDATE runs SET start_time = start_time - ?, end_time = end_time - ?", (shift, shift))
    database.close()
