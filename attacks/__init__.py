"""Attacks on trained networks. An attack knows a network as a function from images to logits."""

from types import SimpleNamespace

METHODS = ("cw", "pgd", "bim", "deepfool", "ddn", "fmn")
NORMALIZATIONS = ("none", "sum", "max")
ABORT_RULES = ("image", "batch", "none")
TARGETED = ("cw", "ddn", "fmn")  # the methods that can be aimed at a class


def build(f: SimpleNamespace, logits, shape: tuple[int, int, int]):
    """The attack that the flags name, on `logits`; where a flag is None the paper's value stands."""
    from attacks import bim, ddn, deepfool, fmn, l2_attack, linf_attack
    from attacks.base import normalized

    attack_class, options = {
        "cw": (
            l2_attack.CarliniWagnerL2,
            {
                "iterations": f.attack_K,
                "learning_rate": f.attack_lr,
                "binary_search_steps": f.attack_search_steps,
                "initial_const": f.attack_initial_const,
                "confidence": f.attack_confidence,
                "abort_early": f.attack_abort,
            },
        ),
        "pgd": (
            linf_attack.ProjectedGradientDescent,
            {
                "steps": f.attack_K,
                "stepsize": f.attack_lr,
                "restarts": f.attack_E,
                "eps_list": f.attack_eps_list,
                "seed": f.seed,
            },
        ),
        "bim": (
            bim.BasicIterativeMethod,
            {"steps": f.attack_K, "stepsize": f.attack_lr, "init_epsilon": f.attack_init_eps},
        ),
        "deepfool": (deepfool.DeepFool, {"steps": f.attack_K}),
        "ddn": (ddn.DDN, {"steps": f.attack_K, "init_epsilon": f.attack_init_eps}),
        "fmn": (fmn.FMN, {"steps": f.attack_K, "alpha_init": f.attack_lr}),
    }[f.attack_method]
    options = {name: value for name, value in options.items() if value is not None}
    if f.attack_target is not None:
        options["targeted"] = True
    return attack_class(normalized(logits, f.attack_normalize_output), shape, **options)
