"""
Errors as real servers send them: FastAPI's "detail" (vLLM, `transformers serve`), plain text, and a wrong model's name.
"""
import json

import pytest

import judge
import judges
from support import endpoint

@pytest.fixture
def run(tmp_path):
    """Twelve samples, all different."""
    samples = [{"prompt": f"question {i}?", "after": f"a good answer {i}", "before": "no"} for i in range(12)]
    (tmp_path / "eval.json").write_text(json.dumps({"temperature": 1, "samples": samples}))
    return tmp_path

def ask(run, there, *more):
    return judge.main(["--run", str(run), "--judge_url", there.url, "--judge_workers", "1", *more])

PINNED = "Server is pinned to '/models/smol'; requested 'default'."

@pytest.mark.parametrize("reply", [{"detail": PINNED}, {"error": {"message": PINNED}}, {"message": PINNED}, PINNED,
                                   {"error": PINNED}], ids=["detail", "openai", "message", "text", "error"])
def test_what_the_endpoint_says_is_in_the_error(reply, run):
    """The openai package shows error.message alone. "Error code: 400" without the reason cannot be mended."""
    with judges.serving(lambda text, body: {"status": 400, "reply": reply}) as there:
        with pytest.raises(SystemExit) as e:
            ask(run, there)
    assert e.value.code.count(PINNED) == 1 and "\n" not in e.value.code

def test_a_wrong_model_is_not_asked_every_question(run):
    """Status 400 concerns one question, such as one that is too long, unless no question has been answered."""
    with judges.serving(lambda text, body: {"status": 400, "reply": {"detail": PINNED}}) as there:
        with pytest.raises(SystemExit, match="8 questions got no answer and 16 were not asked"):
            ask(run, there)
        assert len(there.asked) == endpoint.GIVE_UP == 8

def test_questions_that_are_refused_one_by_one_do_not_end_the_run(run):
    """Ten pairs in a row may be too long for the model's context. The pair after them is not."""
    long = lambda text: int(judges.shown(text)[0].strip("question ?")) in range(1, 11)
    refused = {"status": 400, "reply": {"detail": "too long"}}
    with judges.serving(lambda text, body: refused if long(text) else judges.first(text)) as there:
        with pytest.raises(SystemExit, match="20 questions got no answer .20 times"):
            ask(run, there)
        assert len(there.asked) == 24

@pytest.mark.parametrize("detail, sent", [
    ("Unexpected fields in the request: {'top_logprobs', 'logprobs'}", {"max_tokens": 1, "temperature": 0}),
    ([{"type": "extra_forbidden", "loc": ["body", "max_tokens"], "msg": "Extra inputs are not permitted", "input": 1}],
     {"max_completion_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 20})])
def test_an_option_that_is_refused_in_the_detail_is_found(detail, sent, run):
    """Without it, every question fails with a 422, and a server that has no log-probs cannot be asked at all."""
    def say(text, body):
        refused = body.keys() & ({"logprobs", "top_logprobs"} if "logprobs" in str(detail) else {"max_tokens"})
        return {"status": 422, "reply": {"detail": detail}} if refused else judges.first(text)
    with judges.serving(say) as there:
        assert ask(run, there, "--verdict", "choice")["rates"]["flip"][0] == 1
        assert {k: v for k, v in there.asked[-1].items() if k not in ("messages", "model")} == sent

def test_an_option_in_the_request_that_is_sent_back_is_not_refused(run, capsys):
    """FastAPI's "input" can be the whole request. Taken for a refusal, every option would be dropped one by one."""
    def say(text, body):
        return {"status": 422, "reply": {"detail": [{"loc": ["body", "seed"], "msg": "Field required", "input": body}]}}
    with judges.serving(say) as there:
        with pytest.raises(SystemExit, match=r"\['body', 'seed'\]: Field required"):
            ask(run, there)
        assert len(there.asked) == 8 and "refuses" not in capsys.readouterr().err

def test_an_answer_that_was_cut_names_both_remedies(run):
    """A small model repeats "A: A" to any limit. More tokens would only take more time."""
    with judges.serving(lambda text, body: {"content": "A: A\n" * 20, "finish": "length"}) as there:
        with pytest.raises(SystemExit, match="8 times: the answer was cut.*--judge_max_tokens.*--verdict choice"):
            ask(run, there)
