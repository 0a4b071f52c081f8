import hashlib

import torch

from efftrain.peft.fingerprint import digest, digest_by_part, digest_of_parts


def test_the_digest_is_sha256_over_names_shapes_types_and_bytes() -> None:
    by_hand = hashlib.sha256(
        b"a|(2,)|torch.float32\n" + bytes(8) + b"b|()|torch.int64\n" + (3).to_bytes(8, "little")
    ).hexdigest()
    assert digest({"b": torch.tensor(3), "a": torch.zeros(2)}) == by_hand


def test_any_difference_changes_it_and_layout_does_not() -> None:
    base = torch.arange(6.0).view(2, 3)
    changed = base.clone()
    changed[1, 2] = torch.nextafter(changed[1, 2], torch.tensor(9.0))
    others = [{"x": base.view(3, 2)}, {"x": base.double()}, {"y": base}, {"x": changed}]
    assert len({digest(tensors) for tensors in [{"x": base}, *others]}) == 5
    assert digest({"x": base.T.contiguous().T}) == digest({"x": base})


def test_low_precision_empty_and_large_tensors_have_a_digest() -> None:
    large = torch.zeros((1 << 23) + 1)  # more than one block
    tensors = {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.empty(0), "c": large}
    by_hand = hashlib.sha256(f"c|({large.numel()},)|torch.float32\n".encode())
    by_hand.update(bytes(4 * large.numel()))
    assert digest({"c": large}) == by_hand.hexdigest()
    assert len(digest(tensors)) == 64


def test_parts_are_the_top_level_children() -> None:
    tensors = {"a.x": torch.zeros(1), "a.y": torch.ones(1), "b": torch.ones(2)}
    parts = digest_by_part(tensors)
    assert list(parts) == ["a", "b"]
    assert parts["b"] == digest({"b": torch.ones(2)})[:16]
    other = digest_by_part({**tensors, "b": torch.zeros(2)})
    assert (parts["a"] == other["a"], digest_of_parts(parts) == digest_of_parts(other)) == (
        True,
        False,
    )
