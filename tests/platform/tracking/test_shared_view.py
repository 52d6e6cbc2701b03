"""The shared views of MLflow's chart page: what they show, in which form they are written, when they are written again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from mergevq_platform.sweeps.definition import Grid, Sweep
from mergevq_platform.sweeps.families import Families
from mergevq_platform.sweeps.objectives import mean_psnr
from mergevq_platform.sweeps.space import Choice
from mergevq_platform.tracking import shared_view, view_state
from mergevq_platform.tracking.acknowledged import Position
from mergevq_platform.tracking.listing import TrackedRun
from mergevq_platform.tracking.page_images import IMAGES_TAG, save_page_image
from mergevq_platform.tracking.shared_view import EXPERIMENT_VIEW, ViewRefused, keep_up, link
from mergevq_platform.tracking.store import Store
from mergevq_platform.tracking.view_sections import differing, experiment_page, run_page, sweep_page
from mergevq_platform.tracking.view_state import TAG_PREFIX, decoded, encoded

TAG = f"{TAG_PREFIX}{EXPERIMENT_VIEW}"
# What the pages of 3.10.1 and 3.17.2 read; the former crashes without one of them.
FIELDS = {
    *("searchFilter", "orderByKey", "orderByAsc", "startTime", "lifecycleFilter", "datasetsFilter"),
    *("modelVersionFilter", "selectedColumns", "columnOrder", "columnWidths", "runsExpanded", "runsPinned"),
    *("runsHidden", "runsVisibilityMap", "runsHiddenMode", "compareRunCharts", "compareRunSections"),
    *("viewMaximized", "runListHidden", "isAccordionReordered", "useGroupedValuesInCharts", "groupBy"),
    *(
        "hideEmptyCharts",
        "groupsExpanded",
        "autoRefreshEnabled",
        "globalLineChartConfig",
        "chartsSearchFilter",
    ),
}


def tracked(name: str = "run", **changes: Any) -> TrackedRun:
    metrics = {
        "curve/rfd_random_v1": 0.3,
        "curve/rfd_random_v1_recovered": 0.5,
        "curve/psnr": 20.0,
        "curve/kept_tokens": 64.0,
        "curve/probe_top1_cls": 80.0,
        "curve/probe_top1_untrained": 20.0,
        "curve_best/rfd_random_v1": 0.2,
        "curve_details/majority_top1": 9.0,
        "train/total": 1.0,
        "speed": 3.0,
    }
    run = TrackedRun(
        uid=f"{name:0<32}",
        name=name,
        kind="training",
        status="FINISHED",
        experiment="e",
        experiment_id="1",
        run_id=f"id-{name}",
        started_ms=0,
        ended_ms=None,
        parent=None,
        evaluates=None,
        params={"seed": "0", "optimizer.learning_rate": "0.001", "data.path": f"/data/{name}"},
        tags={IMAGES_TAG: "True"},
        metrics=metrics,
    )
    return replace(run, **changes)


def sections(page: view_state.PageState) -> dict[str, list[dict[str, Any]]]:
    tree = page.tree()
    names = {section["uuid"]: section["name"] for section in tree["compareRunSections"]}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
    for card in tree["compareRunCharts"]:
        found[names[card["metricSectionId"]]].append(card)
    return found


def test_an_experiments_page_begins_with_three_goals_over_kept_tokens_and_folds_the_rest() -> None:
    page = experiment_page([tracked("a"), tracked("b")], 16)
    found = sections(page)
    assert list(found) == [
        *("Trade-off over kept tokens", "Images: the slider is kept tokens"),
        *("Runs compared, at their last point", "Parameters that differ"),
        *("curve", "curve_best", "curve_details", "train", "Model metrics"),
    ]
    goals = found["Trade-off over kept tokens"]
    assert [card["selectedMetricKeys"] for card in goals] == [
        ["curve/rfd_random_v1"],
        ["curve/probe_top1_cls", "curve/probe_top1_untrained", "curve_details/majority_top1"],
        ["curve/psnr"],
    ]
    assert {card["selectedXAxisMetricKey"] for card in goals} == {"curve/kept_tokens"}
    (card,) = found["Images: the slider is kept tokens"]
    assert (card["imageKeys"], card["step"]) == (["reconstructions", "clusters"], 16)
    scatter, parallel = found["Runs compared, at their last point"]
    assert (scatter["xaxis"]["key"], scatter["yaxis"]["key"]) == (
        "curve/rfd_random_v1",
        "curve/probe_top1_cls",
    )
    assert parallel["selectedMetrics"] == ["curve/rfd_random_v1", "curve/probe_top1_cls"]
    shown = {section["name"]: section["display"] for section in page.tree()["compareRunSections"]}
    assert [name for name, is_shown in shown.items() if is_shown] == list(found)[:4]


def test_a_standard_fid_stands_before_distances_of_other_features_and_nothing_derived_among_them() -> None:
    keys = ("rfid", "rfd_dinov2", "rfid_recovered", "rfid_inf", "rfd_inf_dinov2", "rsfid", "rfid_std")
    run = tracked(metrics={f"curve/{key}": 1.0 for key in keys})
    goals = sections(experiment_page([run], 0))["Trade-off over kept tokens"]
    assert [card["metricKey"] for card in goals] == ["curve/rfid", "curve/rfd_dinov2"]


def test_a_generators_page_has_guidance_scales_and_samples() -> None:
    values = {"gfd_x": 1.0, "class_top1": 50.0, "precision_x": 0.5, "recall_x": 0.5, "guidance_scale": 1.5}
    found = sections(run_page(tracked(metrics={f"cfg_curve/{key}": v for key, v in values.items()}), 0))
    goals = found["Over guidance scales"]
    assert [card["metricKey"].partition("/")[2] for card in goals] == ["gfd_x", "class_top1", "precision_x"]
    assert {card["selectedXAxisMetricKey"] for card in goals} == {"cfg_curve/guidance_scale"}
    (card,) = found["Images: the slider is 100 × guidance scale"]
    assert (card["imageKeys"], card["step"]) == (["samples"], 100)


def test_a_page_of_allocators_has_a_line_for_each_over_the_wanted_mean() -> None:
    names = ("fixed", "compressed_size", "oracle")
    keys = [f"{key}_{name}" for name in names for key in ("rfd_random_v1", "psnr", "probe_top1_cls")]
    metrics = {f"allocation/{key}": 1.0 for key in (*keys, "saved_tokens_oracle", "kept_oracle")}
    run = tracked(metrics=metrics | {"allocation/wanted_tokens": 36.0, "allocation_details/bits_oracle": 1.0})
    assert run.has_charts
    assert not run.has_curve
    found = sections(run_page(run, 16))
    assert list(found)[:2] == ["Allocators over mean kept tokens", "Images: the slider is the wanted mean"]
    goals = found["Allocators over mean kept tokens"]
    assert [len(card["selectedMetricKeys"]) for card in goals] == [3, 3, 3, 1]
    assert [card["metricKey"].partition("/")[2].rpartition("_")[0] for card in goals] == [
        *("rfd_random_v1_compressed", "psnr_compressed", "probe_top1_cls_compressed", "saved_tokens"),
    ]
    assert {card["selectedXAxisMetricKey"] for card in goals} == {"allocation/wanted_tokens"}
    (card,) = found["Images: the slider is the wanted mean"]
    assert (card["imageKeys"], card["step"]) == (["few_and_many"], 36)


def test_an_experiment_without_curves_shows_losses_and_no_image_section() -> None:
    page = experiment_page([tracked(metrics={"train/total": 1.0}, tags={})], 0)
    assert [(s["name"], s["display"]) for s in page.tree()["compareRunSections"]] == [("train", True)]


def test_a_sweeps_page_lists_its_trials_unfolded_and_the_best_first() -> None:
    tree = sweep_page("abc", [tracked("a"), tracked("b")], 16).tree()
    assert tree["searchFilter"] == "tags.`mergevq.parent` = 'abc'"
    # Ordered by date, MLflow's page folds trials under their sweep.
    assert (tree["orderByKey"], tree["orderByAsc"]) == ("metrics.`curve/rfd_random_v1`", True)
    assert tree["runsHiddenMode"] == "SHOW_ALL"
    assert not any("20" in section["name"] for section in tree["compareRunSections"])


def test_of_many_trials_a_sweep_charts_the_best_twenty_and_says_so() -> None:
    tree = sweep_page("abc", [tracked(f"t{number}") for number in range(21)], 16).tree()
    assert tree["runsHiddenMode"] == "FIRST_20_RUNS"
    names = [section["name"] for section in tree["compareRunSections"] if section["display"]]
    assert names[0] == "Best 20: Trade-off over kept tokens"
    assert "Best 20: Runs compared, at their last point" in names


def test_compared_are_parameters_that_tell_runs_apart() -> None:
    ours = {"bits": "18", "kind": "list", "same": "1", "data.path": "/a", "long": "x" * 50, "name": "a"}
    others = {"bits": "10", "kind": "uniform", "same": "1", "data.path": "/b", "long": "y" * 50, "name": "b"}
    runs = [tracked("a", params=ours), tracked("b", params=others)]
    assert differing(runs) == ["bits", "kind"]


def test_a_state_has_every_field_and_comes_back_from_both_forms_small_enough() -> None:
    state = experiment_page([tracked("a"), tracked("b")], 16).tree()
    assert state.keys() == FIELDS
    for name in (None, "MergeVQ"):
        value = encoded(state, name=name, created_ms=5, updated_ms=6)
        stored = decoded(value)
        assert stored is not None
        assert (stored.state, stored.name) == (state, name)
        assert len(value) < 2000, "MLflow before 3.16 takes 5000"
    for broken in ("", "{}", "deflate;xx", '{"name":"a","createdAt":1,"state":"x"}', "{"):
        assert decoded(broken) is None


def test_the_same_page_has_the_same_state_again() -> None:
    assert experiment_page([tracked()], 9).tree() == experiment_page([tracked()], 9).tree()


@pytest.fixture
def answering() -> Iterator[Callable[[str, float], str]]:
    """Starts a server that answers `GET /version` and nothing else; its address."""
    servers = []

    def start(version: str, seconds: float = 0.0) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                time.sleep(seconds)
                known = self.path == "/version"
                self.send_response(200 if known else 404)
                self.end_headers()
                self.wfile.write(version.encode() if known else b"{}")

            def log_message(self, *_: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Answer)
        Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()


def test_the_form_is_the_one_that_the_servers_own_page_reads(
    answering: Callable[[str], str], tmp_path: Path
) -> None:
    def takes_envelope(version: str) -> bool:
        store = Store.at(tmp_path, answering(version))
        return shared_view._takes_envelope(store, store.client())

    assert not takes_envelope("3.10.1")
    assert not takes_envelope("3.14.0")
    assert takes_envelope("3.15.0")
    assert takes_envelope("4.0.0.dev0")
    with pytest.raises(ViewRefused, match=r"the server is MLflow 2\.22\.1, and views need 3\.10 or newer"):
        takes_envelope("2.22.1")
    with pytest.raises(ViewRefused, match="does not tell its version"):
        takes_envelope("<html>")


def test_a_server_out_of_reach_costs_the_view_and_no_patience(
    answering: Callable[[str, float], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_view, "PATIENCE_SECONDS", 0.3)
    slow = answering("3.17.2", 3.0)
    found = link(Store.at(tmp_path, slow), slow, "e")
    assert str(found) == f"{slow}  (the plain page: it took too long to answer)"


def test_a_view_that_is_gone_or_changed_is_written_again_and_another_stays(tmp_path: Path) -> None:
    class Client:
        """Of MLflow's client what a view needs; it counts what is written."""

        def __init__(self) -> None:
            self.tags: dict[str, str] = {}
            self.written = 0

        def set_experiment_tag(self, experiment_id: str, key: str, value: str) -> None:
            self.tags[key] = value
            self.written += 1

    client, name = Client(), "MergeVQ: trade-off"

    class Experiment:
        experiment_id = "1"

        @property
        def tags(self) -> dict[str, str]:
            return client.tags

    def write(page: view_state.PageState, name: str | None) -> None:
        shared_view._write(client, Experiment(), EXPERIMENT_VIEW, name, page)  # type: ignore[arg-type]

    page = experiment_page([tracked()], 9)
    write(page, name)
    write(page, name)
    assert client.written == 1, "what stands there is left alone"
    write(page, None)
    assert client.written == 2, "an older server gets the older form"
    write(experiment_page([tracked()], 16), None)
    assert client.written == 3
    client.tags[TAG] = "deflate;broken"
    write(page, None)
    assert client.written == 4


