"""Random inputs that any model accepts: for load-time validation and tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def random_inputs(model: Any, *, batch: int = 1, length: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return inputs by the names that the model's ``forward`` takes.

    Parameters
    ----------
    model
        A transformers model.
    batch, length
        Rows, and tokens of each (for encoder-decoders: of the decoder, and of the encoder plus three).
    seed
        Equal seeds give equal inputs.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    config, device, dtype = model.config, model.device, model.dtype
    text = config.get_text_config()

    def tokens(count: int) -> torch.Tensor:
        low = min(5, text.vocab_size - 1)  # stay clear of special tokens, which may be masked
        return torch.randint(low, text.vocab_size, (batch, count), generator=generator).to(device)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator).to(device, dtype)

    name = model.main_input_name
    if name == "pixel_values":
        vision = getattr(config, "vision_config", config)
        size = vision.image_size
        if config.model_type == "dinov2":  # fits its positions to any image: a small one will do
            size = min(size, 8 * config.patch_size)
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": noise(getattr(vision, "num_channels", 3), int(height), int(width))}
    if name == "input_features":
        inputs = {"input_features": noise(config.num_mel_bins, 2 * config.max_source_positions)}
    else:
        inputs = {"input_ids": tokens(length + 3 if config.is_encoder_decoder else length)}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens(length)
    return inputs
