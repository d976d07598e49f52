"""Python's side of gpt_test.cpp.

usage: python gpt.py <what> <folder>

  missing  prints the packages that are not installed
  make     hf/: a small GPT-2 of random weights, as transformers saves it; logits.safetensors: tokens, and its logits
  read     loads ours/ with transformers, and prints the largest difference of its logits from those
"""

import importlib.util
import os
import sys

what, folder = sys.argv[1:]
if what == "missing":
    print(*[name for name in ("torch", "transformers", "safetensors") if importlib.util.find_spec(name) is None])
    sys.exit()

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
import transformers
from safetensors.torch import load_file, save_file


def path(name):
    return os.path.join(folder, name)


torch.set_num_threads(1)
if what == "make":
    torch.manual_seed(11)
    config = transformers.GPT2Config(
        vocab_size=300, n_positions=32, n_embd=24, n_layer=3, n_head=4, resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)  # biases and norms, too
        tokens = torch.randint(0, 300, (3, 17))
        logits = model(tokens).logits
    model.save_pretrained(path("hf"))
    save_file({"tokens": tokens, "logits": logits}, path("logits.safetensors"))
elif what == "read":
    model = transformers.GPT2LMHeadModel.from_pretrained(path("ours")).eval()
    given = load_file(path("logits.safetensors"))
    with torch.no_grad():
        print("largest difference", (model(given["tokens"]).logits - given["logits"]).abs().max().item())
