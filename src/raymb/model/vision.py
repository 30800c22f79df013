"""Models that see images: which of them raymb trains, and with which of Bridge's forward steps. No framework."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raymb.errors import ModelError, SpecError

if TYPE_CHECKING:
    from raymb.model.shape import ModelShape

TEXT_STEP = "gpt_step"
"""Bridge's forward step for models of text alone."""
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""What a model that sees has beside its weights, so that others can show it images."""


@dataclass(frozen=True)
class VisionFamily:
    """
    Args:
        name: for people.
        step: Bridge's forward step.
        mark: a text: the chat template writes it where an image is, and it is the token of each piece of the image.
        image_processor: module and class of transformers that cuts an image into patches, on Pillow alone.
        recipes: name of the module that holds Bridge's recipes for it.
        language: beginning of the language part's names in files, and of its modules' names in transformers' model.
    """

    name: str
    step: str
    mark: str
    image_processor: tuple[str, str]
    recipes: str
    language: tuple[str, str]


FAMILIES = {
    "Qwen2_5_VLForConditionalGeneration": VisionFamily(
        "Qwen2.5-VL",
        "vlm_step",
        "<|image_pad|>",
        ("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl", "Qwen2VLImageProcessorPil"),
        "qwen25_vl",
        ("model.layers.", "model.language_model.layers."),
    ),
}
"""Architecture to family."""


def seeing(architecture: str) -> str:
    """The architecture of a model that sees images; "" for any other."""
    return architecture if architecture in FAMILIES else ""


def forward_step(asked: str, architecture: str) -> str:
    """The forward step of a model, once check_forward_step has found nothing.

    Args:
        asked: of --step_func.
    """
    family = FAMILIES.get(architecture)
    return (family.step if family else TEXT_STEP) if asked == "auto" else asked


def step_of_recipe(module: str) -> str | None:
    """The forward step of the models of a module of recipes that see images; None where raymb has no way for them."""
    return next((one.step for one in FAMILIES.values() if one.recipes == module.rpartition(".")[2]), None)


def known_families() -> str:
    """In words."""
    return " and ".join(sorted(one.name for one in FAMILIES.values()))


def module_name(architecture: str, name: str) -> str:
    """transformers' name of what files call so; the two differ where a model has more than a language part."""
    stored, module = FAMILIES[architecture].language if architecture in FAMILIES else ("", "")
    return module + name.removeprefix(stored) if stored and name.startswith(stored) else name


def check_forward_step(asked: str, shape: ModelShape) -> None:
    """Whether raymb can train this model, and so.

    Raises:
        ModelError: it sees images or hears sound, and raymb has no way for its family.
        SpecError: another forward step than its own was asked for.
    """
    family = FAMILIES.get(shape.architecture)
    if family is None and shape.sees:
        raise ModelError(
            f"{shape.architecture} has a {shape.sees} beside its language model, of such "
            f"models raymb trains {known_families()} only",
            "give one of those, or a language model, to --hf_model_path",
        )
    own = family.step if family else TEXT_STEP
    if asked not in ("auto", own):
        what = f"trains {family.name}, on rows with images and without" if family else "trains language models"
        raise SpecError(
            f"--step_func {asked}: {shape.architecture} needs {own}, which {what}"
            + ("; llava_step is for models of LLaVA's kind, none of which raymb trains" * (asked == "llava_step")),
            f"leave it out, or set --step_func {own}",
        )
