"""Images of any height and width: every cell lies at its own row and column, from the encoder to the decoded image."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mergevq
from mergevq import Source
from mergevq.errors import InputError
from mergevq.merge_schedule import reachable
from mergevq.merging import unmerge
from mergevq.pretrained import TimmNetworkConfig, timm_network
from mergevq.training.tokenizer import build_training

CELL = 4  # pixels, of the test presets
grids = st.tuples(st.integers(1, 6), st.integers(1, 6))


def made(name: str, rows: int, columns: int, **fields: object) -> mergevq.MergeVQ:
    torch.manual_seed(0)
    size = (rows * CELL, columns * CELL)
    return mergevq.create(name, image_size=size, keep=min(4, rows * columns), **fields).eval()


def noise(rows: int, columns: int, batch: int = 2) -> Tensor:
    seeded = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, rows * CELL, columns * CELL, generator=seeded) * 2 - 1


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@given(grids, st.data())
@settings(max_examples=12, deadline=None)
def test_codes_of_any_grid_decode_to_images_of_its_shape(grid: tuple[int, int], data: st.DataObject) -> None:
    rows, columns = grid
    tokenizer = made("test_gr", rows, columns)
    keep = data.draw(st.sampled_from(reachable(rows * columns, tokenizer.config.encoder.depth)))
    images = noise(rows, columns)
    encoded = tokenizer.encode(images, keep)
    assert (encoded.source.rows, encoded.source.columns) == encoded.source.grid == grid
    assert encoded.indices.shape == (2, keep)
    decoded = tokenizer.decode(encoded)
    assert decoded.shape == images.shape
    assert decoded.isfinite().all()
    assert torch.equal(tokenizer.decode_indices(encoded.indices, encoded.source), decoded)
    assert tokenizer.decode_indices(encoded.indices).shape == images.shape, "Source Recovery knows the grid"


def test_a_changed_code_changes_the_image_at_its_row_and_column() -> None:
    rows, columns = 5, 8
    tokenizer = made("test_gr", rows, columns)
    for part in tokenizer.decoder.modules():  # convolutions that look at their own pixel alone
        if isinstance(part, torch.nn.Conv2d) and part.kernel_size == (3, 3):
            part.weight[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
    encoded = tokenizer.encode(noise(rows, columns, 1), rows * columns)
    codes = encoded.codes.repeat(rows * columns, 1, 1)
    codes[torch.arange(rows * columns), torch.arange(rows * columns)] *= -1  # one of each image
    source = Source(
        encoded.source.assignment.expand(len(codes), -1), encoded.source.size.expand(len(codes), -1), (5, 8)
    )
    change = (tokenizer.decode_codes(codes, source) - tokenizer.decode(encoded)).abs().sum(1, keepdim=True)
    cells = F.avg_pool2d(change, CELL).flatten(1)
    assert cells.shape == (rows * columns, rows * columns)
    assert torch.equal(cells.argmax(1), torch.arange(rows * columns))


def test_a_changed_cell_changes_the_token_of_its_row_and_column() -> None:
    rows, columns = 5, 8
    tokenizer, image = made("test_r", rows, columns), noise(rows, columns, 1)
    images = image.repeat(rows * columns, 1, 1, 1)
    for number in range(rows * columns):
        top, left = CELL * (number // columns), CELL * (number % columns)
        images[number, :, top : top + CELL, left : left + CELL] = noise(1, 1, 1)[0].flip(-1)
    before, after = (tokenizer.encode(x, rows * columns).kept_tokens for x in (image, images))
    assert torch.equal((after - before).abs().sum(-1).argmax(1), torch.arange(rows * columns))


def test_merged_cells_of_a_left_and_a_right_half_stay_on_their_side() -> None:
    tokenizer = made("test_r", 3, 4, **{"encoder.positions": "none"})
    left, right = noise(1, 1, 1).tile(3, 2), noise(1, 2, 1)[..., CELL:].tile(3, 2)
    source = tokenizer.encode(torch.cat([left, right], -1), 8).source
    sides = [set(part.flatten().tolist()) for part in source.assignment.view(3, 4).split(2, dim=1)]
    assert not sides[0] & sides[1]


def test_an_image_of_one_cell_is_decoded_to_numbers() -> None:
    tokenizer = made("test_gr", 1, 1)
    assert tokenizer.decode(tokenizer.encode(noise(1, 1), 1)).isfinite().all()


@pytest.mark.parametrize("positions", ["none", "sincos", "learned"])
def test_tokenizers_take_other_grids_than_their_own(positions: str) -> None:
    tokenizer = made("test_gr", 3, 4, **{"encoder.positions": positions})
    for rows, columns in ((4, 3), (2, 6), (3, 3)):
        encoded = tokenizer.encode(noise(rows, columns), 4)
        assert encoded.source.grid == (rows, columns)
        assert tokenizer.decode(encoded).shape == (2, 3, rows * CELL, columns * CELL)


def test_learned_positions_are_resampled_along_their_own_axes() -> None:
    encoder = made("test_gr", 3, 4, **{"encoder.positions": "learned"}).encoder
    by_row = torch.arange(3.0)[:, None].expand(3, 4)
    encoder.positions.copy_(by_row.reshape(1, 12, 1).expand_as(encoder.positions))
    assert torch.equal(encoder.position(3, 4, torch.zeros(1)), encoder.positions)
    turned = encoder.position(4, 3, torch.zeros(1))[0, :, 0].view(4, 3)  # as many cells, another grid
    assert torch.allclose(turned, turned[:, :1].expand(4, 3), atol=1e-6)
    assert (turned[1:, 0] > turned[:-1, 0]).all()


def test_a_source_without_rows_and_columns_is_a_square_or_refused() -> None:
    assignment, size = torch.arange(12).expand(1, -1), torch.ones(1, 12)
    tokenizer = made("test_gr", 3, 4)
    codes = tokenizer.encode(noise(3, 4, 1), 12).codes
    with pytest.raises(InputError, match=r"12 cells, which are no square: .*grid=\(rows, columns\)"):
        tokenizer.decode_codes(codes, Source(assignment, size))
    with pytest.raises(InputError, match="12 cells, but its grid is 4 x 4"):
        tokenizer.decode_codes(codes, Source(assignment, size, (4, 4)))
    assert tokenizer.decode_codes(codes, Source(assignment, size, (2, 6))).shape[-2:] == (8, 24)
    square = Source(torch.arange(9).expand(1, -1), torch.ones(1, 9))
    assert (square.rows, square.columns) == (3, 3)
    assert pickle.loads(pickle.dumps(Source(assignment, size, (3, 4)))).columns == 4


def test_source_recovery_refuses_to_be_trained_on_another_grid() -> None:
    tokenizer = made("test_gr", 3, 4)
    assert tokenizer(noise(3, 4)).recovery_logits.shape == (2, 12, 4)
    for other in ((4, 3), (3, 3)):
        with pytest.raises(InputError, match=r"Source Recovery is trained on images of 12 x 16; these are "):
            tokenizer(noise(*other))
    assert made("test_gr", 3, 4, recovery=None)(noise(4, 3)).reconstruction.shape == (2, 3, 16, 12)


def test_a_saved_tokenizer_of_rectangles_opens_as_it_was(tmp_path: Path) -> None:
    tokenizer = made("test_gr", 3, 4)
    mergevq.save(tokenizer, tmp_path)
    assert mergevq.load(tmp_path).config == tokenizer.config


def test_unmerged_codes_lie_in_raster_order() -> None:
    source = made("test_gr", 2, 3).encode(noise(2, 3, 1), 3).source
    cells = unmerge(torch.arange(3.0)[None, :, None], source.assignment)
    assert torch.equal(cells[..., 0].long(), source.assignment)


def test_losses_train_on_rectangles() -> None:
    tokenizer = made("test_gr", 6, 8)
    losses = {
        "alignment": {"kind": "self", "prototypes": 8, "student_size": "16x24"},
        "adversarial": {"kind": "patch", "discriminator": {"channels": 8, "num_layers": 1, "norm": "none"}},
    }
    training = build_training(losses, tokenizer)
    assert training.config.views_needed(tokenizer.config.image_size) == ((16, 24), (24, 32))
    batch = {"image": noise(6, 8), "student": noise(4, 6), "teacher": noise(6, 8)}
    carry: dict[str, Tensor] = {}
    with torch.enable_grad():
        for phase in training.phases.values():
            output = phase(batch, carry, keep=16, step=0)
            output.total.backward()
            carry = output.carry or carry
    assert all(p.grad is None or p.grad.isfinite().all() for p in training.parameters())
    assert tokenizer.decoder.conv_in.weight.grad is not None
    with pytest.raises(InputError, match="student_size is 16 x 18: it must be a multiple"):
        build_training({"alignment": {"kind": "self", "student_size": [16, 18]}}, made("test_gr", 6, 8))


def test_timm_networks_take_rectangles_and_say_how_positions_were_resampled(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    square = timm.create_model("test_vit", num_classes=0, img_size=160)
    save_file(square.state_dict(), tmp_path / "vit.safetensors")
    network = TimmNetworkConfig(model="test_vit", weights=str(tmp_path / "vit.safetensors"))
    built = timm_network(network, key="alignment", image_size=(48, 64))
    assert built.positions == "resampled from 10 x 10 to 3 x 4: bicubic, antialiased, no offset (timm)"
    assert built.model(torch.zeros(1, 3, 48, 64)).shape[0] == 1
