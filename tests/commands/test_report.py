"""The page of a run: whole, offline, safe, and a clear line where there is none to write."""

import json
import math
import re
from html.parser import HTMLParser

import pytest

from gemma_train.commands.report import ReportArguments, run
from gemma_train.errors import UserError
from gemma_train.metrics.captions import Caption, write
from gemma_train.metrics.recorder import Recorder
from gemma_train.run_files import METRICS

PICTURE = "iVBORw0KGgo="


class References(HTMLParser):
    """Collects what a page refers to: src and href attributes, url(...) in attributes and CSS."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.found = set(), []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name.split(":")[-1] in ("src", "href", "data", "srcset"):
                self.found.append(value)
            self.found += re.findall(r"url\((.*?)\)", value or "")

    def handle_data(self, data):
        if self.lasttag == "style":
            self.found += re.findall(r"url\((.*?)\)|(@import.*)", data)


@pytest.fixture
def folder(tmp_path):
    """A run of ten steps, with everything that a run may leave."""
    with Recorder(tmp_path, 0, tensorboard=False) as recorder:
        for step in range(1, 11):
            scalars = {"loss": 9 / step, "gradient_norm": 1 / step, "learning_rate": 6e-4}
            speed = {"seconds_per_step": 2.0, "tokens_per_second": 512.0, "data_wait_seconds": 0.1}
            recorder.record(step, scalars | (speed if step > 1 else {"first_step_seconds": 30.0}))
        recorder.record(10, {"loss": 1.25}, kind="evaluation")
    (tmp_path / "config.py").write_text("name = '<script>alert(1)</script>'\n")
    (tmp_path / "sample.txt").write_text("Once upon <a href='http://x'> time")
    captions = [
        Caption(image="ab", caption="a two", said="a <b>seven", right=False, picture=PICTURE),
        Caption(image="cd", caption="a three", said="a three", right=True),
    ]
    write(tmp_path / "captions.json", captions)
    (tmp_path / "summary.json").write_text(
        json.dumps({"parameters": 268_098_176, "unigram_entropy": 7.5, "device": "<b>cpu</b>"})
    )
    return tmp_path


def report(folder, **arguments):
    run(ReportArguments(run=str(folder), **arguments))
    return (folder / "report.html").read_text()


def test_the_page_has_the_figures_and_the_curves(folder, capsys):
    html = report(folder)
    assert capsys.readouterr().out == f"wrote {folder / 'report.html'}\n"
    for figure in ("1.250", "6.250", "10.2k", "268,098,176", "median 512", "median 5 %"):
        assert figure in html
    titles = re.findall(r"<figcaption><span>([A-Za-z ]+?) *(?:<|$)", html, re.MULTILINE)
    assert titles == [
        "Loss",
        "Gradient norm",
        "Learning rate",
        "Tokens a second",
        "Share of time waiting for data",
    ]
    assert "prefers-color-scheme: dark" in html


def test_the_page_loads_nothing_from_outside(folder):
    references = References(report(folder))
    inside = ("#", "data:image/png;base64,")
    assert references.found and all(found.startswith(inside) for found in references.found)
    assert not references.tags & {"script", "link", "iframe", "image"}


def test_the_page_shows_images_and_what_was_said_of_them(folder):
    html = report(folder)
    assert html.count("<img ") == html.count(f"base64,{PICTURE}") == 1
    assert "a &lt;b&gt;seven" in html and "not: a two" in html and "a three" not in html
    (folder / "captions.json").write_text("[{}]")
    with pytest.raises(UserError, match="captions.json holds no captions .*field `image`"):
        report(folder)


def test_what_files_hold_is_escaped(folder):
    html = report(folder)
    assert "<script" not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<a href" not in html and "<b>cpu" not in html


def account(life, began, **seconds):
    spent = {f"{name}_seconds": value for name, value in seconds.items()}
    return {"life": life, "from_step": 5 * (life - 1), "began": began, **spent}


def test_the_page_shows_what_the_time_of_all_lives_went_to(folder):
    with Recorder(folder, 10, tensorboard=False) as recorder:
        first = account(1, 1.8e9, init=50.0, step=600.0, lost_work=60.0)
        recorder.record(10, first, kind="goodput")
        recorder.record(10, account(2, 1e12, init=50.0, step=300.0), kind="goodput")
    html = report(folder)
    assert "goodput</dt><dd>84.0 %" in html and "of 16 min 40 s" in html
    assert "2 lives" in html
    for part, share in (("training", 0.84), ("lost work", 0.06), ("recovery", 0.05)):
        style = f'class="{part.split()[0]}" style="flex-grow: {share:.6f}"'
        assert style in html and f"</i>{part} {100 * share:.1f} %" in html
    assert "checkpoints 0" not in html
    (folder / METRICS).write_text('{"step": 1, "time": 1.0, "kind": "train", "loss": 1.0}\n')
    assert "What the time went to" not in report(folder)


def test_metrics_alone_make_a_page(folder):
    for name in ("config.py", "sample.txt", "summary.json", "captions.json"):
        (folder / name).unlink()
    html = report(folder)
    assert "held-out loss" in html and "<details>" not in html and "Sample" not in html


def test_a_run_that_is_killed_may_be_reported_with_its_half_line(folder):
    with (folder / METRICS).open("a") as stream:
        stream.write('{"step": 11, "lo')
    assert "10 steps" in report(folder)


def test_values_that_are_not_finite_are_counted_beside_the_curve(folder):
    with Recorder(folder, 10, tensorboard=False) as recorder:
        recorder.record(11, {"loss": math.nan, "gradient_norm": math.inf})
        recorder.record(12, {"loss": 1.0, "gradient_norm": 1e308})  # no float32: a damaged line
    html = report(folder)
    assert "1 value not finite" in html and "2 values not finite" in html


@pytest.mark.parametrize("number", ["1e308", "-1e39", "NaN", "1" + 400 * "0"])
def test_a_summary_with_a_number_that_nothing_can_be_drawn_to_is_reported_without_it(
    folder, number, recwarn
):
    summary = json.loads((folder / "summary.json").read_text())
    before = report(folder)
    (folder / "summary.json").write_text(
        json.dumps({**summary, "unigram_entropy": "X"}).replace('"X"', number)
    )
    assert len(report(folder)) < len(before)
    assert not recwarn


def test_a_long_run_makes_a_page_of_less_than_a_megabyte(folder):
    line = '{{"step": {0}, "time": 18{0:08}.0, "kind": "train", "loss": {1}}}\n'
    lines = (line.format(step, 3 + step % 7 / 10) for step in range(1, 30_001))
    (folder / METRICS).write_text("".join(lines))
    assert len(report(folder)) < 1_000_000


def test_the_page_may_be_written_elsewhere(folder, tmp_path):
    run(ReportArguments(run=str(folder), output=str(tmp_path / "elsewhere.html")))
    assert (tmp_path / "elsewhere.html").read_text().startswith("<!doctype html>")


def test_a_page_for_a_folder_that_is_not_there_is_refused(folder):
    with pytest.raises(UserError, match="folder of the page '.*nowhere' does not exist"):
        run(ReportArguments(run=str(folder), output=str(folder / "nowhere" / "page.html")))


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="run folder '.*nowhere' does not exist"):
        report(tmp_path / "nowhere")


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no metrics.jsonl"):
        report(tmp_path)


def test_a_run_without_a_step_has_nothing_to_report(tmp_path):
    Recorder(tmp_path, 0, tensorboard=False).close()
    with pytest.raises(UserError, match="holds no training step yet"):
        report(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_summary_that_is_no_object_is_named(folder, text):
    (folder / "summary.json").write_text(text)
    with pytest.raises(UserError, match="summary.json' (is not JSON|holds no JSON object)"):
        report(folder)
