"""Empty MLflow databases that are copied: MLflow makes each by running all migrations there ever were, 1.4 CPU seconds.

The first database of this process is MLflow's own work; its tables are copied into the later ones. What other processes make is theirs.
"""

from __future__ import annotations

import sqlite3
import sys
from typing import Any

_MODULE = "mlflow.store.db.utils"
_template = sqlite3.connect(":memory:", check_same_thread=False)


def copy_from_now_on() -> None:
    """From now on MLflow's own function runs once in this process. Does nothing as long as MLflow is not imported."""
    utils = sys.modules.get(_MODULE)
    make = getattr(utils, "_initialize_tables", None)
    if make is None or getattr(make, "copies", False):
        return

    def made_or_copied(engine: Any) -> None:
        if engine.dialect.name != "sqlite":
            make(engine)
            return
        connection = engine.raw_connection()
        try:
            if not _template.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                make(engine)
                connection.driver_connection.backup(_template)
            else:
                _template.backup(connection.driver_connection)
        finally:
            connection.close()

    made_or_copied.copies = True  # type: ignore[attr-defined]
    utils._initialize_tables = made_or_copied  # type: ignore[union-attr]
