"""Sums that move along a column equal those of the whole volume, to the last bit."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from nnunet_selma.prediction.sums import Sums
from nnunet_selma.prediction.tiling import Tiling


@given(
    depth=st.integers(9, 40),
    step=st.sampled_from([0.3, 0.5, 0.7, 1.0]),
    cuts=st.sets(st.integers(1, 39), max_size=6),
    folds=st.integers(1, 2),
    seed=st.integers(0, 9),
)
def test_blocks_of_a_column_have_the_means_of_the_whole(depth, step, cuts, folds, seed):
    """The oracle is what nnU-Net does: `total[tile] += logits * weight` in half precision over the whole volume, tile by tile."""
    generator = torch.Generator().manual_seed(seed)
    shape, tile = (depth, 7, 9), (8, 4, 9)
    tiles = Tiling(shape=shape, tile=tile, step=step).touching((slice(0, depth), slice(0, 7), slice(0, 9)))
    weight = torch.rand(tile, generator=generator).add(0.1).half()
    logits = [[torch.randn((2, *tile), generator=generator) * 20 for _ in tiles] for _ in range(folds)]
    whole = torch.zeros((2, *shape), dtype=torch.half)
    for fold in range(folds):
        total, count = torch.zeros((2, *shape), dtype=torch.half), torch.zeros(shape, dtype=torch.half)
        for box, values in zip(tiles, logits[fold], strict=True):
            total[(slice(None), *box)] += values * weight
            count[box] += weight
        whole += total.div_(count)
    whole /= folds
    bounds = sorted({0, depth, *(cut for cut in cuts if cut < depth)})
    sums, done = None, None
    for start, stop in pairwise(bounds):
        new = [
            number
            for number, box in enumerate(tiles)
            if box[0].start < stop and box[0].stop > start and (done is None or box[0].start > done)
        ]
        reach = max([stop, *(tiles[number][0].stop for number in new)])
        if sums is None:
            sums = Sums.empty(
                (slice(start, reach), slice(0, 7), slice(0, 9)), 2, folds, torch.half, torch.device("cpu")
            )
        else:
            sums.move(slice(start, max(reach, sums.box[0].stop)))
        for fold in range(folds):
            for number in new:
                sums.add(fold, tiles[number], logits[fold][number], weight)
        done = tiles[new[-1]][0].start if new else done
        block = torch.cat(list(sums.means((slice(start, stop), slice(0, 7), slice(0, 9)))), dim=1)
        assert torch.equal(block, whole[:, start:stop])
