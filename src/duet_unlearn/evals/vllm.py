"""vLLM in place of the model where only answers are asked for: ``generate(load_vllm(folder), tokenizer, ...)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duet_unlearn.errors import UserError, needs_extra
from duet_unlearn.teacher.decode import until_end

if TYPE_CHECKING:
    from transformers import GenerationConfig


@dataclass(frozen=True)
class VllmModel:
    """An engine that holds a model of its own."""

    engine: Any
    generation_config: GenerationConfig
    """Where the model's stop ids are, as in a model of transformers."""

    def greedy(self, rows: Sequence[Sequence[int]], *, ends: frozenset[int], max_new_tokens: int) -> list[list[int]]:
        """As ``teacher.decode.greedy``: the same ids in, the same stops. vLLM batches by itself."""
        from vllm import SamplingParams  # type: ignore[missing-import]

        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=max_new_tokens,
            ignore_eos=True,  # `ends` alone decide, as in `greedy`
            stop_token_ids=sorted(ends),
            detokenize=False,
        )
        outputs = self.engine.generate([{"prompt_token_ids": list(row)} for row in rows], sampling, use_tqdm=False)
        return [until_end(list(output.outputs[0].token_ids), ends) for output in outputs]


def load_vllm(path: str, *, dtype: str = "bfloat16") -> VllmModel:
    """A model folder or hub id in vLLM, on a CUDA card.

    Raises:
        UserError: vLLM is not installed; the folder is an adapter, or no model.
    """
    with needs_extra("vllm", "generating with vLLM"):
        from vllm import LLM  # type: ignore[missing-import]
    from transformers import AutoConfig, GenerationConfig

    folder = Path(path)
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{path}: is an adapter, and vLLM wants whole weights", "merge it into its base first")
    if folder.exists() and not (folder / "config.json").exists():
        raise UserError(f"{path}: is no model (it has no config.json)", "name a folder written by save_pretrained")
    if folder.exists() and not (folder / "generation_config.json").exists():
        config = GenerationConfig.from_model_config(AutoConfig.from_pretrained(path))
    else:
        config = GenerationConfig.from_pretrained(path)
    return VllmModel(LLM(model=path, dtype=dtype, seed=0), config)
