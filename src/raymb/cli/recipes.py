"""`raymb recipes list` and `raymb recipes show`: what Megatron-Bridge recommends."""

from __future__ import annotations

from typing import Annotated, Any

import typer

_JSON = typer.Option("--json", help="Print JSON, nothing else.", show_default=False)


def list_(
    family: Annotated[str, typer.Argument(metavar="[FAMILY]", help="Only of this family, or with this word.")] = "",
    mode: Annotated[str, typer.Option(metavar="sft|lora|pretrain", help="Only of this mode.")] = "",
    json: Annotated[bool, _JSON] = False,
) -> int:
    """Every recipe of the installed Megatron-Bridge by family, with mode, GPUs and layout. Imports nothing of it."""
    from raymb.errors import SpecError
    from raymb.recipes import catalog

    if mode not in ("", "sft", "lora", "pretrain"):
        raise SpecError(f"--mode {mode}: sft, lora or pretrain is expected")
    recipes = [
        recipe
        for recipe in catalog().values()
        if mode in ("", recipe.mode) and (recipe.family == family or family in recipe.name)
    ]
    if not recipes:
        raise SpecError(f"no recipe of {family or 'any family'} {mode}", "raymb recipes list")
    if json:
        from json import dumps

        print(dumps([{**vars(recipe), "layout": recipe.layout} for recipe in recipes]))
    else:
        _print_table(recipes)
    return 0


def _print_table(recipes: list[Any]) -> None:
    names = {recipe.name: min((recipe.name, *recipe.older_names), key=len) for recipe in recipes}
    width = max(map(len, names.values()))
    for number, recipe in enumerate(recipes):
        if number == 0 or recipe.family != recipes[number - 1].family:
            print(f"{recipe.family}:")
        gpus = f"{recipe.gpus or '?'} {recipe.gpu}".strip()
        print(f"  {names[recipe.name]:{width}}  {recipe.mode:8}  {gpus:10}  {recipe.layout}")


def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A recipe of `raymb recipes list`.")],
    json: Annotated[bool, _JSON] = False,
) -> int:
    """Print a recipe as YAML for --config, with what of it is left out. Imports this recipe's module alone, and asks no
    hub."""
    from raymb.model.vision import known_families
    from raymb.recipes import resolve_recipe

    resolved = resolve_recipe(name)
    translation = resolved.translation
    if json:
        from json import dumps

        print(dumps({**translation.sections, "left_out": translation.left_out}))
        return 0
    import yaml

    recipe = resolved.recipe
    print(f"# {recipe.name} ({recipe.mode}) of {recipe.module}")
    if not resolved.step:
        print(f"# with images or sound raymb trains {known_families()} only: finetune cannot start from it")
    for line in translation.left_out:
        print(f"# left out: {line}")
    print(yaml.safe_dump(translation.sections, sort_keys=False, width=1000), end="")
    return 0
