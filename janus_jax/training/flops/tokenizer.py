"""Products of the image tokenizer, for a number of pictures; the network is `models/vqgan.py`."""

from __future__ import annotations

from janus_jax.config import VQConfig
from janus_jax.training.flops.products import Products


def encode(products: Products, config: VQConfig, images: float) -> bool:
    """Pixels to codes: encoder, 1x1 convolution, and the product with the codebook, which has no gradient."""
    needs = _encoder(_Convolutions(products, images), config)
    cells = images * config.num_codes
    needs = products.dense("vq/quant_conv", config.z_channels, config.codebook_dim, cells, needs)
    products.forward += 2.0 * config.codebook_dim * config.codebook_size * cells
    return needs


def auto_encode(products: Products, config: VQConfig, images: float) -> None:
    """`JanusModel.vq_forward`: pixels to codes and back."""
    needs = encode(products, config, images)
    cells = images * config.num_codes
    needs = products.dense(
        "vq/post_quant_conv", config.codebook_dim, config.z_channels, cells, needs
    )
    _decoder(_Convolutions(products, images), config, needs)


class _Convolutions:
    """Convolutions of `images` pictures, at the size that they have now."""

    def __init__(self, products: Products, images: float):
        self._products, self._images = products, images

    def conv(
        self, path: str, inputs: int, outputs: int, size: int, needs: bool, kernel: int = 3
    ) -> bool:
        """To [size, size, outputs]; positions outside of the picture count as any other."""
        cells = self._images * size**2
        return self._products.dense(path, inputs, outputs, cells, needs, copies=kernel**2)

    def residual(self, path: str, inputs: int, outputs: int, size: int, needs: bool) -> bool:
        x = needs or self._products.trains(f"{path}/norm1")
        x = self.conv(f"{path}/conv1", inputs, outputs, size, x)
        x = x or self._products.trains(f"{path}/norm2")
        x = self.conv(f"{path}/conv2", outputs, outputs, size, x)
        if inputs != outputs:
            needs = self.conv(f"{path}/shortcut", inputs, outputs, size, needs, kernel=1)
        return x or needs

    def attention(self, path: str, width: int, size: int, needs: bool) -> bool:
        x = needs or self._products.trains(f"{path}/norm")
        qkv = [self.conv(f"{path}/{name}", width, width, size, x, kernel=1) for name in "qkv"]
        x = self._products.attention(width, self._images * size**4, *qkv)
        return self.conv(f"{path}/proj", width, width, size, x, kernel=1) or needs

    def middle(self, path: str, width: int, size: int, needs: bool) -> bool:
        needs = self.residual(f"{path}/mid_0", width, width, size, needs)
        needs = self.attention(f"{path}/mid_1", width, size, needs)
        return self.residual(f"{path}/mid_2", width, width, size, needs)


def _encoder(convs: _Convolutions, config: VQConfig) -> bool:
    path, size, width = "vq/encoder", config.image_size // config.patch_size, config.ch
    needs = convs.conv(f"{path}/conv_in", 3 * config.patch_size**2, width, size, False)
    last = len(config.ch_mult) - 1
    for i, mult in enumerate(config.ch_mult):
        level = f"{path}/level_{i}"
        for j in range(config.num_res_blocks):
            needs = convs.residual(f"{level}/res_{j}", width, config.ch * mult, size, needs)
            width = config.ch * mult
            if i == last:
                needs = convs.attention(f"{level}/attn_{j}", width, size, needs)
        if i < last:
            size //= 2
            needs = convs.conv(f"{level}/downsample", width, width, size, needs)
    needs = convs.middle(path, width, size, needs)
    return convs.conv(f"{path}/conv_out", width, config.z_channels, size, needs)


def _decoder(convs: _Convolutions, config: VQConfig, needs: bool) -> None:
    path, size, width = "vq/decoder", config.grid, config.ch * config.ch_mult[-1]
    needs = convs.conv(f"{path}/conv_in", config.z_channels, width, size, needs)
    needs = convs.middle(path, width, size, needs)
    last = len(config.ch_mult) - 1
    for i, mult in enumerate(reversed(config.ch_mult)):
        level = f"{path}/level_{i}"
        for j in range(config.num_res_blocks + 1):
            needs = convs.residual(f"{level}/res_{j}", width, config.ch * mult, size, needs)
            width = config.ch * mult
            if i == 0:
                needs = convs.attention(f"{level}/attn_{j}", width, size, needs)
        if i < last:
            size *= 2
            needs = convs.conv(f"{level}/upsample", width, width, size, needs)
    convs.conv(f"{path}/conv_out", width, 3 * config.patch_size**2, size, needs)
