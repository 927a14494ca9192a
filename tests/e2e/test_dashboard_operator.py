"""The dashboard's pages for operators in a real browser: files, servers, webhooks, keys and the audit trail."""

import re

import pytest
from playwright.sync_api import expect
from support.backend import as_told
from support.dashboard import HOSTILE, axe_faults, button, chats, go, rows, signed_in, started
from support.waiting import wait_until

pytestmark = pytest.mark.e2e


def test_files_are_downloaded_and_deleted(page, client, tmp_path):
    """A hostile name stays text."""
    content = chats(tmp_path / "in.jsonl", None).read_bytes()
    made = client.files.create(file=(HOSTILE, content), purpose="batch")
    go(page, "/files?purpose=batch")
    row = rows(page, "Files").filter(has_text=made.id[-8:])
    expect(row).to_contain_text(made.filename)
    with page.expect_download() as download:
        row.get_by_label("Download").click()
    assert download.value.path().read_bytes() == content
    row.get_by_role("checkbox", name=f"Select {made.filename}").check()
    button(page, "Delete 1 file").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(row).to_have_count(0)
    assert made.id not in [file.id for file in client.files.list()]


def test_a_server_is_drained_and_limited(page, client):
    """Each change is asked for by name and seen at once."""
    client.put("/admin/servers/spare", body={"settings": {"url": "http://127.0.0.1:9/v1"}}, cast_to=object)
    go(page, "/servers")
    row = rows(page, "Servers").filter(has_text="spare")
    row.get_by_role("link", name="spare").click()
    button(page, "Drain").click()
    button(page, "Drain spare").click()
    expect(row).to_contain_text("drained")
    button(page, "Change the limit").click()
    page.get_by_label("Concurrent calls").fill("0")
    expect(page.get_by_text("A whole number from 1")).to_be_visible()
    page.get_by_label("Concurrent calls").fill("12")
    page.get_by_role("dialog", name="Limit of spare").get_by_role("button", name="Change the limit").click()
    expect(page.get_by_text("Changed the limit of spare.")).to_be_visible()
    settings = client.get("/admin/servers/spare", cast_to=dict)["settings"]
    assert (settings["drain"], settings["max_in_flight"]) == (True, 12)
    button(page, "Resume").click()
    expect(row).not_to_contain_text("drained")
    client.delete("/admin/servers/spare", cast_to=object)
    expect(row).to_have_count(0)


def single(client):
    """The single requests that are not over."""
    found = client.batches.list(extra_query={"single": "true"}).data
    return [batch for batch in found if batch.status not in {"completed", "cancelled"}]


def test_a_model_gets_a_test_call(page, client, backend):
    """Its answer is shown, and stays text; one that waits is cancelled with the dialog."""
    backend.rule = as_told
    go(page, "/servers?kind=model&name=chat")
    button(page, "Test call").click()
    dialog = page.get_by_role("dialog", name="Test call to chat")
    dialog.get_by_label("Text").fill(HOSTILE)
    button(page, "Send").click()
    expect(dialog).to_contain_text(f"echo: {HOSTILE}")
    assert not axe_faults(page)
    backend.hold()
    button(page, "Send").click()
    expect(dialog).to_contain_text("Waiting for the answer")
    waiting = wait_until(lambda: next(iter(single(client)), None), "the waiting call")
    dialog.get_by_role("button", name="Close").click()
    wait_until(lambda: client.batches.retrieve(waiting.id).status == "cancelled", "the cancelled call")


def test_the_load_of_a_server_is_live(page, client, backend, tmp_path):
    """Calls appear and end without a reload, in the table, the panel and the overview; rows keep their places."""
    backend.rule = as_told
    go(page, "/servers")
    table = rows(page, "Servers")
    expect(table.filter(has_text="ready").first).to_be_visible()
    before = table.locator("[role=rowheader]").all_inner_texts()
    batch = started(client, chats(tmp_path / "in.jsonl", *["wait"] * 3))
    row = table.filter(has_text="at work")
    expect(row.get_by_role("meter")).to_have_attribute("aria-valuenow", "3")
    assert table.locator("[role=rowheader]").all_inner_texts() == before
    row.get_by_role("link").click()
    panel = page.get_by_role("dialog")
    expect(rows(page, "Processes that use it").first).to_contain_text("3 /")
    expect(panel).to_contain_text("Calls in flight")
    page.keyboard.press("Escape")
    go(page, "/servers?kind=model")
    expect(rows(page, "Models").filter(has_text="chat").locator("[role=cell]:nth-child(3)")).to_have_text("3")
    go(page, "/")
    meter = rows(page, "Servers").filter(has_text="at work").get_by_role("meter")
    expect(meter).to_have_attribute("aria-valuenow", "3")
    client.batches.cancel(batch.id)
    expect(rows(page, "Servers").filter(has_text="at work")).to_have_count(0)


