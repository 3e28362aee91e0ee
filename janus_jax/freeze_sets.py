"""Which parameters each stage trains: Janus-Pro (arXiv 2501.17811), figure 3 and section 2.2; and fine-tuning.

Patterns of parameter paths, as `param_groups` reads them; configs name them, so JAX is not imported here.
"""

# The paper's freeze sets: the parameter groups that each stage trains. The embedding table of the image codes
# belongs to the generation adaptor: it starts from random numbers, so it must train from stage 1 on.
ADAPTORS = ("gen_adaptor", "gen_embed", "image_head", "und_adaptor")
TRAINABLE = {
    "vq": ("vq",),
    "siglip": ("aux", "siglip"),
    "lm": ("decoder",),
    "stage1": ADAPTORS,
    "stage2": (*ADAPTORS, "decoder"),
    "stage3": (*ADAPTORS, "decoder", "siglip"),
    # Fine-tuning: the encoder of pictures and the image tokenizer stay, as both have seen more than any data of
    # one's own shows.
    "full": (*ADAPTORS, "decoder"),
    "generation": ("gen_adaptor", "gen_embed", "image_head", "decoder"),
    "understanding": ("und_adaptor", "decoder"),
    "lora": ("**/lora_a", "**/lora_b"),  # of adapters (`janus_jax.adapters`)
}
