from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from runnel.errors import ConfigError
from runnel.node.gpt import Gpt, GptConfig

TINY = GptConfig(layers=2, heads=2, width=32, context=16, seed=5)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads on a busy machine wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_equal_seeds_give_equal_bits_whatever_torch_drew_before() -> None:
    first = Gpt(TINY).state_dict()
    torch.rand(3)
    second = Gpt(TINY).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    other = Gpt(GptConfig(layers=2, heads=2, width=32, context=16, seed=6)).state_dict()
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_the_default_model_has_under_half_a_million_parameters() -> None:
    model = Gpt(GptConfig())
    assert 0.4e6 < sum(parameter.numel() for parameter in model.parameters()) < 0.5e6


def test_no_position_sees_a_later_one() -> None:
    model = Gpt(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=_generator()))
    batch = tokens(2, 16)
    changed = batch.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 256
    first, second = model(batch), model(changed)
    torch.testing.assert_close(first[:, :9], second[:, :9])
    assert not torch.allclose(first[:, 9:], second[:, 9:])


def test_positions_matter() -> None:
    model = Gpt(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=_generator()))
    one, other = model(torch.tensor([[1, 2, 3]])), model(torch.tensor([[2, 1, 3]]))
    assert not torch.allclose(one[0, -1], other[0, -1], atol=1e-4)


def test_the_first_loss_is_near_that_of_guessing() -> None:
    assert abs(Gpt(TINY).loss(tokens(8, 17)).item() - math.log(256)) < 0.5


def test_it_learns_a_repeating_text() -> None:
    model = Gpt(TINY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    text = torch.tensor(list(b"abcdefgh" * 20))
    batch = torch.stack([text[start : start + 17] for start in range(8)])
    for _ in range(40):
        model.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model.loss(batch).item() < 0.3
    assert model.generate(b"abc", 10, temperature=0) == b"defghabcde"


def test_sampling_is_repeatable_and_takes_any_prompt() -> None:
    model = Gpt(TINY)
    first = model.generate(b"\xff\x00" * 40, 20, temperature=1.0, seed=3)
    assert len(first) == 20
    assert first == model.generate(b"\xff\x00" * 40, 20, temperature=1.0, seed=3)
    assert first != model.generate(b"\xff\x00" * 40, 20, temperature=1.0, seed=4)
    assert len(model.generate(b"", 5)) == 5
    with pytest.raises(ValueError, match="temperature -1"):
        model.generate(b"", 5, temperature=-1)


def test_a_text_longer_than_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="17 positions"):
        Gpt(TINY)(tokens(1, 17))


@pytest.mark.parametrize(
    "sizes", [{"layers": 0}, {"width": 30, "heads": 4}, {"width": 12, "heads": 4}, {"context": 0}]
)
def test_impossible_sizes_are_config_errors(sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"model\."):
        GptConfig(**sizes)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)
