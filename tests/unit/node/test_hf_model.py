"""Models of the transformers library: tuned on a run's text by one command, and taken out again.

Run where the extra ``[hf]`` is installed.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import runnel
from runnel.errors import ConfigError, InputFileError
from runnel.node.approach import approach
from runnel.node.checkpoint import read_checkpoint
from runnel.node.config import LaunchPlan, MachineConfig
from runnel.node.export import export_hf, save_checkpoint
from runnel.node.manifest import make_spec
from runnel.node.volunteer import run_peer
from tests.support.swarm import write_text

transformers: Any = pytest.importorskip("transformers")

from runnel.node.hf_model import HfModel, save_tuned  # noqa: E402 - needs the extra


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a byte-level tokenizer, in a folder."""
    tokenizers: Any = pytest.importorskip("tokenizers")

    folder = tmp_path_factory.mktemp("hf") / "tiny"
    words = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
    )
    words.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 4, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(fast),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def rows_of(text: str) -> torch.Tensor:
    return torch.tensor([list(text.encode()), list(text[::-1].encode())])


def test_the_loss_is_that_of_the_text_and_the_same_each_time(source: Path) -> None:
    model = HfModel(str(source))
    first = model.loss(rows_of("the quick brown fox"))
    assert 3 < float(first.detach()) < 9
    assert torch.equal(first, model.loss(rows_of("the quick brown fox")))
    cut = torch.tensor([list("the quick brown é".encode())[:-1]])
    whole = torch.tensor([list(b"the quick brown ")])
    assert torch.equal(model.loss(cut), model.loss(whole))


def test_a_source_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="gives no causal language model") as caught:
        HfModel(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["spsa", "ferret", "off"])
def test_a_run_tunes_it_and_transformers_loads_what_came_of_it(
    method: str, source: Path, tmp_path: Path
) -> None:
    write_text(tmp_path / "text.txt")
    spec = make_spec(
        {
            "run": {"name": "tune"},
            "model": {"kind": "hf", "source": str(source), "context": 32},
            "data": {
                "text": str(tmp_path / "text.txt"),
                "batch_size": 4,
                "chunk_bytes": 4096,
            },
            "outer": {"every_steps": 4, "overlap_steps": 0, "wait_s": 5.0},
            "seeds": {"method": method, "local_steps": 2, "lr": 0.01},
            "end": {"rounds": 12},
        },
        source="test",
    )
    machine = MachineConfig.at(tmp_path / "home", host="127.0.0.1")
    plan, stop = LaunchPlan(machine=machine, spec=spec), threading.Event()
    done = run_peer(
        plan,
        approach(plan, stop),
        stop=stop,
        on_event=lambda _: None,
        on_invite=lambda _: None,
    )
    assert done.ended
    save_checkpoint(done.folder, tmp_path / "checkpoints")
    with pytest.raises(InputFileError, match="gives no causal language model"):
        export_hf(done.folder, tmp_path / "out")  # what the run tells is a name without its path
    assert "after round 11" in export_hf(done.folder, tmp_path / "out", str(source))
    tuned = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    start = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    kept = read_checkpoint(tmp_path / "checkpoints").parameters
    for name, value in tuned.named_parameters(remove_duplicate=False):
        if f"model.{name}" in kept:
            assert np.array_equal(value.detach().numpy(), kept[f"model.{name}"])
    assert len(kept) == len(list(tuned.named_parameters()))
    before = dict(start.named_parameters())
    assert any(not torch.equal(value, before[name]) for name, value in tuned.named_parameters())
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert words.decode(words("the fox")["input_ids"]) == "the fox"
    with pytest.raises(ConfigError, match="exists, expected no such folder"):
        export_hf(done.folder, tmp_path / "out", str(source))


def test_weights_of_another_model_are_refused(source: Path, tmp_path: Path) -> None:
    wrong = {"model.lm_head.bias": np.zeros(3, np.float32)}
    with pytest.raises(InputFileError, match=r"'model.lm_head.bias' as none, the run as \(3,\)"):
        save_tuned(str(source), wrong, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of what PEFT calls in transformers
def test_adapters_of_peft_are_tuned_and_nothing_else_moves(source: Path, tmp_path: Path) -> None:
    peft: Any = pytest.importorskip("peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    adapters = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    model = peft.get_peft_model(base, adapters)
    held = {name: value.detach().clone() for name, value in model.named_parameters()}
    rows = torch.randint(0, 200, (2, 16), generator=torch.Generator().manual_seed(0))

    def loss() -> torch.Tensor:
        found: torch.Tensor = model(input_ids=rows, labels=rows).loss
        return found

    place = runnel.local("seeds.method=spsa", "seeds.lr=0.01", home=tmp_path, host="127.0.0.1")
    with runnel.Peer(place, model=model) as peer:
        with pytest.raises(ConfigError, match=r"lora_dropout.*call model\.eval\(\)"):
            peer.spsa_step(loss)
        model.eval()
        for _ in range(3):
            peer.spsa_step(loss)
        assert peer.node.plan.numel == sum(
            value.numel() for value in model.parameters() if value.requires_grad
        )
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, held[name])}
    assert moved
    assert all("lora_" in name for name in moved)