def test_a_webhook_endpoint_is_made_changed_and_deleted(page, client):
    """Its secret is shown once; a receiver that cannot be reached is a clear error."""
    go(page, "/webhooks")
    button(page, "New endpoint").first.click()
    page.get_by_label("Name", exact=True).fill("from the page")
    page.get_by_label("URL").fill("http://10.0.0.1/hook")
    page.get_by_label("batch.cancelled").uncheck()
    button(page, "Create an endpoint").click()
    expect(page.get_by_role("alert")).to_contain_text("Invalid 'url'")
    page.get_by_label("URL").fill("https://hooks.invalid/from-the-page")
    button(page, "Create an endpoint").click()
    expect(page.get_by_label("The signing secret")).to_have_value(re.compile("^whsec_"))
    button(page, "Done").click()
    row = rows(page, "Webhook endpoints").filter(has_text="from the page")
    row.get_by_role("link").click()
    panel = page.get_by_role("dialog", name="from the page")
    expect(panel).to_contain_text("No event was sent yet.")
    button(page, "Send a test event").click()
    expect(page.get_by_role("alert")).to_contain_text("reply")
    button(page, "Replace the secret").click()
    page.get_by_role("dialog", name="Replace the secret of").get_by_role("button", name="Replace").click()
    expect(page.get_by_label("The signing secret")).to_have_value(re.compile("^whsec_"))
    button(page, "Done").click()
    [made] = [one for one in client.webhooks.list() if one.name == "from the page"]
    assert made.event_types == ["batch.completed", "batch.failed", "batch.expired"]
    panel.get_by_role("button", name="Delete", exact=True).click()
    button(page, "Delete from the page").click()
    expect(row).to_have_count(0)


def test_a_key_is_made_shown_once_and_revoked(page, client, root, browser):
    """It signs in until it is revoked, and the audit trail names both actions."""
    go(page, "/keys")
    button(page, "New key").click()
    page.get_by_label("Name", exact=True).fill("of a test")
    page.get_by_label("Role").select_option("read")
    button(page, "Create a key").click()
    secret = page.get_by_label("The key").input_value()
    button(page, "Done").click()
    [made] = [key for key in client.get("/admin/keys", cast_to=dict)["data"] if key["name"] == "of a test"]
    with signed_in(browser, root, secret) as reader:
        expect(reader.get_by_role("navigation", name="Pages")).to_contain_text("Webhooks")
        expect(reader.get_by_role("navigation", name="Pages")).not_to_contain_text("Keys")
    page.get_by_label("Revoke of a test").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(rows(page, "Keys").filter(has_text="of a test")).to_contain_text("revoked")
    go(page, f"/audit?target={made['id']}")
    expect(rows(page, "Actions")).to_have_count(2)
    expect(rows(page, "Actions").first).to_contain_text("key.revoke")


def test_queues_and_dead_letters(page, client, backend, tmp_path):
    """Lines that wait are counted by model; the page of dead letters has those of other tests, or says: none."""
    backend.rule = as_told
    batch = started(client, chats(tmp_path / "in.jsonl", "wait", "wait"))
    go(page, "/queues")
    row = rows(page, "Queues").filter(has_text="calls").filter(has_text="chat")
    expect(row).to_be_visible()
    row.get_by_role("link").click()
    expect(page.get_by_role("button", name=f"{batch.id[-8:]}: copy the id")).to_be_visible()
    client.batches.cancel(batch.id)
    letters = client.get("/admin/dead_letters", cast_to=object)["data"]
    go(page, "/dead-letters")
    expect(page.get_by_role("main")).to_contain_text(
        letters[0]["reason"] if letters else "there is no dead letter"
    )
