"""The attacks, one row each: where its class is, its norm, its settings. No TensorFlow here.

A new attack is a file with its class, a row here, and a script `eval-*.py`.
"""

from dataclasses import dataclass

import numpy as np

NORMALIZATIONS = ("none", "sum", "max")
ABORT_RULES = ("image", "batch", "none")
CERTIFICATES = ("norms", "local", "none")
L1, L2, LINF = "L1", "L2", "Linf"


@dataclass(frozen=True)
class Method:
    """An attack.

    Attributes:
      path: its class, 'module:class'.
      options: {what its class calls a setting: the flag}.
      norm: of its distances: L1, L2 or LINF.
      targeted: whether it can be aimed at a class.
      eps_grid: whether it looks for examples at the radii of `attack_eps_list`, and not for the nearest one.
        The error of an image is then the smallest of these radii that holds its example.
    """

    path: str
    options: dict[str, str]
    norm: str = L2
    targeted: bool = False
    eps_grid: bool = False

    @property
    def distance(self) -> str:
        """Return what its distances are called in a table: 'L2', or 'eps' of a grid."""
        return "eps" if self.eps_grid else self.norm

    def distances(self, errors: np.ndarray, clean_correct: np.ndarray, target: str | int | None) -> np.ndarray:
        """Return the distance of each image to its example, float64 [N].

        It is 0 where the image itself is one: with a target, an image in that class; otherwise a misclassified image.
        Without an example it is infinite, or 1 on a grid of eps.

        Args:
          errors: as in `res`: of attacks in L2, squared distances, as published; [N].
          clean_correct: whether the image itself is classified correctly, [N].
          target: the flag attack_target.
        """
        found = np.array(errors, np.float64)  # a copy
        found = np.sqrt(found) if self.norm == L2 else found
        return found if target is not None else np.where(clean_correct, found, 0.0)


METHODS = {
    "cw": Method(
        "attacks.l2_attack:CarliniWagnerL2",
        {
            "iterations": "attack_K",
            "learning_rate": "attack_lr",
            "binary_search_steps": "attack_search_steps",
            "initial_const": "attack_initial_const",
            "confidence": "attack_confidence",
            "abort_early": "attack_abort",
        },
        targeted=True,
    ),
    "pgd": Method(
        "attacks.linf_attack:ProjectedGradientDescent",
        {
            "steps": "attack_K",
            "stepsize": "attack_lr",
            "restarts": "attack_E",
            "eps_list": "attack_eps_list",
            "seed": "seed",
        },
        norm=LINF,
        eps_grid=True,
    ),
    "bim": Method(
        "attacks.bim:BasicIterativeMethod",
        {"steps": "attack_K", "stepsize": "attack_lr", "init_epsilon": "attack_init_eps"},
    ),
    "deepfool": Method("attacks.deepfool:DeepFool", {"steps": "attack_K"}),
    "ddn": Method("attacks.ddn:DDN", {"steps": "attack_K", "init_epsilon": "attack_init_eps"}, targeted=True),
    "best": Method(
        "attacks.best:Nearest", {"steps": "attack_K", "init_epsilon": "attack_init_eps"}, targeted=True
    ),  # of DDN along the gap, DDN along the cross-entropy, and FMN
    **{
        name: Method(
            f"attacks.fmn:{path}", {"steps": "attack_K", "alpha_init": "attack_lr"}, norm=norm, targeted=True
        )
        for name, path, norm in (("fmn", "FMN", L2), ("fmn-l1", "FMNL1", L1), ("fmn-linf", "FMNLinf", LINF))
    },
    "apgd": Method(
        "attacks.apgd:AutoPGD",
        {"steps": "attack_K", "restarts": "attack_E", "eps_list": "attack_eps_list", "seed": "seed"},
        norm=LINF,
        eps_grid=True,
    ),
}


def refuses(method: str, flag: str) -> bool:
    """Return whether only other methods take this flag."""
    if flag in ("seed", "attack_eps_list"):  # every run has a seed, every summary a list of eps
        return False
    takers = [name for name, row in METHODS.items() if flag in row.options.values()]
    return bool(takers) and method not in takers