def test_trials_have_their_familys_colour() -> None:
    sweep = Sweep(
        name="s",
        question="?",
        recipe="demo",
        space={"a": Choice((1, 2)), "b": Choice(("x", "y"))},
        search=Grid(),
        objectives=(mean_psnr(),),
        family="b",
    )
    colours = [Families.of(sweep).colour(params) for params, _ in sweep.listed() or ()]
    assert colours == ["#0072b2", "#d55e00"] * 2
    assert Families.of(sweep).colour({"a": 1, "b": "made up"}).startswith("#")


def test_an_image_has_the_names_that_the_page_reads_and_the_same_ones_again(tmp_path: Path) -> None:
    from PIL import Image

    image = np.zeros((528, 300, 3), np.uint8)
    first = save_page_image(tmp_path, "clusters", 16, image)
    assert first == save_page_image(tmp_path, "clusters", 16, image)
    full, preview = first
    assert full.startswith("images/clusters+step+16+timestamp+0+")
    assert preview == full.replace(".png", "+compressed.webp")
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == sorted(
        name.removeprefix("images/") for name in first
    )
    with Image.open(first[preview]) as small:
        assert max(small.size) == 256


def test_keeping_up_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store = Store.at(tmp_path, "http://127.0.0.1:9")
    reason = keep_up(store, Position("run", "1"), changed=True)
    assert reason is not None
    assert "no view was written" in reason
