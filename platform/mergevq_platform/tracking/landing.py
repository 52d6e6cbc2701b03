"""A landing page of MLflow's own server: it sets the browser to "Model training" and goes on to an experiment or a run.

MLflow's interface keeps the kind of work in the browser's storage, not in its addresses: a click on a run loses it and falls
back to the pages for language models. Only a page of the same origin can set it. MLflow finds this one through its
entry-point group `mlflow.app` and serves it with all that it checks itself (`mlflow server --app-name mergevq`).
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
import urllib.parse
from importlib import metadata
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from mergevq_platform.tracking.links import curve_link

if TYPE_CHECKING:
    from collections.abc import Mapping

APP_NAME = "mergevq"
ENTRY_POINT = f"{__name__}:create_app"
PATH = "/mergevq"
_LOWEST = Version("3.10")  # tried with 3.10.0, 3.17.2 and 3.18.0
_PREFIX_VARIABLE = "MLFLOW_STATIC_PREFIX"  # of `mlflow server`, which then serves everything below it
# What the page takes, and nothing else: an address is made of these alone, so it leads nowhere but into this server.
_FORMS = {
    "experiment": re.compile(r"[0-9]{1,32}"),
    "run": re.compile(r"[0-9a-f]{32}"),
    "view": re.compile(r"[\w-]{1,64}", re.ASCII),
}
_OURS = re.compile(
    r"(?P<base>.*)/#/experiments/(?P<experiment>\d+)/runs(?:/(?P<run>\w+)/[\w-]+)?\?(?P<query>.*)"
)
# `useLocalStorage` of MLflow's page (3.10.0 to 3.18.0) keeps JSON under KEY_vVERSION.
_SCRIPT = (
    'try{localStorage.setItem("mlflow.workflowType_v1",JSON.stringify("machine_learning"));'
    # The Assistant opens over a quarter of the page at the first visit of a browser.
    'localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1",JSON.stringify(true))}catch(e){}'
    'location.replace(document.getElementById("page").href)'
)
_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_POLICY = f"default-src 'none'; script-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'"


def lacking() -> str | None:
    """Why MLflow's server cannot show the landing page here, in a line with the fix; None where it can."""
    version = metadata.version("mlflow")
    if Version(version) < _LOWEST:
        return f"MLflow {version} has no place for a landing page: install {_LOWEST} or newer"
    if not any(entry.value == ENTRY_POINT for entry in metadata.entry_points(group="mlflow.app")):
        return "this installation does not tell MLflow of its landing page: install it again (make setup, or pip install)"
    return None


def static_prefix(environment: Mapping[str, str]) -> str:
    """The path that MLflow's server stands behind, such as `/mlf`; empty at the root."""
    return environment.get(_PREFIX_VARIABLE, "").rstrip("/")


def landing_link(address: str) -> str:
    """The landing page that goes on to `address`, one of `links`' on the same server; other addresses stay."""
    found = _OURS.fullmatch(address)
    if found is None:
        return address
    view = dict(urllib.parse.parse_qsl(found["query"])).get("viewStateShareKey")
    wanted = {"experiment": found["experiment"], "run": found["run"], "view": view}
    given = {key: value for key, value in wanted.items() if value is not None}
    if any(not _FORMS[key].fullmatch(value) for key, value in given.items()):
        return address
    return f"{found['base']}{PATH}?{urllib.parse.urlencode(given)}"


def landing_page(query: Mapping[str, str]) -> str | None:
    """The page as HTML, for what an address asks; None for anything but an experiment's id, a run's and a view's key."""
    if not query.keys() <= _FORMS.keys() or "experiment" not in query:
        return None
    if any(not _FORMS[key].fullmatch(value) for key, value in query.items()):
        return None
    # Relative: behind a prefix or a proxy it stays on the server that was asked.
    target = curve_link(".", query["experiment"], query.get("run"), view=query.get("view"))
    return (
        '<!doctype html><meta charset="utf-8"><title>MergeVQ</title>'
        f'<p><a id="page" href="{html.escape(target)}">MLflow, Model training</a></p><script>{_SCRIPT}</script>'
    )


def create_app() -> Any:
    """MLflow's server with the landing page; the function that its entry point names."""
    from flask import Response, request
    from mlflow.server import app
    from mlflow.server.handlers import _add_static_prefix

    def answer() -> Response:
        page = landing_page(request.args)
        if page is None:
            return Response("experiment, run or view is no id of MLflow's\n", 400, mimetype="text/plain")
        headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-store"}
        return Response(page, mimetype="text/html", headers=headers)

    app.add_url_rule(_add_static_prefix(PATH), "mergevq_landing", answer, methods=["GET"])
    if os.environ.get("_MLFLOW_SGI_NAME", "uvicorn") != "uvicorn":
        return app  # gunicorn, where the user chose it
    # Flask's app is mounted in it, behind the checks of both: a rule that is added to it is seen here too.
    from mlflow.server.fastapi_app import app as asgi

    return asgi
