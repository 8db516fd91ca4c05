import doctest
import math

import pytest
import torch

import potstill.evaluate.fewshot
from potstill.errors import InputError, ShapeError
from potstill.evaluate import retrieval_fewshot_scores


def draw(*shapes, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=draws, dtype=torch.float64) for shape in shapes]


def test_the_doc_example_runs():
    assert doctest.testmod(potstill.evaluate.fewshot).failed == 0


def test_scores_equal_the_plain_reading():
    images, text, support = draw((4, 5), (3, 5), (3, 2, 5))
    scores = retrieval_fewshot_scores(images, text, support, alpha=0.7, beta=3.0)

    def cos(a, b):
        return torch.cosine_similarity(a, b, dim=0).item()

    for n in range(4):
        for c in range(3):
            shots = sum(math.exp(-3.0 * (1 - cos(images[n], support[c, m]))) for m in range(2))
            assert scores[n, c].item() == pytest.approx(cos(images[n], text[c]) + 0.7 * shots)


def test_without_images_weighing_in_the_text_decides():
    images, text, support = draw((4, 5), (3, 5), (3, 2, 5))
    scores = retrieval_fewshot_scores(images, text, support, alpha=0)
    torch.testing.assert_close(scores, torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(text).T)


def test_an_image_shown_before_is_recognised():
    _, text, support = draw((4, 5), (3, 5), (3, 2, 5))
    scores = retrieval_fewshot_scores(2 * support[:, 0], text, support, beta=50.0)
    assert scores.argmax(1).tolist() == [0, 1, 2]
    assert not scores.requires_grad


def test_features_that_do_not_fit_are_refused():
    images, text, support = draw((4, 5), (3, 5), (3, 2, 5))
    for given in ((images[:, :4], text, support), (images, text[:2], support), (images, text, support[:, :0])):
        with pytest.raises(ShapeError, match=r"support \(C, m, D\)"):
            retrieval_fewshot_scores(*given)
    with pytest.raises(InputError, match="alpha"):
        retrieval_fewshot_scores(images, text, support, beta=0)
    with pytest.raises(InputError, match="floating point"):
        retrieval_fewshot_scores(images.long(), text, support)
