"""
plain_generate: the loop of generation

Read the text, sample a token, append it, and begin again.
"""
from assignments.exercise import Mistake

TARGETS = ["model.py:plain_generate"]
POINTS, MINUTES = 5, 45

def probes(rng):
    """Greedy, sampled and truncated tokens of a small model, one prompt, one new token, and none."""
    def case(title, B, T, n, **how):
        how = {"temperature": 1.0, "top_k": None, "top_p": None, "seed": int(rng.integers(1, 10**6)), **how}
        return dict(title=title, idx=rng.integers(0, 40, (B, T)), n=n, how=how)
    return [case("temperature 0", 3, 4, 7, temperature=0), case("temperature 1, four prompts", 4, 5, 9),
            case("temperature 3, one prompt of one token", 1, 1, 8, temperature=3.0),
            case("top_k 3, temperature 2", 4, 3, 8, top_k=3, temperature=2.0),
            case("top_p 0.6, temperature 2", 4, 3, 8, top_p=0.6, temperature=2.0),
            case("no generator: the global random state", 3, 4, 8, seed=0), case("no new token", 2, 3, 0)]

def run(module, probe):
    """The tokens, and whether the weights have got a gradient's graph or the model's mode has changed."""
    import torch
    torch.manual_seed(5)
    model = module.GPT(module.GPTConfig(block_size=16, vocab_size=40, n_layer=1, n_head=2, n_embd=16)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(25 if p.dim() == 2 else 1)    # so that the text decides what comes next
    how = dict(probe["how"])
    seed = how.pop("seed")
    torch.manual_seed(6)
    generator = torch.Generator().manual_seed(seed) if seed else None
    out = module.plain_generate(model, probe["idx"], probe["n"], generator=generator, **how)
    return dict(tokens=out, in_eval_mode=[not model.training])

READ, LOOP = "model(idx)[:, -1].float()", "for n in range(max_new_tokens):"
DRAW, APPEND = "sample(logits, temperature, top_k, top_p, draws", "idx = torch.cat([idx, token[:, None]], dim=1)"
RANDOM, BACK, FIRST = "idx.device, generator)", "    return idx", "    draws = uniform_draws"
COLUMN, CHOICE, SHAPE = "Which column", "The choice of a token", "What comes back"
BY_HAND = "test_model.py::test_generation_without_the_cache_by_hand"
CACHE = "test_model.py::test_generation_with_the_cache_equals_generation_without"
MISTAKES = {
    "the first column": Mistake(((READ, "model(idx)[:, 0].float()"),),
        "logits[:, t] predicts the token after t. Which t do you read?", COLUMN, BY_HAND),
    "the last but one column": Mistake(((READ, "model(idx)[:, max(idx.shape[1] - 2, 0)].float()"),),
        "Is your new token a prediction of the next token, or of one that is already there?", COLUMN, BY_HAND),
    "the prompt's last column always": Mistake(
        ((FIRST, "    T = idx.shape[1]\n" + FIRST), (READ, "model(idx)[:, T - 1].float()")),
        "Does your second token depend on your first one? Print what the model reads and which column you take.",
        COLUMN, BY_HAND),
    "the prompt is read again": Mistake(((FIRST, "    prompt = idx\n" + FIRST), (READ, "model(prompt)[:, -1].float()")),
        "Does your second token depend on your first one? Print what the model reads and which column you take.",
        COLUMN, BY_HAND),
    "only the newest token is read": Mistake(((READ, "model(idx[:, -1:])[:, -1].float()"),),
        "How many tokens does the model read in the third step? This model has no memory between two calls.", COLUMN,
        BY_HAND),
    "one draw for all steps": Mistake((("draws[n]", "draws[0]"),),
        "Print the draws that each step uses. Are they different?", CHOICE, CACHE),
    "the draws backward": Mistake((("draws[n]", "draws[-1 - n]"),),
        "Which row of the draws belongs to the first step? GPT.generate gives the same tokens.", CHOICE, CACHE),
    "the likeliest token always": Mistake(((DRAW, "sample(logits, 0, None, None, draws"),),
        "Generate twice with two seeds at temperature 1. Do the tokens differ?", CHOICE, CACHE),
    "the temperature is left out": Mistake(((DRAW, "sample(logits, min(temperature, 1.0), top_k, top_p, draws"),),
        "Does your result change between temperature 1 and temperature 3 at the same seed?", CHOICE),
    "no truncation": Mistake(((DRAW, "sample(logits, temperature, None, None, draws"),),
        "Does your result change between top_k = 1 and top_k = None? And with top_p?", CHOICE, CACHE),
    "no top_p": Mistake(((DRAW, "sample(logits, temperature, top_k, None, draws"),),
        "Which arguments does sample take, and which of yours reach it?", CHOICE, CACHE),
    "no top_k": Mistake(((DRAW, "sample(logits, temperature, None, top_p, draws"),),
        "Which arguments does sample take, and which of yours reach it?", CHOICE, CACHE),
    "the generator is left out": Mistake(((RANDOM, "idx.device, None)"),),
        "Generate twice with generators of the same seed. Are the tokens the same?", CHOICE, CACHE),
    "one token for all rows": Mistake(((APPEND, "idx = torch.cat([idx, token[:1, None].expand(len(idx), 1)], dim=1)"),),
        "Print the new tokens of two rows with different prompts. Are they the same?", CHOICE, BY_HAND),
    "the new tokens only": Mistake(((FIRST, "    T = idx.shape[1]\n" + FIRST), (BACK, "    return idx[:, T:]")),
        "Which shape does the docstring promise?", SHAPE, BY_HAND),
    "the text backward": Mistake(((APPEND, "idx = torch.cat([token[:, None], idx], dim=1)"),),
        "Print the text after one step. On which side of the prompt stands the new token?", SHAPE, BY_HAND),
    "one step too few": Mistake(((LOOP, "for n in range(max_new_tokens - 1):"),),
        "Count the columns of the result with a prompt of 3 and max_new_tokens = 2.", SHAPE, CACHE),
    "written over the text": Mistake(((APPEND, "idx = torch.cat([idx[:, 1:], token[:, None]], dim=1)"),),
        "Does the result still begin with the prompt?", SHAPE, BY_HAND),
    "dropout turned on": Mistake(((BACK, "    model.train()\n" + BACK),),
        "Is the model in the same mode after the call as before?", SHAPE),
}
ALTERNATIVES = {
    "one draw at a time": '''
def plain_generate(model, idx, max_new_tokens, *, temperature=1.0, top_k=None, top_p=None, generator=None):
    text = idx.clone()
    while text.shape[1] < idx.shape[1] + max_new_tokens:
        draws = uniform_draws(1, idx.shape[0], temperature, idx.device, generator)[0]
        logits = model.lm_head(model.features(text)[:, -1])
        text = torch.hstack([text, sample(logits, temperature, top_k, top_p, draws).unsqueeze(1)])
    return text
''',
    "a buffer": '''
def plain_generate(model, idx, max_new_tokens, *, temperature=1.0, top_k=None, top_p=None, generator=None):
    B, T = idx.shape
    out = torch.zeros(B, T + max_new_tokens, dtype=idx.dtype, device=idx.device)
    out[:, :T] = idx
    draws = uniform_draws(max_new_tokens, B, temperature, idx.device, generator)
    for t, u in zip(range(T, T + max_new_tokens), draws):
        logits = model(out[:, :t])[:, t - 1]
        if temperature == 0:
            out[:, t] = logits.argmax(-1)
        else:
            ends = truncate(logits / temperature, top_k, top_p).softmax(-1).cumsum(-1)
            out[:, t] = (ends <= (u * ends[:, -1])[:, None]).sum(-1)
    return out
''',
}
DOC = "idx (B, T) -> (B, T + max_new_tokens). Prompts have one length, and EOS does not stop."
SAME = "GPT.generate gives the same tokens. It computes"
VARIANTS = {
    "the new tokens only": (
        (DOC, "idx (B, T) -> (B, max_new_tokens), without the prompts.\n\n    Prompts have one length, and EOS "
              "does not stop."),
        (SAME, "GPT.generate adds the same tokens. It computes"),
        (BACK, "    return idx[:, idx.shape[1] - max_new_tokens:]")),
    "the draws backward": (
        (SAME, "Step n uses row max_new_tokens - 1 - n of uniform_draws. So only at temperature 0\n    GPT.generate "
               "gives the same tokens. It computes"),
        ("draws[n]", "draws[-1 - n]")),
}
# GPT.generate, which stays in the copy, calls sample and uniform_draws too
SHARED = ("draws = uniform_draws", "sample(logits, temperature, top_k, top_p, draws", "idx.device, generator)",
          "for n in range(max_new_tokens):")
