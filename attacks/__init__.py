"""Attacks on trained networks. An attack knows a network as a function from images to logits."""

from types import SimpleNamespace

NORMALIZATIONS = ("none", "sum", "max")
ABORT_RULES = ("image", "batch", "none")
TARGETED = ("cw", "ddn", "fmn")  # the methods that can be aimed at a class

# {method: {what its class calls it: the flag}}
OPTIONS = {
    "cw": {
        "iterations": "attack_K",
        "learning_rate": "attack_lr",
        "binary_search_steps": "attack_search_steps",
        "initial_const": "attack_initial_const",
        "confidence": "attack_confidence",
        "abort_early": "attack_abort",
    },
    "pgd": {
        "steps": "attack_K",
        "stepsize": "attack_lr",
        "restarts": "attack_E",
        "eps_list": "attack_eps_list",
        "seed": "seed",
    },
    "bim": {"steps": "attack_K", "stepsize": "attack_lr", "init_epsilon": "attack_init_eps"},
    "deepfool": {"steps": "attack_K"},
    "ddn": {"steps": "attack_K", "init_epsilon": "attack_init_eps"},
    "fmn": {"steps": "attack_K", "alpha_init": "attack_lr"},
}
METHODS = tuple(OPTIONS)


def refused(method: str, flag: str) -> bool:
    """Whether a flag is one that only other methods take."""
    if flag in ("seed", "attack_eps_list"):  # of every run, and of every summary
        return False
    takers = [name for name, options in OPTIONS.items() if flag in options.values()]
    return bool(takers) and method not in takers


def build(f: SimpleNamespace, logits, shape: tuple[int, int, int]):
    """The attack that the flags name, on `logits`; where a flag is None the paper's value stands."""
    from attacks import bim, ddn, deepfool, fmn, l2_attack, linf_attack
    from attacks.base import normalized

    attack_class = {
        "cw": l2_attack.CarliniWagnerL2,
        "pgd": linf_attack.ProjectedGradientDescent,
        "bim": bim.BasicIterativeMethod,
        "deepfool": deepfool.DeepFool,
        "ddn": ddn.DDN,
        "fmn": fmn.FMN,
    }[f.attack_method]
    options = {name: getattr(f, flag) for name, flag in OPTIONS[f.attack_method].items()}
    options = {name: value for name, value in options.items() if value is not None}
    if f.attack_target is not None:
        options["targeted"] = True
    return attack_class(normalized(logits, f.attack_normalize_output), shape, **options)
