"""A question and its answer, of the sizes that the benchmarks ask with: some 450 bytes and 650."""

from __future__ import annotations

import json

__all__ = ["ANSWER", "MODEL", "question", "respelled"]

MODEL = "gpt-4o-mini"
ANSWER = json.dumps(
    {
        "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
        "object": "chat.completion",
        "created": 1741569952,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "billing", "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 96,
            "completion_tokens": 2,
            "total_tokens": 98,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0, "accepted_prediction_tokens": 0},
        },
        "service_tier": "default",
    }
).encode()
"""As upstream gives it."""


def question(number: int) -> bytes:
    """A request of some 450 bytes that may be answered twice with one answer; each number asks something else."""
    ticket = "The dashboard says that my invoice is overdue, but it was paid. " * 3
    system = "You classify tickets. Answer with one word: billing, outage or other."
    messages = [{"role": "system", "content": system}, {"role": "user", "content": f"{ticket}Ticket {number:08}."}]
    return json.dumps({"model": MODEL, "temperature": 0, "messages": messages}).encode()


def respelled(body: bytes, number: int) -> bytes:
    """The same question in other bytes: each number ends in other white space."""
    return body + f"{number:024b}".translate({ord("0"): " ", ord("1"): "\n"}).encode()
