"""Files, uploads, batches and stored answers: what is kept, listed by page and forgotten."""

import hashlib
import json

import aiohttp
import pytest
import pytest_asyncio

from proxy.simulator.files import filling
from proxy.simulator.multipart import KEPT_BYTES

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "echo:deep"}]}
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}


@pytest_asyncio.fixture
async def harness(simulate):
    return await simulate()


@pytest.fixture
def ask(harness):
    async def go(method, path, body=None, status=200):
        content = {"json": body} if isinstance(body, dict) else {"data": body}
        sent = {"Authorization": "Bearer sk-test"}
        async with harness.session.request(method, f"{harness.root}/v1/{path}", headers=sent, **content) as answer:
            assert answer.status == status, await answer.read()
            return await (answer.json() if answer.content_type == "application/json" else answer.read())

    return go


def a_file(content=b"deep", purpose="batch", name="file", filename="a.jsonl"):
    data = aiohttp.FormData()
    data.add_field("purpose", purpose)
    data.add_field(name, content, filename=filename)
    return data


async def test_a_file_comes_back(ask):
    file = await ask("POST", "files", a_file())
    assert (file["bytes"], file["filename"], file["object"], file["status"]) == (4, "a.jsonl", "file", "processed")
    assert await ask("GET", f"files/{file['id']}") == file
    assert await ask("GET", f"files/{file['id']}/content") == b"deep"
    assert await ask("DELETE", f"files/{file['id']}") == {"id": file["id"], "object": "file", "deleted": True}
    assert "error" in await ask("GET", f"files/{file['id']}", status=404)


async def test_a_large_file_comes_back_as_long_as_it_was(ask, harness):
    content = bytes(range(256)) * (KEPT_BYTES // 256 + 1)
    file = await ask("POST", "files", a_file(content))
    back = await ask("GET", f"files/{file['id']}/content")
    assert (len(back), back[:80].split()[:2]) == (
        len(content),
        [b"sha256", hashlib.sha256(content).hexdigest().encode()],
    )
    record = harness.stats.records[0]
    assert (record.method, record.body_bytes > len(content)) == ("POST", True)
    assert harness.stats.last_body == b""


@pytest.mark.parametrize("length", [0, 1, 72, 65_519, 65_520, 65_521, 200_000])
def test_filling_has_the_length_it_should(length):
    assert sum(map(len, filling("0" * 64, length))) == length


async def test_bodies_are_told_by_length_and_digest(ask, harness):
    await ask("POST", "chat/completions", CHAT)
    (record,) = harness.stats.records
    body = harness.stats.last_body
    assert (record.body_bytes, record.body_sha256) == (len(body), hashlib.sha256(body).hexdigest())


async def test_lists_go_by_page(ask):
    names = [f"{number}.jsonl" for number in range(5)]
    for name in names:
        await ask("POST", "files", a_file(filename=name, purpose="batch" if name != "2.jsonl" else "evals"))
    page = await ask("GET", "files?limit=2")
    assert ([each["filename"] for each in page["data"]], page["has_more"]) == (names[:2:-1], True)
    assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][1]["id"])
    page = await ask("GET", f"files?limit=3&after={page['last_id']}")
    assert ([each["filename"] for each in page["data"]], page["has_more"]) == (names[2::-1], False)
    page = await ask("GET", "files?order=asc&purpose=batch")
    assert [each["filename"] for each in page["data"]] == [name for name in names if name != "2.jsonl"]
    for query in ("limit=0", "limit=x", "order=up", "after=file-0"):
        await ask("GET", f"files?{query}", status=400)


@pytest.mark.parametrize("body", [a_file(b""), a_file(purpose="fun"), a_file(name="data"), {"purpose": "batch"}])
async def test_what_is_no_file(ask, body):
    await ask("POST", "files", body, status=400)


async def test_an_upload_becomes_a_file(ask):
    wanted = {"bytes": 8, "filename": "a.txt", "mime_type": "text/plain", "purpose": "user_data"}
    upload = await ask("POST", "uploads", wanted)
    parts = [
        await ask("POST", f"uploads/{upload['id']}/parts", a_file(content, name="data"))
        for content in (b"deep", b"lock", b"more")
    ]
    ids = [part["id"] for part in parts]
    path = f"uploads/{upload['id']}/complete"
    await ask("POST", path, {"part_ids": ids}, status=400)
    await ask("POST", path, {"part_ids": [ids[0], "part_0"]}, status=400)
    await ask("POST", path, {"part_ids": ids[:2], "md5": "0" * 32}, status=400)
    md5 = hashlib.md5(b"lockdeep").hexdigest()
    done = await ask("POST", path, {"part_ids": [ids[1], ids[0]], "md5": md5})
    assert done["status"] == "completed"
    assert await ask("GET", f"files/{done['file']['id']}/content") == b"lockdeep"
    await ask("POST", f"uploads/{upload['id']}/cancel", {}, status=400)
    other = await ask("POST", "uploads", wanted)
    assert (await ask("POST", f"uploads/{other['id']}/cancel", {}))["status"] == "cancelled"


