"""Usage in the dashboard: its figures are those of `tidemill usage`, and its chart has a bar for each day."""

import re
import subprocess
import sys
import time
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import expect
from support.backend import as_told
from support.dashboard import HOSTILE, axe_faults, button, chats, go, rows, started, state
from support.stack import KEY
from support.waiting import WAIT_SECONDS_MAX

pytestmark = pytest.mark.e2e

DAY = 86_400


def written(stack, *options):
    """What the command writes."""
    command = [sys.executable, "-m", "tidemill", "usage", *options, "--base-url", stack.api, "--api-key", KEY]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS_MAX, check=True).stdout


@pytest.fixture
def used(page, client, backend, tmp_path):
    """A page of an installation with an ended batch."""
    backend.rule = as_told
    batch = started(client, chats(tmp_path / "in.jsonl", None, "refuse", None))
    go(page, f"/batches/{batch.id}")
    state(page, "some lines failed")
    return page


@pytest.mark.parametrize(("by", "more"), [("day,model", ()), ("project", ("--project", "*"))])
def test_the_figures_are_those_of_the_command(used, stack, client, by, more):
    """The page names the command, and its CSV is the same to the byte."""
    page = used
    go(page, f"/usage?by={by}&days=7")
    since = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 6 * DAY))
    quoted = " --project '*'" if more else ""
    expect(
        button(page, f"tidemill usage --by {by} --since {since}{quoted} --csv: copy the command")
    ).to_be_visible()
    with page.expect_download() as download:
        button(page, "CSV").click()
    found = download.value.path().read_text()
    assert found == written(stack, "--csv", "--by", by, "--since", since, *more)
    query = {"start_time": int(time.time()) // DAY * DAY - 6 * DAY, "project": "*" if more else "default"}
    [total] = client.get("/usage", cast_to=object, options={"params": query})["data"]
    lines = page.get_by_role("region", name="Lines", exact=True)
    expect(lines).to_contain_text(f"{total['lines']:,}of {total['batches']:,} batch")
    tokens = page.get_by_role("region", name="Tokens", exact=True)
    expect(tokens).to_contain_text(f"{total['input_tokens']:,} in, {total['output_tokens']:,} out")
    expect(rows(page, "Usage")).to_have_count(len(found.splitlines()) - 1)


def test_too_many_sums_are_not_saved(page):
    """A file with a part of them would look like all: the page names the command that writes them all."""
    sums = dict.fromkeys(("batches", "lines", "input_tokens", "output_tokens"), 1) | {
        "id": "usage_1",
        "model": "m",
    }
    shown = {"data": [sums | {"cost": {"total": "0"}}], "has_more": True, "last_id": "usage_1"}
    page.route("**/v1/usage?*", lambda route: route.fulfill(json=shown))
    go(page, "/usage")
    saved = []
    page.on("download", lambda _: saved.append("a file"))
    button(page, "CSV").click()
    expect(page.get_by_role("alert").filter(has_text="more than 100 sums")).to_contain_text(
        "tidemill usage --by model"
    )
    assert saved == []


def test_the_tokens_of_today_are_those_of_all_models(page):
    """The page asks for one sum, and not for the first groups."""
    today = {"batches": 1, "lines": 7, "input_tokens": 900, "output_tokens": 99, "cost": {"total": "2.5"}}
    page.route(
        "**/v1/usage?*",
        lambda route: route.fulfill(json={"data": [] if "group_by" in route.request.url else [today]}),
    )
    go(page, "/")
    card = page.get_by_role("region", name="Tokens today (UTC)")
    expect(card).to_contain_text("999")
    expect(card).to_contain_text("7 lines of ended batches, cost 2.5")


def midnight(ago):
    """The midnight in UTC that began a day."""
    return int(time.time()) // DAY * DAY - ago * DAY


def made_up(sums):
    """The answer to each of the page's questions, of sums by day and model."""

    def answer(route):
        query = {name: values[0] for name, values in parse_qs(urlsplit(route.request.url).query).items()}
        by = query.get("group_by", "").split(",")
        found: dict[tuple, dict] = {}
        for one in sums:
            if int(query["start_time"]) > midnight(one["ago"]):
                continue
            day = time.strftime("%Y-%m-%d", time.gmtime(midnight(one["ago"])))
            group = {"day": day if "day" in by else None, "model": one["model"] if "model" in by else None}
            row = found.setdefault(
                tuple(group.values()), group | {"batches": 0, "lines": 0, "cost": {"total": "0"}}
            )
            row["batches"], row["lines"] = row["batches"] + 1, row["lines"] + one["lines"]
            row["input_tokens"] = row["output_tokens"] = 10 * row["lines"]
        route.fulfill(json={"data": list(found.values()), "has_more": False, "last_id": None})

    return answer


def test_a_chart_has_a_bar_for_each_day(page):
    """The largest groups, the others together, and all: for the day under the pointer or of the keyboard."""
    sums = [{"ago": 0, "model": f"m{number}", "lines": number} for number in range(1, 8)]
    sums += [{"ago": 2, "model": HOSTILE, "lines": 100}, {"ago": 40, "model": "old", "lines": 9}]
    page.route("**/v1/usage?*", made_up(sums))
    go(page, "/usage?show=lines&days=7")
    page.reload()
    chart = page.get_by_role("region", name=re.compile(" by day"))
    legend = chart.locator("figcaption")
    expect(chart.locator("canvas")).to_be_visible()
    today, before = (time.strftime("%Y-%m-%d", time.gmtime(midnight(ago))) for ago in (0, 2))
    last = "".join([today, f"{HOSTILE} 0", "m7 7", "m6 6", "m5 5", "m4 4", "3 others 6", "All 28", "lines"])
    expect(legend).to_have_text(last)
    plot = page.get_by_role("slider", name=re.compile("Lines by day"))
    for _ in range(2):
        plot.press("ArrowLeft")
    second = "".join([before, f"{HOSTILE} 100", "m7 0", "m6 0", "m5 0", "m4 0", "3 others 0", "All 100", "lines"])
    expect(legend).to_have_text(second)
    plot.press("ArrowRight")
    expect(legend).to_contain_text("All 0lines")
    box = chart.locator(".u-over").bounding_box()
    # Seven days: the fifth and the last.
    page.mouse.move(box["x"] + box["width"] * 4.5 / 7, box["y"] + 20)
    expect(legend).to_have_text(second)
    page.mouse.move(box["x"] + box["width"] * 6.5 / 7, box["y"] + 20)
    expect(legend).to_have_text(last)
    assert not axe_faults(page)
    page.get_by_label("Of", exact=True).select_option("a year")
    expect(legend).to_contain_text("4 others")
    page.get_by_label("By", exact=True).select_option("day")
    expect(legend).to_have_text(f"{today}All 28lines")
    page.get_by_label("Chart of").select_option("tokens")
    expect(legend).to_have_text(f"{today}All 560tokens")
    page.get_by_label("Of", exact=True).select_option("today")
    expect(rows(page, "Usage")).to_have_count(1)
