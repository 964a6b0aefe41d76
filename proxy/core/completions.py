"""What a legacy completion asks for. Its answers are read as those of a chat are: they have a text for a message.

Source of names, ranges and defaults: OpenAI's API specification, `CreateCompletionRequest`. Where such an answer has no
usage, a prompt that is echoed is counted with what was generated: nothing in it tells them apart.
"""

from __future__ import annotations

from types import MappingProxyType

from proxy.core.asked import Asked
from proxy.core.chat import asked_for_usage
from proxy.core.count import Said
from proxy.core.fields import MAX_OUTPUT_TOKENS, NUMBER, Ranges, Types, check_fields, checked_model
from proxy.core.inputs import check_inputs, count_of, estimate_of, said_in
from proxy.core.strict_json import JsonObject

__all__ = ["estimate_prompts", "parse_completions", "prompt_of_completions"]

_DEFAULT_MAX_TOKENS = 16
_TYPES: Types = MappingProxyType(
    {
        "best_of": (int,),
        "echo": (bool,),
        "frequency_penalty": NUMBER,
        "logit_bias": (dict,),
        "logprobs": (int,),
        "max_tokens": (int,),
        "model": (str,),
        "n": (int,),
        "presence_penalty": NUMBER,
        "prompt": (str, list),
        "seed": (int,),
        "stop": (str, list),
        "stream": (bool,),
        "stream_options": (dict,),
        "suffix": (str,),
        "temperature": NUMBER,
        "top_p": NUMBER,
        "user": (str,),
    }
)
_RANGES: Ranges = MappingProxyType(
    {
        "best_of": (1, 20),
        "max_tokens": (0, MAX_OUTPUT_TOKENS),
        "n": (1, 128),
        "temperature": (0, 2),
        "top_p": (0, 1),
    }
)


def parse_completions(body: JsonObject, raw: bytes) -> Asked:
    """Check `body`, the strictly parsed form of `raw`. Raises `InvalidRequest` naming the parameter."""
    check_fields(body, _TYPES, _RANGES)
    model = checked_model(body.get("model"))
    include_usage = asked_for_usage(body)
    prompt, maximum = body.get("prompt"), body.get("max_tokens")
    check_inputs("prompt", prompt, may_be_empty=True)
    prompts, n = count_of(prompt), body.get("n") or 1
    return Asked(
        body=body,
        raw=raw,
        model=model,
        stream=body.get("stream") is True,
        include_usage=include_usage,
        choices=prompts * n,
        # The best of so many are returned, and all of them are paid for.
        generated=prompts * max(n, body.get("best_of") or 1),
        max_output_tokens=_DEFAULT_MAX_TOKENS if maximum is None else maximum,
    )


def estimate_prompts(asked: Asked) -> int:
    """Tokens of all prompts, and of what is to come after the text that is asked for."""
    return estimate_of(asked.body.get("prompt")) + estimate_of(asked.body.get("suffix"))


def prompt_of_completions(asked: Asked) -> Said:
    """What upstream reads."""
    prompt, suffix = said_in(asked, "prompt"), said_in(asked, "suffix")
    return Said(prompt.texts + suffix.texts, prompt.more_tokens)