async def test_a_batch_is_answered_when_it_is_looked_at(ask):
    lines = [LINE, {**LINE, "custom_id": "b", "body": {"model": "gpt-none"}}, {}]
    file = await ask("POST", "files", a_file("\n".join(map(json.dumps, lines)).encode()))
    wanted = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = await ask("POST", "batches", wanted)
    assert (batch["status"], batch["output_file_id"]) == ("validating", None)
    batch = await ask("GET", f"batches/{batch['id']}")
    assert (batch["status"], batch["request_counts"]) == ("completed", {"total": 3, "completed": 1, "failed": 2})
    output = json.loads(await ask("GET", f"files/{batch['output_file_id']}/content"))
    assert output["custom_id"] == "a"
    assert output["response"]["body"]["choices"][0]["message"]["content"] == "deep"
    errors = (await ask("GET", f"files/{batch['error_file_id']}/content")).splitlines()
    assert [json.loads(line)["custom_id"] for line in errors] == ["b", None]
    await ask("POST", f"batches/{batch['id']}/cancel", {}, status=409)
    other = await ask("POST", "batches", wanted)
    assert (await ask("POST", f"batches/{other['id']}/cancel", {}))["status"] == "cancelling"
    assert (await ask("GET", f"batches/{other['id']}"))["status"] == "cancelled"
    assert [each["id"] for each in (await ask("GET", "batches"))["data"]] == [other["id"], batch["id"]]
    await ask("POST", "batches", {**wanted, "input_file_id": "file-0"}, status=404)
    await ask("POST", "batches", {**wanted, "endpoint": "/v1/files"}, status=400)


async def test_chat_completions_are_kept_when_they_ask_for_it(ask):
    for body in (CHAT, {**CHAT, "store": False}):
        made = await ask("POST", "chat/completions", body)
        await ask("GET", f"chat/completions/{made['id']}", status=404)
    made = await ask("POST", "chat/completions", {**CHAT, "store": True, "metadata": {"a": "b"}})
    path = f"chat/completions/{made['id']}"
    assert await ask("GET", path) == {**made, "metadata": {"a": "b"}}
    assert (await ask("POST", path, {"metadata": {"c": "d"}}))["metadata"] == {"c": "d"}
    assert [each["id"] for each in (await ask("GET", "chat/completions?model=gpt-4o-mini"))["data"]] == [made["id"]]
    assert (await ask("GET", "chat/completions?model=gpt-4o"))["data"] == []
    assert (await ask("GET", f"{path}/messages"))["data"] == [{"id": f"{made['id']}-0", **CHAT["messages"][0]}]
    assert (await ask("DELETE", path))["deleted"]
    await ask("GET", path, status=404)


async def test_responses_are_kept_unless_they_say_otherwise(ask):
    wanted = {"model": "gpt-4o-mini", "input": "echo:deep"}
    gone = await ask("POST", "responses", {**wanted, "store": False})
    await ask("GET", f"responses/{gone['id']}", status=404)
    made = await ask("POST", "responses", wanted)
    path = f"responses/{made['id']}"
    assert await ask("GET", path) == made
    (item,) = (await ask("GET", f"{path}/input_items"))["data"]
    assert item["content"] == [{"type": "input_text", "text": "echo:deep"}]
    stream = await ask("GET", f"{path}?stream=true")
    assert stream.endswith(b"\n\n")
    numbers = [json.loads(event.partition(b"data: ")[2])["sequence_number"] for event in stream.split(b"\n\n")[:-1]]
    assert numbers == list(range(len(numbers)))
    rest = await ask("GET", f"{path}?stream=true&starting_after=2")
    assert stream.endswith(rest)
    assert rest.count(b"event: ") == len(numbers) - 3
    await ask("POST", f"{path}/cancel", {}, status=400)
    assert (await ask("DELETE", path))["deleted"]
    await ask("DELETE", path, status=404)
    waiting = await ask("POST", "responses", {**wanted, "background": True})
    assert (await ask("POST", f"responses/{waiting['id']}/cancel", {}))["status"] == "cancelled"
    assert (await ask("GET", f"responses/{waiting['id']}"))["status"] == "cancelled"


async def test_a_reset_forgets_all(ask, harness):
    file = await ask("POST", "files", a_file())
    (await harness.session.post(f"{harness.root}/simulator/reset")).raise_for_status()
    await ask("GET", f"files/{file['id']}", status=404)


async def test_a_thousand_are_kept(ask):
    first = await ask("POST", "chat/completions", {**CHAT, "store": True})
    for _ in range(1_000):
        await ask("POST", "chat/completions", {**CHAT, "store": True})
    await ask("GET", f"chat/completions/{first['id']}", status=404)
