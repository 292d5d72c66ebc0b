"""
A client of OpenAI-compatible endpoints: several questions at a time, retries, timeouts, and checks of the answers.

    failures = asyncio.run(ask_all([(name, text), ...], keep, url=..., ...))    # calls keep(i, answer) for each answer

The openai package retries after status 429, 5xx and cut connections, within the question's timeout. docs/judge.md
explains what happens in each case. judge.py uses it.
"""
import asyncio
import json
import os
import re
import sys
import time

from tqdm import tqdm

RETRIES = 6    # per question, after 429, 5xx and cut connections; the header Retry-After says when
GIVE_UP = 8    # failures in a row, after which no further question is asked
# An option that an endpoint may refuse -> what is sent instead; None: nothing
OTHERWISE = {"temperature": None, "max_tokens": "max_completion_tokens", "max_completion_tokens": None}
TOP, FEWER = 20, 5    # log-probs of so many tokens are asked for, and of fewer if the endpoint refuses

def tell(line):
    """Prints a line to stderr, above the progress bar."""
    tqdm.write(line, file=sys.stderr)

# ---------------------------------------------------------------------------------------------------------------------
# Answers

def after_thinking(answer):
    """An answer without a reasoning model's <think>...</think>. "" if it ends while the model is thinking."""
    rest = re.sub(r"<(think(?:ing)?)>.*?</\1>", "", answer, flags=re.S)
    rest = re.split(r"</think(?:ing)?>", rest)[-1]    # the opening tag may be in the chat template's prompt
    return "" if re.search(r"^\s*<think(?:ing)?>", rest, re.M) else rest.strip()

def choice_in(reply):
    """The first choice of a reply. Raises ValueError if it has none."""
    if not getattr(reply, "choices", None):    # an error page, or an error with status 200
        said = getattr(reply, "error", None) or (reply if isinstance(reply, str) else "it has no choices")
        raise ValueError(f"the reply is not an answer: {' '.join(str(said).split())[:100]}")
    return reply.choices[0]

def answer_in(reply):
    """{"answer": the text of a reply}. Raises ValueError if there is none, or if it was cut."""
    choice = choice_in(reply)
    if choice.finish_reason == "length":
        raise ValueError("the answer was cut: allow more --judge_max_tokens; if the model only repeats itself, use "
                         "--verdict choice")
    if not after_thinking(choice.message.content or ""):
        raise ValueError("the answer is empty, or ends while the model is thinking")
    return {"answer": choice.message.content}

def first_token(choice):
    """{token: log-prob in nats} at the first position of an answer: the most probable tokens. {} without log-probs."""
    positions = getattr(getattr(choice, "logprobs", None), "content", None)
    if not positions:
        return {}
    tokens = [positions[0], *(positions[0].top_logprobs or ())]    # the token that was chosen may not be among the top
    return {t.token: t.logprob for t in tokens if isinstance(t.logprob, (int, float))}

def records(path):
    """
    The records of a file of answers, dicts of key, answer and, for a soft vote, p. A last line that was cut by a crash
    is removed from the file. Raises ValueError for any other damaged line.
    """
    found, intact = [], 0    # bytes
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            record = json.loads(line)
            record["key"] + record["answer"]    # a TypeError or KeyError if these are not two texts
            if not 0 <= record.get("p", 0.5) <= 1:
                raise ValueError(f"{path}: p is no probability")
            found.append(record)
            intact += len(line)
        except (ValueError, KeyError, TypeError, AttributeError):
            if intact + len(line) < path.stat().st_size:
                raise ValueError(f"{path}: the line after byte {intact:,} is not an answer; delete it") from None
            os.truncate(path, intact)
    return found

def known_answers(path):
    """{key: answer} from a file of answers, without empty answers, which are asked again. Raises as records does."""
    known = {record["key"]: record["answer"] for record in records(path)}
    return {key: answer for key, answer in known.items() if after_thinking(answer)}

def soft_votes(path):
    """{key: P(A) / (P(A) + P(B))} from a file of answers, of those that came with log-probs."""
    return {record["key"]: record["p"] for record in records(path) if "p" in record}

# ---------------------------------------------------------------------------------------------------------------------
# Questions

async def connect(url, key, timeout):
    """A client of the endpoint. Raises ValueError if nothing answers at the URL. timeout: seconds per question."""
    try:
        import openai
    except ImportError:
        raise ValueError("judge.py needs the openai client: pip install openai") from None
    limits = openai.Timeout(timeout, connect=10)    # seconds
    client = openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=RETRIES, timeout=limits)
    try:
        await client.with_options(max_retries=0, timeout=10).models.list()
    except openai.OpenAIError as e:    # any other answer, or a late one, shows that the endpoint exists
        if type(e.__cause__).__name__ in ("ConnectError", "ConnectTimeout", "UnsupportedProtocol"):
            raise ValueError(f"--judge_url {url}: no endpoint there ({e.__cause__})") from None
    return client

