"""Averaging with the mirror image."""
import pytest
import torch

from bert import Tokenizer
from models import Output, build_from_checkpoint
from models.inference import Inference
from models.tta import exchange, forward_tta, left_right_ids
from utils import checkpoint

LEFT, RIGHT, CAR = 7, 8, 9


class PointsAtASide(torch.nn.Module):
    """Marks the half that the sentence names; the fused image is the visible one with a gradient from left to right."""

    def forward(self, vis, ir, input_ids, attention_mask):
        columns = torch.arange(vis.shape[-1]) < vis.shape[-1] // 2
        side = torch.where((input_ids == LEFT).any(1)[:, None], columns, ~columns).float()
        foreground = (20 * side - 10)[:, None, None].expand(-1, 1, vis.shape[-2], -1)
        fused = vis + torch.linspace(0, 1, vis.shape[-1])
        return Output(fused, torch.cat([-foreground, foreground], 1))


@pytest.fixture
def batch():
    vis, ir = torch.rand(2, 2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    return vis, ir, torch.tensor([[1, LEFT, CAR], [1, CAR, RIGHT]]), torch.ones(2, 3)


def test_the_side_that_a_sentence_names_stays_the_side_in_the_picture(batch):
    plain = PointsAtASide()(*batch)
    flipped = forward_tta(PointsAtASide(), *batch, (LEFT, RIGHT))
    assert torch.equal(flipped.logits.argmax(1), plain.logits.argmax(1))
    assert flipped.logits.softmax(1).amax(1).min() > 0.999
    unsure = forward_tta(PointsAtASide(), *batch, None)  # asked for the left car in the mirror, too
    assert unsure.logits.softmax(1)[:, 1].sub(0.5).abs().max() < 1e-3


def test_the_fused_image_is_the_mean(batch):
    gradient = torch.linspace(0, 1, 8)
    expected = batch[0] + (gradient + gradient.flip(0)) / 2
    assert torch.allclose(forward_tta(PointsAtASide(), *batch, (LEFT, RIGHT)).fused, expected, atol=1e-6)


def test_probabilities_are_averaged(batch):
    class Sure(torch.nn.Module):
        def forward(self, vis, ir, input_ids, attention_mask):
            column = torch.tensor([200.0, 1, -3, 0, 0, 2, 1, -200]).expand(len(vis), 1, 6, 8)
            return Output(vis, torch.cat([-column, column], 1))

    probabilities = Sure()(*batch).logits.softmax(1)
    found = forward_tta(Sure(), *batch).logits
    assert found.isfinite().all()
    assert torch.allclose(found.softmax(1), (probabilities + probabilities.flip(-1)) / 2, atol=1e-6)


def test_left_and_right_trade_places():
    ids = torch.tensor([[1, LEFT, CAR, RIGHT, LEFT]])
    assert exchange(ids, (LEFT, RIGHT)).tolist() == [[1, RIGHT, CAR, LEFT, RIGHT]]
    assert exchange(ids, None) is ids


def test_the_words_are_found_in_the_vocabulary(tiny_bert, tmp_path):
    tokenizer = Tokenizer(tiny_bert)
    sentences, _ = tokenizer(["the disc on the left", "the disc on the right"])
    assert torch.equal(exchange(sentences, left_right_ids(tokenizer)), sentences.flip(0))


@pytest.mark.parametrize("words", [["the"], ["left"], ["right"], ["le", "##ft", "right"]])
def test_a_vocabulary_without_both_words_says_so(words, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    assert left_right_ids(Tokenizer(str(tmp_path))) is None


def test_a_mirrored_question_gets_the_mirrored_answer(trained, tiny_bert):
    content = checkpoint.read(str(trained / "last.pth"))
    tokenizer = Tokenizer(tiny_bert)
    model = Inference(build_from_checkpoint(content, "last.pth", tiny_bert, ""), True, left_right_ids(tokenizer))
    vis, ir = torch.randn(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        one = model(vis, ir, *tokenizer(["the disc on the left"]))
        other = model(vis.flip(-1), ir.flip(-1), *tokenizer(["the disc on the right"]))
    assert torch.allclose(one.fused, other.fused.flip(-1), atol=1e-5)
    assert torch.allclose(one.logits.softmax(1), other.logits.flip(-1).softmax(1), atol=1e-5)


def test_bfloat16_still_gives_float32():
    class Product(torch.nn.Module):
        def forward(self, vis, ir, input_ids, attention_mask):
            seen.append((vis @ ir).dtype)
            return Output(vis @ ir, vis @ ir)

    for dtype, inside in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        seen = []
        output = Inference(Product(), amp_dtype=dtype)(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4), None, None)
        assert seen == [inside]
        assert output.fused.dtype == output.logits.dtype == torch.float32
