"""The page itself, in Gradio."""
import contextlib
import html
import logging
import os
from typing import Any, NamedTuple

import gradio as gr

from utils.errors import InputError
from utils.text import first_line, printable

from .answers import SharedPredictor
from .results import describe_all, draw_views, results_folder, write_zip
from .uploads import check, uploaded_file

THEME = gr.themes.Base(primary_hue="teal", neutral_hue="slate",  # fonts of the visitor's machine, none from a server
                       font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
CSS_FILE = os.path.join(os.path.dirname(__file__), "page.css")
HEAT_LEGEND = "<div class='legend'><span>probability 0</span><i></i><span>1</span></div>"
KEPT_FOR = 6 * 3600  # seconds, of uploads
CHECKED_EVERY = 600  # seconds
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# On a narrow screen the results are below the button.
SCROLL = "() => { if (innerWidth < 700) document.querySelector('#found').scrollIntoView({behavior: 'smooth'}); }"
NOTHING_YET = ("<p class='empty'>Results appear here: give two pictures of the same view, or choose an example, and "
               "press the button.</p>")
BUSY = "Preparing the download …"

logger = logging.getLogger(__name__)


class Page:
    """The page's reactions to what a visitor does.

    Args:
        shared: the model.
        folder: for uploads and results.
        checkpoint: named in the results.
    """

    def __init__(self, shared: SharedPredictor, folder: str, checkpoint: str):
        self.shared = shared
        self.folder = folder
        self.checkpoint = checkpoint

    def take_picture(self, data):
        """For a file that was given: what the field shows, and a message."""
        path = None
        try:
            path = uploaded_file(data, self.folder)
            checked = None if path is None else check(path, self.shared.max_pixels)
        except InputError as error:
            if path is not None:
                with contextlib.suppress(OSError):
                    os.remove(path)
            return None, complaint(error)
        note = note_of(os.path.basename(path), checked.note) if checked and checked.note else ""
        return checked.preview if checked and checked.preview else gr.skip(), note

    def ask(self, visible, infrared, text, size, progress=gr.Progress()):  # noqa: B008, Gradio finds it by its default
        """For a press of the button: message, key of the results, list of sentences, and whether results show."""
        try:
            files = [uploaded_file(data, self.folder) for data in (visible, infrared)]
            key = self.shared.ask(*files, text, size, lambda done, total: progress(
                (done, total), desc=f"sentence {done + 1} of {total}", unit="sentences"))
        except InputError as error:
            return complaint(error), None, gr.skip(), gr.update(visible=False)
        answers = self.shared.recall(key).answers
        choices = [(answer.text, number) for number, answer in enumerate(answers)]
        return "", key, gr.update(choices=choices, value=0, visible=len(choices) > 1), gr.update(visible=True)

    def show(self, key, number, threshold):
        """For a chosen sentence: words, slider, outline, mask, heat map, message."""
        if key is None:  # no words of earlier results beside the reason why there are no new ones
            return [NOTHING_YET, *[gr.skip()] * 5]
        try:
            answered = self.shared.recall(key)
            views = draw_views(answered, number, threshold)
            return (describe_all(answered, number, threshold), (views.visible, views.fused), views.outlined, views.mask,
                    views.probability, "")
        except Exception as error:  # whatever it is, the visitor gets a sentence
            return *[gr.skip()] * 5, complaint(error)

    def move_threshold(self, key, number, threshold):
        """For another threshold: words, outline, mask, message. The model is not asked."""
        words, _, outline, mask, _, message = self.show(key, number, threshold)
        return words, outline, mask, message

    def pack(self, key, threshold):
        """The download button with a ZIP file of the results."""
        if key is None:
            return gr.skip()
        try:
            path = write_zip(self.shared.recall(key), threshold, results_folder(self.folder, key), self.checkpoint)
        except Exception as error:  # as above
            complaint(error)
            return gr.update(label="The download could not be prepared", interactive=False)
        return gr.update(value=path, label="Download all results (ZIP)", interactive=True)


def complaint(error: Exception) -> str:
    """HTML: an error in one sentence."""
    sentence = str(error)
    if not isinstance(error, InputError):
        logger.error("the page could not show a result", exc_info=error)
        sentence = f"This cannot be shown ({type(error).__name__}: {printable(first_line(error))})."
    return f"<p class='error' role='alert'>{html.escape(sentence if sentence.endswith('.') else sentence + '.')}</p>"


def note_of(name: str, note: str) -> str:
    """HTML: what is to be known about a file."""
    return f"<p class='note'>{html.escape(printable(name))}: {html.escape(note)}.</p>"


class Given(NamedTuple):
    """The fields that a visitor fills."""

    visible: gr.Image
    infrared: gr.Image
    text: gr.Textbox
    size: gr.Radio
    button: gr.Button
    message: gr.HTML


class Found(NamedTuple):
    """The fields for results."""

    words: gr.HTML
    results: gr.Column  # of all that follow, hidden until there are some
    chosen: gr.Radio
    slider: gr.ImageSlider
    threshold: gr.Slider
    outline: gr.Image
    mask: gr.Image
    heat: gr.Image
    download: gr.DownloadButton


def build_page(page: Page, examples: list[list[str]], sizes: list[tuple[str, str]], about: str, queue: int
               ) -> gr.Blocks:
    """The page as Gradio's Blocks.

    Args:
        examples: of `examples.write_examples`.
        sizes: label and key of the fusion sizes; the first is chosen.
        about: a line about model and limits.
        queue: requests that may wait; further ones are answered with a sentence.
    """
    with gr.Blocks(title="RIS-FUSION", analytics_enabled=False, delete_cache=(CHECKED_EVERY, KEPT_FOR)) as blocks:
        gr.HTML("<h1>RIS-FUSION</h1><p>Fuse a visible and an infrared picture under the guidance of a sentence, and "
                "find the object it refers to.</p>", elem_id="title", padding=False)
        with gr.Row(equal_height=False, elem_id="main"):
            with gr.Column(scale=2, min_width=320, elem_id="given"):
                given = add_given(examples, sizes)
            with gr.Column(scale=3, min_width=320, elem_id="found"):
                found = add_found()
        gr.HTML(f"<p class='about'>{html.escape(about)}</p>", padding=False)
        connect(page, given, found)
    return blocks.queue(max_size=queue, default_concurrency_limit=2)


def add_given(examples: list[list[str]], sizes: list[tuple[str, str]]) -> Given:
    """Add the fields that a visitor fills; arguments as of `build_page`."""
    with gr.Row(elem_id="pictures"):
        visible, infrared = (
            gr.Image(label=name, elem_id=name.lower(), type="filepath", image_mode=None, height=210, min_width=130,
                     buttons=["fullscreen"], sources=["upload", "clipboard", "webcam"],
                     placeholder="Drop a picture here, or click")
            for name in ("Visible", "Infrared"))
    text = gr.Textbox(label="Sentence, or several, one a line", lines=2, max_lines=6, elem_id="text",
                      placeholder="the red car on the left")
    size = gr.Radio(sizes, value=sizes[0][1], label="Size of the fused picture", elem_id="size")
    button = gr.Button("Fuse and find", variant="primary", elem_id="ask")
    message = gr.HTML("", elem_id="message", padding=False)
    with gr.Column(elem_id="examples"):
        gr.Examples(examples, [visible, infrared, text], label="Examples: synthetic scenes", api_visibility="private")
    return Given(visible, infrared, text, size, button, message)


def add_found() -> Found:
    """Add the fields for results."""
    words = gr.HTML(NOTHING_YET, elem_id="words", padding=False)
    with gr.Column(visible=False, elem_id="results") as results:
        chosen = gr.Radio([], label="Show the sentence", visible=False, elem_id="chosen")
        slider = gr.ImageSlider(label="Visible (left) and fused (right)", format="png", max_height=460,
                                buttons=["fullscreen"], interactive=False, elem_id="fused")
        threshold = gr.Slider(0, 1, 0.5, step=0.01, label="Threshold of the probability", elem_id="threshold",
                              buttons=["reset"])
        with gr.Row(elem_id="views"):
            views = [gr.Image(label=label, format="png", height=200, min_width=100, interactive=False,
                              buttons=["fullscreen"], elem_id=name)
                     for label, name in (("Object", "outline"), ("Mask", "mask"), ("Probability", "heat"))]
        gr.HTML(HEAT_LEGEND, padding=False)
        download = gr.DownloadButton(BUSY, interactive=False, elem_id="download")
    return Found(words, results, chosen, slider, threshold, *views, download)


def connect(page: Page, given: Given, found: Found) -> None:
    """Let the page react to what a visitor does."""
    key = gr.State(None)
    asked_for = [key, found.chosen, found.threshold]
    everything = [found.words, found.slider, found.outline, found.mask, found.heat, given.message]
    # Not preprocessed: Gradio would decode pictures by itself, and fetch those that a forged request names by URL.
    for field in (given.visible, given.infrared):
        field.upload(page.take_picture, field, [field, given.message], preprocess=False, concurrency_limit=2,
                     concurrency_id="pictures", **QUIET)
    given.button.click(None, js=SCROLL, **QUIET)
    answered = given.button.click(
        page.ask, [given.visible, given.infrared, given.text, given.size],
        [given.message, key, found.chosen, found.results], preprocess=False, show_progress_on=[found.words],
        concurrency_limit=1, concurrency_id="model", api_visibility="private")
    shown = answered.then(page.show, asked_for, everything, **QUIET)
    found.chosen.input(page.show, asked_for, everything, **QUIET)
    moved = found.threshold.change(page.move_threshold, asked_for, [found.words, found.outline, found.mask,
                                                                    given.message], trigger_mode="always_last", **QUIET)
    busy = moved.then(lambda: gr.update(label=BUSY, interactive=False), None, found.download, **QUIET)
    for before in (shown, busy):  # one ZIP file after the other, so that the last threshold counts
        before.then(page.pack, [key, found.threshold], found.download, concurrency_limit=1, concurrency_id="download",
                    **QUIET)
