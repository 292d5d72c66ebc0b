"""
A trained GPT-2 that nobody here made: the PyPI package microformer-mgm carries one (8 layers, 9,669 tokens, 512
positions; tokens are microbes) as config.json and pytorch_model.bin. It must give transformers' logits, log-probs and
greedy tokens. Random weights can hide an error: their attention is almost uniform, and their logits are small.

    pip install --no-deps microformer-mgm    # its own requirements are not needed: the package is never imported
    python -m pytest -m slow -n 0 tests/test_trained.py
"""
from importlib import metadata

import pytest
import torch

from logps import sequence_logps
from model import GPT

pytestmark = pytest.mark.slow
BOS = 2    # of this model

@pytest.fixture(scope="module")
def folder():
    """The folder of the model inside the installed package."""
    try:
        files = metadata.files("microformer-mgm") or ()
    except metadata.PackageNotFoundError:
        files = ()
    configs = [file.locate() for file in files if str(file).endswith("general_model/config.json")]
    if not configs:
        pytest.skip("needs a trained GPT-2: pip install --no-deps microformer-mgm")
    return configs[0].parent

@pytest.fixture(scope="module")
def theirs(folder):
    transformers = pytest.importorskip("transformers")
    return transformers.GPT2LMHeadModel.from_pretrained(folder).eval()

@pytest.fixture(scope="module")
def ours(folder):
    return GPT.from_pretrained(folder).eval()

@pytest.fixture(scope="module")
def idx(ours):
    """(2, 512): random tokens, as many as the model has positions."""
    torch.manual_seed(0)
    return torch.randint(ours.config.vocab_size, (2, ours.config.block_size))

def test_a_trained_models_logits_equal_those_of_transformers(ours, theirs, idx):
    """A wrong epsilon, activation or attention scale changes trained logits far more than random ones."""
    with torch.no_grad():
        logits, expected = ours(idx), theirs(idx).logits    # (2, 512, V)
    assert expected.std() > 1 and expected.abs().max() > 10    # so large only after training
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()

def test_a_trained_models_log_probs_equal_those_of_transformers(ours, theirs, idx):
    """The sums over completions are what every loss is made of."""
    mask = torch.zeros_like(idx, dtype=torch.bool)
    mask[0, 100:], mask[1, 500:] = True, True
    with torch.no_grad():
        logps, lens = sequence_logps(ours, idx, mask)
        each = theirs(idx).logits[:, :-1].double().log_softmax(-1).gather(-1, idx[:, 1:, None])[..., 0]    # (2, 511)
    assert lens.tolist() == [412, 12]
    torch.testing.assert_close(logps.double(), (each * mask[:, 1:]).sum(1), rtol=1e-5, atol=1e-4)

@pytest.mark.parametrize("start", [BOS, 964, 5000])
def test_a_trained_models_greedy_tokens_equal_those_of_transformers(start, ours, theirs):
    """Both use a KV cache. One wrong position in it changes the tokens that follow."""
    new = ours.generate(torch.tensor([[start]]), 60, temperature=0)
    expected = theirs.generate(torch.tensor([[start]]), attention_mask=torch.ones(1, 1), max_new_tokens=60,
                               do_sample=False, eos_token_id=None, pad_token_id=0)
    assert new.tolist() == expected.tolist() and len(set(new[0].tolist())) > 5

def test_a_trained_model_goes_through_our_folder_and_back_into_transformers(ours, theirs, idx, tmp_path):
    """All weights under their own names: transformers would only warn, and draw a missing one at random."""
    transformers = pytest.importorskip("transformers")
    ours.save_pretrained(tmp_path)
    again, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        assert torch.equal(again.eval()(idx[:, :64]).logits, theirs(idx[:, :64]).logits)
