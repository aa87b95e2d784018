"""How large the tensors are that decoding makes, whole and in tiles, on the meta device."""

import weakref

import pytest
import torch
from tiny_clips import FULL_STOCK, moving_latents, tiny_tiled_vae
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vdmini_diffusers import VDMiniAutoencoderKLTemporalDecoder


class Watch(TorchDispatchMode):
    """The largest tensor that operators make, and the bytes of all that live at the peak."""

    def __init__(self, known):
        super().__init__()
        self.seen = {tensor.untyped_storage()._cdata for tensor in known}
        self.largest = self.live = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if not isinstance(tensor, torch.Tensor):
                continue
            self.largest = max(self.largest, tensor.numel())
            storage = tensor.untyped_storage()
            if storage._cdata not in self.seen:
                self.seen.add(storage._cdata)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self.forget, storage._cdata, storage.nbytes())
        return made

    def forget(self, key, num_bytes):
        self.seen.discard(key)
        self.live -= num_bytes


@torch.no_grad()
def watch(vae, latents):
    with Watch([*vae.parameters(), latents]) as found:
        vae.decode(latents, num_frames=len(latents))
    return found


@pytest.fixture(scope="module", params=[({}, 384), (FULL_STOCK, 1024)], ids=["P1", "SVD"])
def full_size(request):
    fields, per_pixel = request.param
    with torch.device("meta"):
        vae = VDMiniAutoencoderKLTemporalDecoder(**fields)
    return vae.to("meta", torch.float16), per_pixel


def test_25_frames_at_576_x_1024_fit_32_bit_indices_in_p1_and_in_tiles_of_svd_s_decoder(full_size):
    vae, per_pixel = full_size
    latents = torch.empty(25, 4, 72, 128, device="meta", dtype=torch.float16)
    whole = watch(vae, latents)
    assert whole.largest == {384: 128, 1024: 256}[per_pixel] * 25 * 576 * 1024
    assert (whole.largest < 2**31) == (per_pixel == 384)
    frames, rows, columns = vae._spans(25, 72, 128)  # of the default tile, all alike
    assert (frames[0].latents.stop, rows[0].latents.stop, columns[0].latents.stop) == (14, 48, 48)
    tile = watch(vae, latents[:14, :, :48, :48])
    assert tile.largest < 2**30
    # The formula of `enable_tiling`, for a half precision
    assert whole.peak == pytest.approx(2 * per_pixel * 25 * 576 * 1024, rel=0.01)
    assert tile.peak == pytest.approx(2 * per_pixel * 14 * 384 * 384, rel=0.01)


def test_memory_in_tiles_is_that_of_a_tile_and_the_video():
    vae = tiny_tiled_vae().to("meta")
    latents = moving_latents(8, 32, 32).to("meta")
    tile = watch(vae, latents[:4, :, :16, :16]).peak
    whole = watch(vae, latents).peak
    vae.enable_tiling(32, 32, 4, 24, 24, 4)
    video = 4 * 3 * 8 * 64 * 64
    tiled = watch(vae, latents).peak
    assert whole > 7 * tile
    assert video < tiled < video + 1.1 * tile
