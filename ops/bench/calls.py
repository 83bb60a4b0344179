"""The bare loops' model call, with httpx as people use it, on the connections that inturn's providers use."""

from typing import cast

import httpx

from inturn.workers.providers.transport import HTTP_TIMEOUTS, http_transport


def open_client() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=http_transport(tls=False), trust_env=False)


async def ask(client: httpx.AsyncClient, model_url: str, messages: list[dict[str, str]]) -> str:
    """One chat completion.

    Raises:
        httpx.HTTPError: the model did not answer, or not with 200.
    """
    body = {"model": "bench", "messages": messages}
    response = await client.post(f"{model_url}/chat/completions", json=body, extensions=HTTP_TIMEOUTS)
    response.raise_for_status()
    return cast(str, response.json()["choices"][0]["message"]["content"])
