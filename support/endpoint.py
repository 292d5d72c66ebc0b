"""
Questions to an OpenAI-compatible endpoint, some at a time: retries, timeouts, and answers that are no answers.

    failures = asyncio.run(ask_all([(name, text), ...], keep, url=..., ...))    # calls keep(i, answer) at each answer

The openai client asks again after 429, 5xx and cut connections, all within the question's timeout. Read next: judge.py
"""
import asyncio
import re
import sys
import time

from tqdm import tqdm

RETRIES = 6    # of a question after 429, 5xx and cut connections; Retry-After says when
GIVE_UP = 8    # questions in a row without an answer: the rest is not asked
# what to send in the place of an option that the endpoint refuses
OTHERWISE = {"temperature": None, "max_tokens": "max_completion_tokens", "max_completion_tokens": None}

def tell(line):
    tqdm.write(line, file=sys.stderr)    # above the bar

def after_thinking(answer):
    """An answer without a reasoning model's <think>...</think>; "" if it ends inside of it."""
    rest = re.sub(r"<(think(?:ing)?)>.*?</\1>", "", answer, flags=re.S)
    rest = re.split(r"</think(?:ing)?>", rest)[-1]    # a chat template may have opened it in the prompt
    return "" if re.search(r"^\s*<think(?:ing)?>", rest, re.M) else rest.strip()

def answer_in(reply):
    """The answer of a reply. Raises ValueError if there is none, or not all of it."""
    if not getattr(reply, "choices", None):    # an error page, or an error under status 200
        said = getattr(reply, "error", None) or (reply if isinstance(reply, str) else "it has no choices")
        raise ValueError(f"the reply is no answer: {' '.join(str(said).split())[:100]}")
    choice = reply.choices[0]
    if choice.finish_reason == "length":
        raise ValueError("the answer was cut: allow more --judge_max_tokens")
    if not after_thinking(choice.message.content or ""):
        raise ValueError("the answer is empty, or ends while the model is thinking")
    return choice.message.content

async def reply_to(text, client, model, options):
    """The endpoint's reply. options: what is sent with every question. An option that the endpoint refuses is taken out."""
    sent = dict(options)
    try:
        return await client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **sent)
    except Exception as e:
        refused = [name for name in sent if name in str(e) and getattr(e, "status_code", 0) in (400, 422)]
        if not refused:
            raise
    other = OTHERWISE[refused[0]]
    if options.pop(refused[0], None) is not None:    # the first to find out tells
        options |= {other: sent[refused[0]]} if other else {}
        tell(f"the endpoint refuses {refused[0]}: from here on it is asked {f'with {other}' if other else 'without'}")
    return await reply_to(text, client, model, options)

async def connect(url, key, timeout):
    """A client of the endpoint. Raises ValueError if nothing answers there."""
    try:
        import openai
    except ImportError:
        raise ValueError("judge.py needs the openai client: pip install openai") from None
    limits = openai.Timeout(timeout, connect=10)    # seconds
    client = openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=RETRIES, timeout=limits)
    try:
        await client.with_options(max_retries=0, timeout=10).models.list()
    except openai.OpenAIError as e:    # any other answer will do, and a late one too
        if type(e.__cause__).__name__ in ("ConnectError", "ConnectTimeout", "UnsupportedProtocol"):
            raise ValueError(f"--judge_url {url}: no endpoint there ({e.__cause__})") from None
    return client

def why(error, timeout):
    """Why a question got no answer, in a line."""
    if isinstance(error, asyncio.TimeoutError):
        return f"no answer in {timeout:g} s: allow more --judge_timeout"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}".removeprefix("ValueError: ")

async def ask_all(questions, keep, *, url, key, model, workers, timeout, max_tokens):
    """
    Asks the first question alone, to tell how long an answer takes, then the others, `workers` at a time. questions:
    [(name, text)]. Calls keep(i, answer) at each answer. Returns a reason for each question that failed; those after
    GIVE_UP failures in a row are not asked. Raises ValueError if there is no endpoint.
    """
    client, options = await connect(url, key, timeout), {"temperature": 0, "max_tokens": max_tokens}
    failures, in_a_row, slots, begin = [], 0, asyncio.Semaphore(workers), time.monotonic()
    async def ask(i):
        nonlocal in_a_row
        name, text = questions[i]
        async with slots:
            if in_a_row >= GIVE_UP:
                return
            try:
                answer = answer_in(await asyncio.wait_for(reply_to(text, client, model, options), timeout))
            except Exception as e:    # the client raises a dozen kinds
                in_a_row += getattr(e, "status_code", 0) not in (400, 422)    # those two are about this question alone
                failures.append(why(e, timeout))
                tell(f"{name}: {failures[-1]}")
                return
        keep(i, answer)
        in_a_row = 0
        bar.update()
    with tqdm(total=len(questions), unit="answer", leave=False) as bar:
        for some in ([0], range(1, len(questions))):
            tasks = [asyncio.ensure_future(ask(i)) for i in some]
            while tasks:
                done, tasks = await asyncio.wait(tasks, timeout=10)
                bar.refresh()    # the seconds are seen to pass, however slow the endpoint is
                for task in done:
                    task.result()    # raises what is no failure of a question, such as a full disk
            if some == [0] and bar.n and len(questions) > 1:
                took, left = time.monotonic() - begin, len(questions) - 1
                tell(f"the first answer took {took:.1f} s; the other {left} take {tqdm.format_interval(took * left)} one after "
                     f"the other, {tqdm.format_interval(took * left / workers)} if {workers} are answered at a time")
    return failures
