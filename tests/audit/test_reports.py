import base64
import hashlib
import json
import re
from dataclasses import replace

import pytest

from cryptomnesia.audit.comparison import compare
from cryptomnesia.audit.outcome import outcome
from cryptomnesia.errors import UsageError
from cryptomnesia.evidence import Level
from cryptomnesia.report.html import html
from cryptomnesia.report.markdown import answers, model_card
from cryptomnesia.report.sarif import sarif

EVIL = "</script><script>alert(1)</script>\u2028<img src=x onerror=alert(2)> =HYPERLINK(1)"


@pytest.fixture
def found(audited):
    return outcome(audited)


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL).group(1))


def test_the_page_shows_the_run_and_asks_for_nothing(audited, found):
    page = html(found, audited)
    assert [each["prompt"] for each in data_of(page)["prompts"]] == [each.prompt for each in found.prompts]
    assert all(image["picture"] is None for each in data_of(page)["prompts"] for image in each["images"])
    assert "http" not in re.sub(r"http-equiv|http://www.w3.org/2000/svg", "", page)
    embedded = data_of(html(found, audited, embed_images=True))
    assert all(
        image["picture"].startswith("data:image/png;base64,")
        for each in embedded["prompts"]
        for image in each["images"]
    )


def test_its_policy_allows_its_own_script_and_style_alone(audited, found):
    page = html(found, audited)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    script = page[page.rindex("<script>") + 8 : page.rindex("</script>")]
    style = page[page.index("<style>") + 7 : page.index("</style>")]
    for text in (script, style):
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_nothing_in_a_prompt_is_markup(audited, found):
    evil = replace(found, prompts=[replace(found.prompts[0], prompt=EVIL), *found.prompts[1:]])
    page = html(evil, audited)
    assert data_of(page)["prompts"][0]["prompt"] == EVIL
    assert page.count("<script") == 2
    assert "<img src=x" not in page
    assert json.loads(json.dumps(sarif(evil)))["runs"][0]["tool"]["driver"]["name"] == "cryptomnesia"


def test_sarif_holds_a_result_for_every_prompt_with_evidence(found):
    results = sarif(found)["runs"][0]["results"]
    assert [each["ruleId"] for each in results] == [p.level.name for p in found.prompts if p.level >= Level.suspected]


def test_pages_for_people_say_what_they_do_not_know(found):
    assert f"{found.gate.share.value:.1%} of prompts" in model_card(found)
    assert "nothing could be confirmed" in model_card(found)
    assert "no: no training images were compared" in answers(found)


def test_two_runs_are_compared_prompt_by_prompt(found):
    first, second, third = found.prompts
    before = replace(found, prompts=[replace(first, level=Level.none), replace(second, level=Level.confirmed), third])
    after = replace(found, prompts=[replace(first, level=Level.confirmed), replace(second, level=Level.none)])
    told = compare(before, after, least=Level.corroborated)
    assert told.new == [(first.prompt, Level.none, Level.confirmed)]
    assert told.gone == [(second.prompt, Level.confirmed, Level.none)]
    assert (told.only_before, told.only_after) == ([third.prompt], [])
    assert (told.before.hits, told.after.hits, told.after.prompts) == (1, 1, 2)
    with pytest.raises(UsageError, match="no prompt in common"):
        compare(before, replace(after, prompts=[replace(first, prompt="another")]), least=Level.corroborated)
