"""
For tests of a run's page: small runs of every kind, and a page as a tree, by the parser of the standard library.

    read_page(text).all("article", cls="pair")    # a list of elements: pair["data-margin"], pair.text
"""
import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import data
import eval
import loop
import toy
import train_pref
import train_sft
from model import ScalarGPT
from rlhf import train_ppo

TOKENIZER = toy.encoding()
FEW = ("--n_pairs", "8", "--n_samples", "4")

# What a text of the data may hold. All fit into 64 tokens with their
# completions, which hold them too: the toy tokenizer has a token for each byte.
HOSTILE = {
    "script": "<script>seen=1</script>",
    "style": "</style><svg onload=seen=1>",
    "end": "</script><b onclick=seen=1>",
    "quote": '"onmouseover="seen=1"\'',
    "entity": "&lt;b&gt; &amp;amp; &#60;",
    "cdata": "]]> --> <!-- <![CDATA[",
    "template": "${seen=1} {{7*7}} \\u003c",
    "order": "a\u202eb\u2066c\u061c",
    "control": "a\x00b\x1bc\x7f\x85\r",
    "emoji": "\U0001f600 \U0001f1e9\U0001f1ea",
    "lines": "a\nb\n\n c\td",
    "arabic": "\u0645\u0631\u062d\u0628\u0627",
}

# ---------------------------------------------------------------------------------------------------------------------
# runs

def fewer(split, n, seed=0, real=toy.examples):
    """toy.examples with at most 2,000, 12 and 60 reviews a split."""
    return real(split, min(n, {"train": 2000, "val": 12, "test": 60}[split]), seed)

@contextmanager
def standing_in(folder):
    """In the folder of the runs: few reviews, the toy world's tokenizer for local files, no pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(toy, "examples", fewer)
        patch.setattr(data, "get_tokenizer", lambda *args: TOKENIZER)
        patch.setattr(loop, "plot_curves", lambda folder: None)
        yield

def write_pairs(path, texts, n):
    """A file of n pairs for each of the texts."""
    rows = []
    for text in texts:
        rows += [{"prompt": f"{i}{text}", "chosen": f"c{text}", "rejected": f"r{text}"} for i in range(n)]
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))

def make_runs(folder):
    """
    Small runs in a folder, all evaluated: dpo (a quarter of its labels flipped), kept (--keep_all), adapter, simpo,
    hostile (local pairs of HOSTILE), ppo, and the SFT run out/toy/sft. reward is a reward model.
    """
    folder.mkdir()
    write_pairs(folder / "hostile.jsonl", HOSTILE.values(), 30)
    quick = ["--batch_size", "16", "--lr", "1e-2", "--max_steps", "4", "--eval_every", "2", "--n_show", "0"]
    runs = {"dpo": ["--label_noise", "0.25"], "kept": ["--keep_all"], "adapter": ["--adapter", "parallel"],
            "simpo": ["--loss", "simpo"],
            "hostile": ["--data", "hostile.jsonl", "--init_from", "out/toy/sft"]}
    with standing_in(folder), pytest.MonkeyPatch.context() as patch:
        train_sft.main(["--n_layer", "1", "--n_head", "2", "--n_embd", "32", "--max_steps", "60", "--batch_size", "32",
                        "--lr", "1e-2", "--warmup_steps", "20", "--weight_decay", "0.1", "--eval_every", "60"])
        measure = eval.main
        patch.setattr(eval, "main", lambda *args, **more: {})
        for name, flags in runs.items():
            of_toy = [] if name == "hostile" else ["--n_prompts", "12"]
            train_pref.main(["--out_dir", name, *quick, *of_toy, *flags])
        torch.manual_seed(0)
        judge = ScalarGPT.from_pretrained("out/toy/sft")
        judge.score.weight.data += torch.randn_like(judge.score.weight)
        judge.save_pretrained("reward")
        facts = {"script": "rlhf/train_reward.py", "args": {"data": "toy", "out_dir": "reward"}}
        Path("reward/args.json").write_text(json.dumps(facts))
        train_ppo.main(["--out_dir", "ppo", "--init_from", "out/toy/sft", "--reward", "reward", "--rollout", "16",
                        "--n_prompts", "16", *quick, "--max_steps", "8", "--eval_every", "4", "--lr", "3e-2",
                        "--warmup_steps", "0", "--adam_epsilon", "1e-8", "--beta", "0.01"])
        for name in (*runs, "ppo", "out/toy/sft"):
            measure(["--run", name, "--n_prompts", "12", "--n_samples", "2", "--show", "0"])

# ---------------------------------------------------------------------------------------------------------------------
# pages

VOID = ("meta", "br", "input", "link", "img", "hr")    # elements without an end

@dataclass
class Element:
    """An element: its name, its attributes without escapes, and what it holds (elements and texts)."""
    name: str
    attributes: dict = field(default_factory=dict)
    content: list = field(default_factory=list)

    def __getitem__(self, attribute):
        return self.attributes[attribute]

    @property
    def text(self):
        """All text in it."""
        return "".join(part if isinstance(part, str) else part.text for part in self.content)

    def all(self, name=None, cls=None, having=None):
        """All elements in it with this name, class and attribute, in their order."""
        found = []
        for part in self.content:
            if isinstance(part, str):
                continue
            if (name in (None, part.name) and (cls is None or cls in part.attributes.get("class", "").split())
                    and (having is None or having in part.attributes)):
                found.append(part)
            found += part.all(name, cls, having)
        return found

class Reader(HTMLParser):
    """Builds the tree. An end that does not fit the last start is an error, as it shows text that was not escaped."""
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open = [Element("page")]

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {attrs}"
        element = Element(tag, dict(attrs))
        self.open[-1].content.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].content.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open[-1].name == tag, f"</{tag}> ends <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data):
        self.open[-1].content.append(data)

def read_page(text):
    """The tree of a page."""
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert len(reader.open) == 1, f"<{reader.open[-1].name}> has no end"
    return reader.open[0]
