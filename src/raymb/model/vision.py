"""Vision-language models: which of them raymb trains, and with which of Bridge's forward steps. No framework."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymb.errors import ModelError, SpecError
from raymb.model.families import FAMILIES, family_of
from raymb.model.families.record import Family

if TYPE_CHECKING:
    from raymb.model.shape import ModelShape

TEXT_STEP = "gpt_step"
"""Bridge's forward step for models of text alone."""
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""What a vision-language model has beside its weights, from which other programs prepare images."""


def vision_architecture(architecture: str) -> str:
    """The architecture of a vision-language model that raymb trains; "" for any other."""
    return architecture if family_of(architecture).vision else ""


def forward_step(asked: str, architecture: str) -> str:
    """The forward step of a model, once check_forward_step has found nothing.

    Args:
        asked: of --step_func.
    """
    return _own_step(family_of(architecture)) if asked == "auto" else asked


def step_of_recipe(module: str) -> str | None:
    """The forward step of the vision-language models of a module of recipes; None where raymb cannot train them."""
    known = [family.vision for family in FAMILIES if family.vision]
    return next((vision.step for vision in known if vision.recipes == module.rpartition(".")[2]), None)


def known_families() -> str:
    """The vision-language families that raymb trains, in words."""
    return " and ".join(sorted(family.name for family in FAMILIES if family.vision))


def module_name(architecture: str, name: str) -> str:
    """transformers' name of what files call so; the two differ where a model has more than a language part."""
    vision = family_of(architecture).vision
    stored, module = vision.language if vision else ("", "")
    return module + name.removeprefix(stored) if stored and name.startswith(stored) else name


def check_forward_step(asked: str, shape: ModelShape) -> None:
    """Refuse a model or a forward step that raymb cannot train with.

    Raises:
        ModelError: it takes images or sound beside text, and raymb cannot train its family.
        SpecError: another forward step than its own was asked for.
    """
    family = family_of(shape.architecture)
    if not family.vision and shape.tower:
        raise ModelError(
            f"{shape.architecture} has a {shape.tower} beside its language model; of such "
            f"models raymb trains {known_families()} only",
            "give one of those, or a language model, to --hf_model_path",
        )
    own = _own_step(family)
    if asked not in ("auto", own):
        what = f"trains {family.name}, on rows with images and without" if family.vision else "trains language models"
        raise SpecError(
            f"--step_func {asked}: {shape.architecture} needs {own}, which {what}"
            + ("; llava_step is for models of LLaVA's kind, none of which raymb trains" * (asked == "llava_step")),
            f"leave it out, or set --step_func {own}",
        )


def _own_step(family: Family) -> str:
    return family.vision.step if family.vision else TEXT_STEP
