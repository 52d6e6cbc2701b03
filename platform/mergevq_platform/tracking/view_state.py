"""The state of MLflow's chart page, as the tag of an experiment that holds a shared view.

MLflow documents neither the tag nor its value. What is here was read from the pages of 3.10.1, 3.14.0, 3.15.0, 3.17.2
and 3.18.0 and tried in 3.10.1, 3.17.2 and 3.18.0: a page before 3.15 reads the bare state alone, and crashes where a
field of it is missing; from 3.15 on a view in an envelope has a name in the menu "Views".
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TAG_PREFIX = "mlflow.sharedViewState."
RUN_COLOUR_TAG = (
    "mlflow.runColor"  # of a run: `#rrggbb`, in charts and lists; without it the page chooses by the run's id
)
_DEFLATED = "deflate;"

Card = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page: cards in `columns`, each `height` pixels high; folded unless `shown`."""

    name: str
    cards: Sequence[Card] = ()
    columns: int = 3
    height: int = 360
    shown: bool = True


@dataclass(frozen=True, kw_only=True)
class PageState:
    """A chart page: its sections in order, the runs that it lists (a search filter of MLflow's), with or without the list.

    Ordered by date, the page folds trials under their sweep and leaves them out of its charts, whatever the filter says;
    `order_by` another column, rising, shows them.
    """

    sections: Sequence[Section]
    search_filter: str = ""
    order_by: str | None = None
    without_list: bool = False
    shown_runs: str = "FIRST_20_RUNS"  # MLflow's word for the runs that charts show at first

    def tree(self) -> dict[str, Any]:
        """The state as MLflow's page keeps it, with every field that any version reads."""
        sections, cards = [], []
        for number, section in enumerate(self.sections):
            own = f"s{number}"  # MLflow's are UUIDs: nothing reads them as such, and they do not compress
            sections.append(
                {
                    "uuid": own,
                    "name": section.name,
                    "display": section.shown,
                    "isReordered": True,  # else the page sorts its cards by key
                    "deleted": False,
                    "isGenerated": False,
                    "columns": section.columns,
                    "cardHeight": section.height,
                }
            )
            cards += [
                {
                    "uuid": f"{own}c{place}",
                    "metricSectionId": own,
                    "deleted": False,
                    "isGenerated": False,
                    "runsCountToCompare": 10,
                    **card,
                }
                for place, card in enumerate(section.cards)
            ]
        return {
            "searchFilter": self.search_filter,
            "orderByKey": self.order_by or "attributes.start_time",
            "orderByAsc": self.order_by is not None,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": ["attributes.`Source`", "attributes.`Models`", "attributes.`Dataset`"],
            "columnOrder": [],
            "columnWidths": {},
            "runsExpanded": {},
            "runsPinned": [],
            "runsHidden": [],
            "runsVisibilityMap": {},
            "runsHiddenMode": self.shown_runs,
            "compareRunCharts": cards,
            "compareRunSections": sections,
            "viewMaximized": False,
            "runListHidden": self.without_list,
            "isAccordionReordered": True,  # else the page sorts its sections by name
            "useGroupedValuesInCharts": True,
            "hideEmptyCharts": True,
            "groupBy": None,
            "groupsExpanded": {},
            "autoRefreshEnabled": True,
            "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
            "chartsSearchFilter": "",
        }


def lines(keys: Sequence[str], *, over: str) -> Card:
    """A chart of metrics over the metric `over`, a line for each run and key; its title is the first key."""
    return {
        "type": "LINE",
        "metricKey": keys[0],
        "selectedMetricKeys": list(keys),
        "xAxisKey": "metric",
        "selectedXAxisMetricKey": over,
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": True,
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "displayPoints": True,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
    }


def scatter(x: str, y: str) -> Card:
    """A point for each run at the last values of two metrics."""
    return {
        "type": "SCATTER",
        "xaxis": {"key": x, "type": "METRIC"},
        "yaxis": {"key": y, "type": "METRIC"},
        "runsCountToCompare": 100,
    }


def parallel(params: Sequence[str], metrics: Sequence[str]) -> Card:
    """Parallel coordinates: a line for each run through its parameters and the last values of metrics."""
    return {
        "type": "PARALLEL",
        "selectedParams": list(params),
        "selectedMetrics": list(metrics),
        "showAllRuns": False,
    }


def differences() -> Card:
    """A table of the parameters in which runs differ."""
    return {
        "type": "DIFFERENCE",
        "compareGroups": ["Parameters"],
        "chartName": "Parameters that differ",
        "showChangeFromBaseline": False,
        "showDifferencesOnly": True,
        "baselineColumnUuid": "",
    }


def images(keys: Sequence[str], step: int) -> Card:
    """Images with a slider over steps, which stands at `step`: of one key in a row, of several as a table of keys by runs."""
    return {"type": "IMAGE", "imageKeys": list(keys), "step": step, "showRunParams": False}


def encoded(state: Mapping[str, Any], *, name: str | None, created_ms: int = 0, updated_ms: int = 0) -> str:
    """The tag's value: in an envelope with a `name`, bare without one."""
    packed = zlib.compress(json.dumps(state, separators=(",", ":")).encode(), 9)
    bare = _DEFLATED + base64.b64encode(packed).decode()
    if name is None:
        return bare
    envelope = {"name": name, "createdAt": created_ms, "updatedAt": updated_ms, "state": bare}
    return json.dumps(envelope, separators=(",", ":"))


@dataclass(frozen=True)
class Stored:
    """A view as a tag holds it; `name` is None where it has no envelope."""

    state: Any
    name: str | None
    created_ms: int


def decoded(value: str) -> Stored | None:
    """The view in a tag's value; None where it is none."""
    try:
        name, created, bare = None, 0, value
        if value.startswith("{"):
            envelope = json.loads(value)
            name, created, bare = str(envelope["name"]), int(envelope["createdAt"]), envelope["state"]
        if not bare.startswith(_DEFLATED):
            return None
        return Stored(
            json.loads(zlib.decompress(base64.b64decode(bare.removeprefix(_DEFLATED)))), name, created
        )
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error):
        return None
