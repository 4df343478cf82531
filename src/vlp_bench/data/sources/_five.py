"""5x200: images with one of five findings and no other, the same number of each (Huang et al., GLoRIA, ICCV 2021)."""

from collections.abc import Sequence

import numpy as np

from vlp_bench.data.divisions import sampled

#: the labels of CheXpert's competition, in the order in which published code draws
FIVE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
#: images of each class, and how many more there are to choose prompts on
EACH, MORE = 200, 40


def exclusive(
    ids: Sequence[str], owners: Sequence[str], names: Sequence[str], values: np.ndarray, usable: np.ndarray
) -> tuple[list[str], list[str]]:
    """Rows with one of the five labels and nothing else, drawn as MGCA's code does (`random_state=0`).

    Args:
        ids: of N rows.
        owners: the patient of each.
        names: of K labels.
        values: float (N, K); an unknown label counts as absent, an uncertain one against the row, `No Finding` not
            at all.
        usable: bool (N,), such as frontal; others do not count.

    Returns:
        200 rows of each class, and 40 further ones of patients who have none among the former. Where a class has
        fewer than 200, as many as it has of every class.
    """
    asked = [name for name in names if name != "No Finding"]
    told = np.nan_to_num(values[:, [list(names).index(name) for name in asked]])
    alone = ((told != 0).sum(1) == 1) & usable
    fitting = [np.flatnonzero(alone & (told[:, asked.index(name)] == 1)).tolist() for name in FIVE]
    count = min(EACH, *map(len, fitting))
    # a draw of fewer is the beginning of one of all
    order = [[int(n) for n in sampled([str(n) for n in rows], 0, len(rows))] for rows in fitting]
    test = [n for rows in order for n in rows[:count]]
    taken = {owners[n] for n in test}
    val = [n for rows in order for n in [n for n in rows[count:] if owners[n] not in taken][:MORE]]
    return [ids[n] for n in test], [ids[n] for n in val]