def words_of(error):
    """
    An error in one line, with what the endpoint said. The openai package shows error.message of a reply alone, but
    servers made with FastAPI send "detail", as a text or as [{"loc": [...], "msg": text}], and others plain text.
    """
    body = getattr(error, "body", None)
    if isinstance(body, dict):
        body = None if body.get("message") else body.get("detail") or body
    if isinstance(body, list):    # "input" is left out: it can be the whole request, with the name of every option
        body = "; ".join(f"{d.get('loc')}: {d.get('msg')}" if isinstance(d, dict) else str(d) for d in body)
    return " ".join((f"{error}: {body}" if body else str(error)).split())

async def reply_to(text, client, model, options):
    """
    The endpoint's reply to a question. options: sent with every question. If the endpoint refuses one, this dict is
    changed, for all later questions.
    """
    sent = dict(options)
    try:
        return await client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **sent)
    except Exception as e:
        refused = [name for name in sent if name in words_of(e) and getattr(e, "status_code", 0) in (400, 422)]
        if not refused:
            raise
    if options == sent:    # only the first question to find out changes options, and tells
        tell(f"the endpoint refuses {refused[0]}: from here on it is asked {otherwise(refused[0], options)}")
    return await reply_to(text, client, model, options)

def otherwise(name, options):
    """Changes options after the one of this name was refused. Returns what is sent from then on, in words."""
    if "logprobs" in name:    # some endpoints name the wrong one of the two
        if options.get("top_logprobs", 0) > FEWER:
            options["top_logprobs"] = FEWER
            return f"for {FEWER} log-probs"
        options.pop("top_logprobs", None)
        options.pop("logprobs", None)
        return "without log-probs: the first letter of an answer is the vote"
    value, other = options.pop(name), OTHERWISE[name]
    if other:
        options[other] = value
    return f"with {other}" if other else "without"

def why(error, timeout):
    """The reason why a question got no answer, in one line."""
    if isinstance(error, asyncio.TimeoutError):
        return f"no answer in {timeout:g} s: allow more --judge_timeout"
    return f"{type(error).__name__}: {words_of(error)[:160]}".removeprefix("ValueError: ")

async def wait_for_all(tasks, bar):
    """Waits for all tasks. Raises an error that is no failure of a question, such as a full disk."""
    while tasks:
        done, tasks = await asyncio.wait(tasks, timeout=10)
        bar.refresh()    # the bar's seconds go on, even if the endpoint is slow
        for task in done:
            task.result()

async def ask_all(questions, keep, *, url, key, model, workers, timeout, max_tokens, vote_in=None):
    """
    Asks the first question alone, to estimate the time, then the others, `workers` at a time.

    questions   [(name, text)]
    keep        a function that is called as keep(i, {"answer": text}) for each answer, with "p" too for a soft vote
    timeout     seconds per question, retries included
    max_tokens  per answer
    vote_in     for questions that ask for one letter: a function reply -> what keep gets. Log-probs are asked for then
    returns     a reason for each question that failed. After GIVE_UP failures in a row the rest is not asked.

    Raises ValueError if there is no endpoint at the URL.
    """
    client, read = await connect(url, key, timeout), vote_in or answer_in
    options = {"temperature": 0, "max_tokens": max_tokens}
    options |= {"logprobs": True, "top_logprobs": TOP} if vote_in else {}
    failures, in_a_row, slots, begin = [], 0, asyncio.Semaphore(workers), time.monotonic()

    async def ask(i):
        nonlocal in_a_row
        name, text = questions[i]
        async with slots:
            if in_a_row >= GIVE_UP:
                return
            try:
                answer = read(await asyncio.wait_for(reply_to(text, client, model, options), timeout))
            except Exception as e:    # the client raises a dozen types
                only_this = bar.n and getattr(e, "status_code", 0) in (400, 422)    # too long, for example
                in_a_row += not only_this    # before the first answer it may be every question: a wrong model
                failures.append(why(e, timeout))
                tell(f"{name}: {failures[-1]}")
                return
        keep(i, answer)
        in_a_row = 0
        bar.update()

    with tqdm(total=len(questions), unit="answer", leave=False) as bar:
        await wait_for_all([asyncio.ensure_future(ask(0))], bar)
        left = len(questions) - 1
        if bar.n and left:
            took = time.monotonic() - begin
            tell(f"the first answer took {took:.1f} s; the other {left} take {tqdm.format_interval(took * left)} one "
                 f"after the other, {tqdm.format_interval(took * left / workers)} if {workers} are answered at a time")
        await wait_for_all([asyncio.ensure_future(ask(i)) for i in range(1, len(questions))], bar)
    return failures
