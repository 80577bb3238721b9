"""The demo page: one tab for each thing that the models can do, on the loopback interface only.

Nothing comes from elsewhere or goes there: no analytics, no fonts or scripts of others, no links;
the browser is told to refuse them, and requests for other host names or from other pages are not
answered. What models and files say stands in text fields and labels, which render no markup.
"""

import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any

import gradio
import uvicorn
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from shared.demo.desk import (
    MOST_BEAMS,
    MOST_BYTES,
    MOST_CHARACTERS,
    MOST_TOKENS,
    SAMPLES,
    Desk,
)
from shared.predict.inputs import PredictError
from shared.showing import printable

log = logging.getLogger(__name__)
HOST = "127.0.0.1"
BEAMS, SAMPLING = "beam search", f"nucleus sampling, {SAMPLES} captions"
MOST_REQUEST = MOST_BYTES + (1 << 16)  # with what surrounds an upload
TOO_LARGE = f"The picture is larger than {MOST_BYTES >> 20} MiB."
UNFORESEEN = "That did not work. The terminal in which this page was started says why."
# Pictures side by side as wide as there is room, with their names below, whole.
STYLE = """
.pictures .grid-wrap { min-height: 0; max-height: none; overflow: visible; }
.pictures .grid-container { grid-template-columns: repeat(auto-fill, minmax(140px, 1fr));
  grid-auto-rows: auto; padding-top: 2rem; }
.pictures .gallery-item, .pictures .thumbnail-item { height: auto; aspect-ratio: auto; }
.pictures .thumbnail-item > img { height: auto; aspect-ratio: 1; }
.pictures .caption-label { position: static; max-width: 100%; border: 0; white-space: normal;
  overflow-wrap: anywhere; text-align: center; }
"""
HEADERS = {
    # Gradio writes scripts and styles into the page; handlers in attributes it does not need.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline'; "
    "script-src-attr 'none'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def serve(desk: Desk, port: int) -> None:
    """Answer on that port, 0 for a free one, until interrupted; PredictError if it is taken."""
    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        reason = f"cannot listen on port {port}: {error.strerror}; port=0 takes a free one"
        raise PredictError(reason) from error
    port = listener.getsockname()[1]
    server = uvicorn.Config(
        guarded(desk, port), log_level="warning", access_log=False, timeout_graceful_shutdown=2
    )
    for task, name in desk.names.items():
        print(f"{task}: {name}")
    print(f"http://{HOST}:{port}/ shows the page; Ctrl-C ends it", flush=True)
    uvicorn.Server(server).run([listener])


def guarded(desk: Desk, port: int) -> Any:
    """The page as an ASGI application, which answers itself alone."""
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    application: Any = gradio.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks(desk),
        path="/",
        server_name=HOST,
        server_port=port,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=theme,
        css=STYLE,
    )
    hosts = {f"{name}:{port}" for name in (HOST, "localhost")}

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await application(scope, receive, send)
        sent = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        origin = sent.get("origin", "").removeprefix("http://")
        if scope["type"] != "http" or sent.get("host") not in hosts or origin not in {"", *hosts}:
            refusal = PlainTextResponse("This page answers on localhost only", 403)
            return await refusal(scope, receive, send)
        # Gradio's own limit would name the file in a message that renders markup.
        if "transfer-encoding" in sent or int(sent.get("content-length", 0)) > MOST_REQUEST:
            while (await receive()).get("more_body"):
                pass  # so that the browser reads the answer
            return await PlainTextResponse(TOO_LARGE, 413)(scope, receive, send)

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), text.encode()) for name, text in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        return await application(scope, receive, send_guarded)

    return answer


