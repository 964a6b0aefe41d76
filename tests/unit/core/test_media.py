"""What requests for images and audio ask for."""

import json

import pytest

from proxy.core.endpoints import IMAGE_EDITS, IMAGE_VARIATIONS, IMAGES, SPEECH, TRANSCRIPTIONS, TRANSLATIONS
from proxy.core.errors import InvalidRequest
from proxy.core.estimate import estimate_output
from proxy.core.kinds import KINDS
from proxy.core.multipart import Form
from proxy.core.strict_json import parse_object


def asking(endpoint, **fields):
    raw = json.dumps(fields).encode()
    return KINDS[endpoint].parse(parse_object(raw), raw)


def form(endpoint, *files, **fields):
    given = Form({name: (text,) for name, text in fields.items()}, frozenset(files), {}, b"b")
    return KINDS[endpoint].parse_form(given)


def refused(call, *args, **fields):
    with pytest.raises(InvalidRequest) as caught:
        call(*args, **fields)
    return caught.value.param


def test_images_are_dall_e_2s_unless_they_say_otherwise():
    asked = asking(IMAGES, prompt="A fox.")
    assert asked.model == "dall-e-2"
    # What is priced is what runs: the default is said in what goes upstream.
    assert json.loads(asked.raw) == {"model": "dall-e-2", "prompt": "A fox."}
    for empty in (None, ""):
        assert json.loads(asking(IMAGES, prompt="x", model=empty).raw)["model"] == "dall-e-2"
    named = asking(IMAGES, prompt="A fox.", model="gpt-image-2", stream=True)
    assert (named.model, named.stream) == ("gpt-image-2", True)
    assert named.raw == b'{"prompt": "A fox.", "model": "gpt-image-2", "stream": true}'


@pytest.mark.parametrize(
    "more", [{"background": "opaque"}, {"stream": True}, {"output_format": "png"}, {"partial_images": 1}]
)
def test_nobody_guesses_the_model_that_gpt_parameters_mean(more):
    assert refused(asking, IMAGES, prompt="x", **more) == "model"


def test_edits_in_json():
    asked = asking(IMAGE_EDITS, prompt="x", images=[{"image_url": "https://x/y.png"}])
    assert (asked.model, asked.state) == ("gpt-image-1.5", None)
    assert json.loads(asked.raw)["model"] == "gpt-image-1.5"
    assert asking(IMAGE_EDITS, prompt="x", images=[{"image_url": "u"}, {"file_id": "file-1"}]).state == "images"
    assert asking(IMAGE_EDITS, prompt="x", images=[{"image_url": "u"}], mask={"file_id": "f"}).state == "mask"


def test_forms_that_name_files():
    for name in ("mask[file_id]", "images[0][file_id]"):
        assert form(IMAGE_EDITS, "image", prompt="x", **{name: "file-1"}).state == name
    assert form(IMAGE_EDITS, "image", prompt="x", user="file_id").state is None


def test_a_voice_of_ones_own_is_kept_at_openai():
    assert asking(SPEECH, model="tts-1", input="Hi", voice="alloy").state is None
    assert asking(SPEECH, model="tts-1", input="Hi", voice={"id": "voice_1"}).state == "voice"


@pytest.mark.parametrize(
    ("asked", "tells"),
    [
        (asking(IMAGES, prompt="x"), True),
        (asking(IMAGE_EDITS, prompt="x", images=[{"image_url": "u"}]), False),
        (form(IMAGE_EDITS, "image", prompt="x"), False),
        (form(IMAGE_VARIATIONS, "image"), False),
        (asking(SPEECH, model="m", input="x", voice="alloy"), False),
        (asking(SPEECH, model="m", input="x", voice="alloy", stream_format="audio"), False),
        (asking(SPEECH, model="m", input="x", voice="alloy", stream_format="sse"), True),
        (form(TRANSCRIPTIONS, "file", model="m"), True),
        (form(TRANSCRIPTIONS, "file", model="m", response_format="verbose_json"), True),
        (form(TRANSLATIONS, "file", model="m", response_format="vtt"), False),
    ],
)
def test_which_answers_can_tell_what_they_cost(asked, tells):
    assert asked.tells_cost == tells


def test_what_must_be_there():
    assert refused(asking, IMAGES) == "prompt"
    assert refused(asking, IMAGE_EDITS, prompt="x") == "images"
    assert refused(asking, SPEECH, input="x", voice="alloy") == "model"
    assert refused(asking, SPEECH, model="tts-1", voice="alloy") == "input"
    assert refused(asking, IMAGES, prompt=5) == "prompt"
    assert refused(form, IMAGE_EDITS, "image") == "prompt"
    assert refused(form, IMAGE_EDITS, prompt="x") == "image"
    assert refused(form, TRANSCRIPTIONS, "file") == "model"
    assert refused(form, TRANSLATIONS, model="whisper-1") == "file"
    for endpoint in (TRANSCRIPTIONS, TRANSLATIONS, IMAGE_VARIATIONS):
        with pytest.raises(InvalidRequest, match="form"):
            asking(endpoint, model="whisper-1")


def test_forms():
    assert form(IMAGE_EDITS, "image[]", prompt="x").model == "gpt-image-1.5"
    assert form(IMAGE_VARIATIONS, "image").model == "dall-e-2"
    asked = form(TRANSCRIPTIONS, "file", model="gpt-4o-transcribe", stream="true", prompt="Um")
    assert (asked.model, asked.stream, asked.raw) == ("gpt-4o-transcribe", True, b"")


@pytest.mark.parametrize(
    ("asked", "tokens"),
    [
        (asking(IMAGES, prompt="x" * 41), 11),
        (asking(SPEECH, model="tts-1", input="x" * 40, instructions="y" * 8, voice="alloy"), 12),
        (form(TRANSCRIPTIONS, "file", model="whisper-1", prompt="x" * 8), 2),
        (form(IMAGE_VARIATIONS, "image"), 0),
    ],
)
def test_what_is_reserved_is_a_quarter_of_the_characters(asked, tokens):
    kind = KINDS[IMAGES]
    assert kind.estimate(asked) == tokens
    assert estimate_output(asked, 1_024, None) == 0


def test_upstream_is_not_asked_for_the_usage_of_a_stream_of_images():
    # `stream_options` is no parameter there.
    assert asking(IMAGES, prompt="x", model="gpt-image-2", stream=True).include_usage
