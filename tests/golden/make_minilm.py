"""Writes minilm_l6.safetensors: what the reference implementation makes of the sentences in sentences.txt.

    pip install transformers
    python -m minibert fetch minilm-l6
    python tests/golden/make_minilm.py

The sentences are from works in the public domain. Kept are, for all of them in one padded batch, the pooled
output, the mean over the real tokens, and every 24th number of the last hidden states; float32.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, BertModel, __version__

HERE = Path(__file__).parent
CHECKPOINT = HERE.parent.parent / "weights" / "minilm-l6"
EVERY = 24

if __name__ == "__main__":
    sentences = (HERE / "sentences.txt").read_text(encoding="utf-8").splitlines()
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    model = BertModel.from_pretrained(CHECKPOINT, attn_implementation="eager", dtype=torch.float32).eval()
    inputs = tokenizer(sentences, padding="longest", truncation=False, return_tensors="pt")
    with torch.no_grad():
        hidden, pooled = model(**inputs, return_dict=False)
    real = inputs["attention_mask"].bool()
    mean = torch.stack([row[mask].mean(0) for row, mask in zip(hidden, real)])
    tensors = {
        "input_ids": inputs["input_ids"][real].to(torch.int32),
        "lengths": real.sum(1).to(torch.int32),
        "pooled": pooled,
        "mean": mean,
        "hidden": hidden[real][:, ::EVERY].contiguous(),
    }
    save_file(tensors, HERE / "minilm_l6.safetensors", {"transformers": __version__, "torch": torch.__version__})
