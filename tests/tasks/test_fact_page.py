"""The page of a study: whole, self-contained, and deaf to what a set calls itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import fact_studies

from storage.pages import digest
from tasks.fact_page import write_fact_page

HOSTILE = "<img src=x onerror=alert(1)>'\"</style><script>alert(2)</script>"
MRR = {"tracin": {"a": 1.0, "b": 1.0, "c": 0.5, "d": 0.0}, "bm25plus": {"a": 0.5, "b": 0.5, "c": 0.5, "d": 1.0}}


def plain_study():
    return fact_studies.study(fact_studies.run_scores("run-1", MRR))


class Elements(HTMLParser):
    """Every element with its attributes, and the text of the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_what_a_set_calls_itself_stays_text(tmp_path):
    study = fact_studies.study(
        fact_studies.run_scores("run-1", MRR), name=HOSTILE, command=HOSTILE, left_out={"lost": (HOSTILE,)}
    )
    page = write_fact_page(study, tmp_path / "page.html").read_text()
    elements = Elements(page)
    assert not {"script", "iframe", "link", "object"} & {tag for tag, _ in elements.found}
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    images = [attributes["src"] for tag, attributes in elements.found if tag == "img"]
    assert len(images) == 4
    assert all(source.startswith("data:image/svg+xml;base64,") for source in images)
    assert elements.text.count(HOSTILE) >= 3


def test_the_page_allows_nothing_but_its_own_style_and_pictures(tmp_path):
    page = write_fact_page(plain_study(), tmp_path / "page.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    style = re.search(r"<style>(.*?)</style>", page, re.S)[1]
    assert f"style-src '{digest(style)}'" in policy
    assert "default-src 'none'" in policy
    assert "http" not in re.sub(r"http-equiv", "", page)
    assert "style=" not in re.sub(r"base64,[^\"]*", "", page)  # which the policy would switch off


def test_every_picture_says_what_it_shows_in_words(tmp_path):
    page = write_fact_page(plain_study(), tmp_path / "page.html").read_text()
    assert all(attributes["alt"] for tag, attributes in Elements(page).found if tag == "img")


def test_a_single_model_without_a_trajectory_has_no_saturation(tmp_path):
    run = fact_studies.run_scores("run-1", {"bm25plus": MRR["bm25plus"]}, dict.fromkeys("abcd", "never"))
    run.forms.clear()
    run.gradient_norms.clear()
    page = write_fact_page(fact_studies.study(run, learning_rates={}), tmp_path / "page.html").read_text()
    assert "Saturation" not in page
    assert "Ablations" not in page
    assert "How it was made" in page


def test_the_same_study_gives_the_same_bytes(tmp_path):
    study = plain_study()
    assert write_fact_page(study, tmp_path / "a").read_bytes() == write_fact_page(study, tmp_path / "b").read_bytes()


def test_outcomes_without_gradients_are_shown_alone(tmp_path):
    run = fact_studies.run_scores("run-1", {"bm25plus": MRR["bm25plus"]})
    run.forms.clear()
    run.gradient_norms.clear()
    page = write_fact_page(fact_studies.study(run), tmp_path / "page.html").read_text()
    assert "Saturation" in page
    assert page.count("<img") == 3


def test_a_study_of_chance_alone_has_a_page_without_the_curve_that_needs_a_method(tmp_path):
    study = fact_studies.study(fact_studies.run_scores("run-1", {"random": MRR["tracin"]}))
    elements = Elements(write_fact_page(study, tmp_path / "page.html").read_text())
    assert "random" in elements.text
    pictures = [attributes["alt"] for tag, attributes in elements.found if tag == "img"]
    assert pictures
    assert not [alt for alt in pictures if "first k" in alt]


def test_notes_speak_of_what_stands_in_the_tables(tmp_path):
    plain = Elements(write_fact_page(plain_study(), tmp_path / "plain.html").read_text()).text
    assert "halved by fact" not in plain
    chosen = fact_studies.study(fact_studies.run_scores("run-1", MRR | {"tracin[chosen]": MRR["tracin"]}))
    assert "halved by fact" in Elements(write_fact_page(chosen, tmp_path / "chosen.html").read_text()).text
