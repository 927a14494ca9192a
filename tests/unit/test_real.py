"""`limits.real` reads people's times and what lines get from a server as vLLM is one."""

import json

from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from limits.real import Plan, Server

PAGE = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{model_name="m"}} 5.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{model_name="m"}} 2.0
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total{{model_name="m"}} {tokens}
"""


async def test_a_row_has_peoples_times_and_the_tokens_of_lines():
    """The tokens of people are not counted as those of lines, and what came before is not counted at all."""
    tokens = 1_000_000.0
    asked = []

    async def chat(request):
        nonlocal tokens
        asked.append(await request.json())
        answer = web.StreamResponse()
        await answer.prepare(request)
        for text in ("", "a", "b", "c"):
            tokens += bool(text)
            chunk = {"choices": [{"delta": {"content": text}}]}
            await answer.write(f"data: {json.dumps(chunk)}\n\n".encode())
        await answer.write(b"data: [DONE]\n\n")
        return answer

    async def metrics(_):
        return web.Response(text=PAGE.format(tokens=tokens))

    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", chat), web.get("/metrics", metrics)])
    async with TestServer(app, host="127.0.0.1") as place, ClientSession() as http:
        plan = Plan(
            url=str(place.make_url("/v1")), model="m", people=200.0, prompt=10, people_output=3, line_output=3,
            calls_max=8, seconds=0.3, settle_seconds=0.1, targets=(), fixed=(), lines=1,
        )  # fmt: skip
        server = Server(plan, http)
        seen = await server.measure(people=plan.people)
        await server.leave()
    assert seen.first
    assert max(seen.first) < 10
    assert abs(seen.rate * plan.seconds) <= 3 * 8, "at most what people got in the turn of a reading"
    cells = seen.row("row").split(" | ")
    assert cells[3] == "100 %"
    assert int(cells[5]) <= 7
    assert all(5 <= len(one["messages"][0]["content"].split()) <= 15 for one in asked)