def blocks(desk: Desk) -> Any:
    """The tabs, as gradio's `Blocks`."""
    with gradio.Blocks(title="Tenfold", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.Markdown("# Tenfold: ask a model about pictures")
        with gradio.Tabs():
            if "captions" in desk.models:
                with gradio.Tab("Caption"):
                    _caption_tab(desk)
            if "answer" in desk.models:
                with gradio.Tab("Question"):
                    _question_tab(desk)
            if "match" in desk.models:
                with gradio.Tab("Match"):
                    _match_tab(desk)
            if "detect" in desk.models:
                with gradio.Tab("Detect"):
                    _detect_tab(desk)
            if desk.album is not None:
                with gradio.Tab("Search"):
                    _search_tab(desk)
    return page


def _caption_tab(desk: Desk) -> None:
    model = desk.models["captions"]
    usual = model.predictor.module.generation
    with gradio.Row():
        with gradio.Column():
            picture = _upload()
            prompt = _text("Prompt", value=printable(model.prompt))
            way = gradio.Radio(
                [BEAMS, SAMPLING], value=SAMPLING if usual.sample else BEAMS, label="Written by"
            )
            with gradio.Accordion("Lengths, beams, chance", open=False):
                shortest = _slider("Shortest, in tokens", 0, MOST_TOKENS, usual.min_length)
                longest = _slider("Longest, in tokens", 2, MOST_TOKENS, usual.max_length)
                beams = _slider("Beams", 1, MOST_BEAMS, usual.num_beams)
                top_p = _slider("Share of the nucleus", 0.05, 1, usual.top_p, 0.05)
                seed = gradio.Number(0, label="Seed of the samples", precision=0)
            button = gradio.Button("Write a caption", variant="primary")
        with gradio.Column():
            said, note = _text("Caption, without the prompt", lines=3, interactive=False), _note()

    def caption(path: Any, prompt: str, way: str, least: int, most: int, *rest: Any) -> list[Any]:
        beams, top_p, seed = rest
        lengths = int(least), int(most)
        sampled = way == SAMPLING
        return [desk.caption(path, prompt, sampled, int(beams), top_p, lengths, int(seed or 0))]

    inputs = [picture, prompt, way, shortest, longest, beams, top_p, seed]
    _answers([button.click, prompt.submit], caption, inputs, [said], note)


def _question_tab(desk: Desk) -> None:
    with gradio.Row():
        with gradio.Column():
            picture = _upload()
            question = _text("Question", placeholder="what is in the picture?")
            button = gradio.Button("Answer", variant="primary")
        with gradio.Column():
            said, note = _text("Answer", interactive=False), _note()
    _answers(
        [button.click, question.submit],
        lambda path, text: [desk.answer(path, text)],
        [picture, question],
        [said],
        note,
    )


def _match_tab(desk: Desk) -> None:
    with gradio.Row():
        with gradio.Column():
            picture = _upload()
            text = _text("Text", placeholder="a dog on a sofa")
            button = gradio.Button("Do they match?", variant="primary")
        with gradio.Column():
            said, note = _text("Probability of a match", interactive=False), _note()
            maps = _gallery("Where the model looks")
    _answers([button.click, text.submit], desk.match, [picture, text], [said, maps], note)


def _detect_tab(desk: Desk) -> None:
    with gradio.Row():
        with gradio.Column():
            picture = _upload()
            classes = _text("Classes, with commas between", placeholder="red apple, dog")
            least = _slider("Least score", 0, 1, 0.3, 0.05)
            button = gradio.Button("Find objects", variant="primary")
        with gradio.Column():
            boxes = gradio.Image(label="Objects", format="png", interactive=False, buttons=[])
            said, note = _text("Scores", lines=3, interactive=False), _note()
    events, inputs = [button.click, classes.submit], [picture, classes, least]
    _answers(events, desk.detect, inputs, [said, boxes], note)


def _search_tab(desk: Desk) -> None:
    assert desk.album is not None
    count = len(desk.album.paths)
    text = _text(f"Which of the {count} pictures?", placeholder="a dog on a sofa")
    most = _slider("Pictures to show", 1, 24, 8)
    button = gradio.Button("Find pictures", variant="primary")
    note, found = _note(), _gallery("Best matches")
    _answers(
        [button.click, text.submit],
        lambda text, most: [desk.search(text, int(most))],
        [text, most],
        [found],
        note,
    )


def _answers(
    events: Sequence[Any],
    function: Callable[..., Sequence[Any]],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    note: Any,
) -> None:
    """Show in `outputs` what the function answers, or in the `note` why it does not. One question
    at a time, over all tabs: a model uses all cores."""

    def answer(*given: Any) -> list[Any]:
        try:
            return [*function(*given), gradio.Textbox("", visible=False)]
        except PredictError as error:
            told = sentence(str(error))
        except Exception:
            log.exception("no answer")
            told = UNFORESEEN
        return [*[None] * len(outputs), gradio.Textbox(told, visible=True)]

    gradio.on(
        list(events),
        answer,
        list(inputs),
        [*outputs, note],
        api_visibility="private",
        concurrency_limit=1,
        concurrency_id="models",
    )


def sentence(message: str) -> str:
    """A message as one plain sentence."""
    text = printable(" ".join(message.split())).rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


def _upload() -> Any:
    """A picture from the browser, handed on as the path of a file that nobody has opened yet.

    No address is fetched, which gradio does if a request names one for the file. Methods are
    replaced because gradio writes a file beside the module of each subclass.
    """
    picture = gradio.Image(label="Picture", sources=["upload", "clipboard"], height=300, buttons=[])
    keep = picture.async_move_resource_to_block_cache

    async def keep_file(place: Any) -> str | None:
        if "://" in str(place):
            raise ValueError("addresses are not fetched")
        return await keep(place)

    picture.async_move_resource_to_block_cache = keep_file
    picture.preprocess = lambda payload: None if payload is None else payload.path
    return picture


def _text(label: str, **options: Any) -> Any:
    return gradio.Textbox(label=label, max_length=MOST_CHARACTERS, **options)


def _note() -> Any:
    return gradio.Textbox(label="Not possible", lines=2, visible=False, interactive=False)


def _slider(label: str, least: float, most: float, value: float, step: float = 1) -> Any:
    return gradio.Slider(least, most, min(most, value), step=step, label=label)


def _gallery(label: str) -> Any:
    return gradio.Gallery(
        label=label, elem_classes="pictures", object_fit="contain", height="auto", format="png",
        interactive=False, allow_preview=False, buttons=[],
    )  # fmt: skip
